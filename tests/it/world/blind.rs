//! A plain CONNECT proxy, as many networks have between larder and the internet.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::client::read_head;

/// A CONNECT proxy. It stops when this is dropped.
pub(crate) struct Blind {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Blind {
    /// Starts one that requires `credential` (the value of `Proxy-Authorization`), if there is one.
    pub(crate) async fn start(credential: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tunnels.spawn(tunnel(stream, credential, Arc::clone(&seen)));
            }
        });
        Self { address, heads, task }
    }

    /// The CONNECT requests that it received.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Stops it; its tunnels break.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Blind {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn tunnel(mut client: TcpStream, credential: Option<&str>, seen: Arc<Mutex<Vec<String>>>) {
    let head = read_head(&mut client).await;
    seen.lock().unwrap().push(head.clone());
    let allowed = credential.is_none_or(|wanted| head.contains(wanted));
    let upstream = match head.split(' ').nth(1) {
        Some(authority) if allowed => TcpStream::connect(authority).await.ok(),
        _ => None,
    };
    let Some(mut upstream) = upstream else {
        let status = if allowed { "502 Bad Gateway" } else { "407 Proxy Authentication Required" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let _gone = client.write_all(answer.as_bytes()).await;
        return;
    };
    let _gone = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let _ended = copy_bidirectional(&mut client, &mut upstream).await;
}
