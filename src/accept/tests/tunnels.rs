//! What goes through a CONNECT tunnel.

use std::io::{Read, Write};

use super::*;
use crate::config::HostPattern;

/// An origin for raw tunnels: sends a greeting, then everything it receives in upper case until the end, then a
/// farewell.
async fn shouting_origin(version_check: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(version_check).await.unwrap();
                let mut heard = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut heard).await {
                    let shouted = heard[..count].to_ascii_uppercase();
                    stream.write_all(&shouted).await.unwrap();
                }
                stream.write_all(b"bye").await.ok();
            });
        }
    });
    address
}

/// A tunnel whose client sends `text`, half-closes, and reads to the end.
async fn said_and_heard(mut stream: TcpStream, text: &[u8]) -> String {
    stream.write_all(text).await.unwrap();
    // Half closed: the other direction stays open.
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    heard
}

#[tokio::test]
async fn a_server_that_speaks_first_is_tunnelled() {
    let world = World::with(|_| {});
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"220 ready\r\n").await);
    let mut stream = world.tunnel("example.org:2222").await;
    let mut version_check = [0; 11];
    stream.read_exact(&mut version_check).await.unwrap();
    assert_eq!(&version_check, b"220 ready\r\n");
    assert_eq!(said_and_heard(stream, b"hello").await, "HELLObye");
}

#[tokio::test]
async fn a_client_that_speaks_late_is_intercepted_all_the_same() {
    let world = World::with(|_| {});
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"").await);
    let stream = world.tunnel("example.org:443").await;
    // Longer than SILENCE: by now larder waits for the server as well, which sends nothing.
    sleep(LATE).await;
    let mut stream = world.tls(stream, "example.org").await;
    let text = ask(&mut stream, &get("example.org", "/a")).await;
    assert!(text.ends_with("https://example.org/a HTTP/1.1 127.0.0.1 0"), "{text}");
}

const LATE: Duration = Duration::from_millis(1300);

#[tokio::test]
async fn an_unknown_protocol_is_tunnelled_where_policy_allows() {
    let world = World::with(|_| {});
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"").await);
    let stream = world.tunnel("example.org:9999").await;
    assert_eq!(said_and_heard(stream, b"\x01hello").await, "\u{1}HELLObye");
}

#[tokio::test]
async fn tls_that_carries_another_protocol_is_tunnelled_whole() {
    let world = World::with(|_| {});
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"").await);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"imap".to_vec()];
    let name = ServerName::try_from("example.org").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();

    let mut stream = world.tunnel("example.org:1993").await;
    stream.write_all(&hello).await.unwrap();
    let mut heard = vec![0; hello.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, hello.to_ascii_uppercase());
}

#[tokio::test]
async fn an_unknown_protocol_is_closed_where_policy_does_not() {
    let world = World::with(|config| config.hosts.tunnel_unknown_protocols = false);
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"greeting").await);
    let mut stream = world.tunnel("example.org:9999").await;
    stream.write_all(b"\x01hello").await.unwrap();
    let mut heard = Vec::new();
    // The socket was closed with unread bytes, which may cause a reset.
    drop(stream.read_to_end(&mut heard).await);
    assert_eq!(heard, b"");
}

#[tokio::test]
async fn a_host_that_policy_names_is_tunnelled_unread() {
    let world = World::with(|config| {
        config.hosts.tunnel = vec![HostPattern("*.example.org".into())];
    });
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"hi ").await);
    let stream = world.tunnel("A.example.org.:443").await;
    assert_eq!(said_and_heard(stream, b"get / http/1.1\r\n").await, "hi GET / HTTP/1.1\r\nbye");
}

#[tokio::test]
async fn a_tunnel_on_which_nothing_moves_is_closed() {
    let world = World::with(|config| {
        config.hosts.tunnel = vec![HostPattern("example.org".into())];
        config.clients.idle_timeout = Duration::from_millis(100);
    });
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"hi").await);
    let mut stream = world.tunnel("example.org:443").await;
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hi");
}

#[tokio::test]
async fn a_hello_for_another_host_gets_a_certificate_and_is_told_421() {
    let world = World::with(|_| {});
    let stream = world.tunnel("example.org:443").await;
    let mut stream = world.tls(stream, "other.example.org").await;
    let text = ask(&mut stream, &get("other.example.org", "/")).await;
    assert!(
        text.starts_with("HTTP/1.1 421 ") && text.contains("CONNECT named example.org"),
        "{text}"
    );
}

#[tokio::test]
async fn a_host_that_is_not_the_tunnels_is_told_421() {
    let world = World::with(|_| {});
    let stream = world.tunnel("example.org:443").await;
    let mut stream = world.tls(stream, "example.org").await;
    let text = ask(&mut stream, &get("other.example.org", "/")).await;
    assert!(text.starts_with("HTTP/1.1 421 "), "{text}");
}

#[tokio::test]
async fn bytes_that_come_with_the_connect_are_not_lost() {
    let world = World::with(|_| {});
    let mut stream = world.connect().await;
    let eager = format!(
        "CONNECT example.org:80 HTTP/1.1\r\nHost: example.org:80\r\n\r\n{}",
        get("example.org", "/eager")
    );
    let text = ask(&mut stream, &eager).await;
    assert!(text.contains("http://example.org/eager "), "{text}");
}

#[tokio::test]
async fn an_upgrade_inside_a_tunnel_is_the_pipelines() {
    let world = World::with(|_| {});
    let stream = world.tunnel("example.org:443").await;
    let mut stream = world.tls(stream, "example.org").await;
    let request =
        "GET /upgrade HTTP/1.1\r\nHost: example.org\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    assert_eq!(rest, b"upgraded");
}

#[tokio::test]
async fn a_client_hello_in_many_segments_is_put_together() {
    let world = World::with(|_| {});
    let stream = world.tunnel("example.org:443").await.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(world.authority.ca_der()).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("example.org").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let (mut stream, mut hello) = (stream, Vec::new());
        client.write_tls(&mut hello).unwrap();
        for part in hello.chunks(hello.len() / 7) {
            stream.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut tls = rustls::StreamOwned::new(client, stream);
        tls.write_all(get("example.org", "/parts").as_bytes()).unwrap();
        let mut text = String::new();
        tls.read_to_string(&mut text).unwrap();
        text
    })
    .await
    .unwrap();
    assert!(answer.contains("https://example.org/parts "), "{answer}");
}

/// A reset on plain HTTP, a fatal alert through TLS; control: a body that just fails ends quietly.
#[tokio::test]
async fn a_cut_is_loud_and_not_an_end() {
    async fn ending(
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        request: &str,
    ) -> io::ErrorKind {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let ended = stream.read_to_end(&mut heard).await;
        assert!(heard.ends_with(b"beginning \r\n"), "the answer had begun");
        match ended {
            Ok(_) => io::ErrorKind::UnexpectedEof,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    let said = error.get_ref().unwrap().downcast_ref::<rustls::Error>();
                    let denied = rustls::AlertDescription::InternalError;
                    assert_eq!(said, Some(&rustls::Error::AlertReceived(denied)));
                }
                error.kind()
            }
        }
    }
    let world = World::with(|_| {});
    for (path, expected, through_tls) in [
        ("/cut", io::ErrorKind::ConnectionReset, io::ErrorKind::InvalidData),
        ("/quiet", io::ErrorKind::UnexpectedEof, io::ErrorKind::UnexpectedEof),
    ] {
        let plain = world.connect().await;
        let request = get("example.org", &format!("http://example.org{path}"));
        assert_eq!(ending(plain, &request).await, expected, "plain {path}");

        let tunnel = world.tunnel("example.org:443").await;
        let secure = world.tls(tunnel, "example.org").await;
        let request = get("example.org", path);
        assert_eq!(ending(secure, &request).await, through_tls, "TLS {path}");
    }
}

#[tokio::test]
async fn connections_and_tunnels_are_counted() {
    let world = World::with(|_| {});
    let shown = || {
        let mut text = String::new();
        world.metrics.render(&mut text).unwrap();
        text
    };
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"").await);
    let stream = world.tunnel("example.org:9999").await;
    assert!(shown().contains("larder_connections 1\n"), "{}", shown());
    said_and_heard(stream, b"\x01hello").await;
    while shown().contains("larder_connections 1\n") {
        sleep(Duration::from_millis(5)).await;
    }
    let totals = world.metrics.totals();
    assert_eq!(totals.count(&[Outcome::Tunnel]), 1);
    // "\x01HELLObye"
    assert_eq!((totals.to_client, totals.from_origin), (9, 9));
}

#[tokio::test]
async fn what_the_front_refuses_is_counted_and_kept_by_nobody() {
    let world =
        World::with(|config| config.hosts.tunnel = vec![HostPattern("*.example.org".into())]);
    let counted = |outcome| world.metrics.totals().count(&[outcome]);
    for (authority, outcome) in [
        ("example.org:25", Outcome::Refused(Cause::Host)),
        // The tunnel has no destination: larder itself answers a request that cannot be sent.
        ("a.example.org:443", Outcome::Refused(Cause::Host)),
    ] {
        let before = counted(outcome);
        let request =
            format!("CONNECT {authority} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let text = ask(&mut world.connect().await, &request).await;
        assert!(text.contains("cache-control: no-store"), "{text}");
        assert_eq!(counted(outcome), before + 1, "{authority}");
    }
}

/// A larder with eight seats, of which one address may have seven.
fn crowded() -> World {
    World::with(|config| {
        config.clients.max_connections = 8;
        config.clients.connections_per_address = 8;
    })
}

const PLAIN: &str =
    "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";

/// Longer than a tunnel must be quiet in unit tests before it may be closed for others.
const QUIET: Duration = Duration::from_millis(300);

/// Whether a connection was reset.
async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut heard = Vec::new();
    let ended = stream.read_to_end(&mut heard).await;
    ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

/// Issue 17, fault 9: idle tunnels kept all other clients out, for as long as `clients.idle_timeout`. The tunnel whose client
/// sent the last bytes stays: its server may be working on the answer.
#[tokio::test]
async fn idle_tunnels_make_way_for_a_new_client() {
    let world = crowded();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    *world.echo.upstream.lock().unwrap() = Some(silent.local_addr().unwrap());
    let mut asking = world.tunnel("example.org:9999").await;
    asking.write_all(b"\x01hello").await.unwrap();
    let _held = silent.accept().await.unwrap();
    *world.echo.upstream.lock().unwrap() = Some(shouting_origin(b"").await);
    let mut idle = Vec::new();
    for _ in 0..6 {
        let mut stream = world.tunnel("example.org:9999").await;
        stream.write_all(b"\x01hello").await.unwrap();
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).await.unwrap();
        idle.push(stream);
    }
    sleep(QUIET).await;
    let text = ask(&mut world.connect().await, PLAIN).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    for stream in &mut idle {
        assert!(is_reset(stream).await, "what is in the middle of something is not ended quietly");
    }
    let left = timeout(Duration::from_millis(50), asking.read_u8()).await;
    assert!(left.is_err(), "the control: it waits for its server");
    assert_eq!(world.metrics.totals().count(&[Outcome::Tunnel]), 6, "each is written down");
}

/// The same for connections that were upgraded (101), which are no longer with the task that served them.
#[tokio::test]
async fn idle_upgraded_connections_make_way_for_a_new_client() {
    let world = crowded();
    let mut idle = Vec::new();
    for _ in 0..7 {
        let mut stream = world.connect().await;
        let request = PLAIN.replace("org/ ", "org/upgrade-kept ").replace("close", "upgrade");
        let request = request.replace("\r\n\r\n", "\r\nUpgrade: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101 "));
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).await.unwrap();
        idle.push(stream);
    }
    sleep(QUIET).await;
    let text = ask(&mut world.connect().await, PLAIN).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    for stream in &mut idle {
        assert!(is_reset(stream).await);
    }
}

/// If no connection can make room, a new client gets a 503, and larder's own pages are served all the same.
#[tokio::test]
async fn tunnels_leave_larders_own_pages_within_reach() {
    let world = crowded();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    *world.echo.upstream.lock().unwrap() = Some(silent.local_addr().unwrap());
    let mut asking = Vec::new();
    for _ in 0..7 {
        let mut stream = world.tunnel("example.org:9999").await;
        stream.write_all(b"\x01hello").await.unwrap();
        asking.push((stream, silent.accept().await.unwrap()));
    }
    sleep(QUIET).await;
    let text = ask(&mut world.connect().await, PLAIN).await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("retry-after: 5"), "{text}");
    let text = ask(&mut world.connect().await, &get("larder", "/-/health")).await;
    assert!(text.ends_with("own /-/health"), "{text}");
    drop(asking);
}
