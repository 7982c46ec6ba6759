//! Host names for origins: a CONNECT proxy behind larder that maps names to addresses. Real clients do not use a proxy for
//! addresses of this machine, and take a name for an external host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::Origin;
use super::client::read_head;

type Known = Arc<Mutex<HashMap<String, SocketAddr>>>;

/// The proxy. It stops when this is dropped.
pub(crate) struct Names {
    address: SocketAddr,
    known: Known,
    task: JoinHandle<()>,
}

impl Names {
    /// A proxy that knows no name yet.
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, known) = (listener.local_addr().unwrap(), Known::default());
        let theirs = Arc::clone(&known);
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tunnels.spawn(tunnel(stream, Arc::clone(&theirs)));
            }
        });
        Self { address, known, task }
    }

    /// Its URL, for larder's `upstream.https_proxy`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address. A client that uses it directly reaches the origins themselves.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds the name of `origin`.
    pub(crate) fn know(&self, origin: &Origin) {
        self.known.lock().unwrap().insert(origin.authority(), origin.address());
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut client: TcpStream, known: Known) {
    let head = read_head(&mut client).await;
    let name = head.split([' ', ':']).nth(1).unwrap_or_default().to_owned();
    let address = known.lock().unwrap().get(&name).copied();
    let upstream = match address {
        Some(address) => TcpStream::connect(address).await.ok(),
        None => None,
    };
    let Some(mut upstream) = upstream else {
        let answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        let _gone = client.write_all(answer).await;
        return;
    };
    let _gone = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let _ended = copy_bidirectional(&mut client, &mut upstream).await;
}
