//! Which clients the listener serves, how many, and for how long.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const PLAIN: &str =
    "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";

async fn end_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    drop(stream.read_to_end(&mut heard).await);
    heard
}

#[tokio::test]
async fn clients_outside_are_told_what_to_set() {
    let world = World::with(|config| config.clients.allow = Vec::new());
    for request in [
        PLAIN.to_owned(),
        "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n".into(),
        get("larder", "/ca.crt"),
    ] {
        let text = ask(&mut world.connect().await, &request).await;
        assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("clients.allow"), "{text}");
    }
}

#[tokio::test]
async fn shut_ports_are_refused_for_connect_and_for_urls() {
    let world = World::with(|_| {});
    for request in [
        "CONNECT example.org:25 HTTP/1.1\r\nHost: example.org:25\r\nConnection: close\r\n\r\n",
        "GET http://example.org:25/ HTTP/1.1\r\nHost: example.org:25\r\nConnection: close\r\n\r\n",
    ] {
        let text = ask(&mut world.connect().await, request).await;
        assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("hosts.ports"), "{text}");
    }
}

#[tokio::test]
async fn malformed_requests_are_answered_400() {
    let world = World::with(|_| {});
    for request in [
        "CONNECT example.org HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
        "GET http://example.org/ HTTP/1.1\r\nHost: other.example.org\r\nConnection: close\r\n\r\n",
        "GET http://example.org/ HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET http://example.org/ HTTP/1.1\r\nHost: u:p@example.org\r\nConnection: close\r\n\r\n",
        "GET http://example.org/ HTTP/1.1\r\nHost : example.org\r\n\r\n",
        "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "\x01\x02\r\n\r\n",
    ] {
        let text = ask(&mut world.connect().await, request).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{request}: {text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(body.starts_with("larder: ") && body.len() > 30, "{request}: {text}");
    }
}

#[tokio::test]
async fn requests_about_larder_itself_get_its_own_pages() {
    let world = World::with(|_| {});
    let port = world.address.port();
    for request in [
        get("larder", "/-/health"),
        get(&format!("127.0.0.1:{port}"), &format!("http://127.0.0.1:{port}/-/health")),
        get(&format!("localhost:{port}"), &format!("http://localhost:{port}/-/health")),
    ] {
        let text = ask(&mut world.connect().await, &request).await;
        assert!(text.ends_with("own /-/health"), "{text}");
    }
}

#[tokio::test]
async fn a_header_that_never_ends_is_not_waited_for() {
    let world = World::with(|config| config.clients.header_timeout = Duration::from_millis(200));
    let mut idle = world.connect().await;
    let mut loris = world.connect().await;
    loris.write_all(b"GET http://example.org/ HTTP/1.1\r\n").await.unwrap();
    let (mut answers, mut header) = loris.split();
    let dribble = async {
        while header.write_all(b"X: y\r\n").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let mut heard = Vec::new();
    tokio::select! {
        () = dribble => {}
        _ = answers.read_to_end(&mut heard) => {}
    }
    assert_eq!(heard, b"");
    // Control: a connection without a request is not affected.
    assert!(ask(&mut idle, PLAIN).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_handshake_begins_no_header() {
    let world = World::with(|config| config.clients.header_timeout = Duration::from_millis(100));
    let tunnel = world.tunnel("example.org:443").await;
    let mut stream = world.tls(tunnel, "example.org").await;
    sleep(Duration::from_millis(400)).await;
    let text = ask(&mut stream, &get("example.org", "/")).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_peace() {
    let world = World::with(|config| config.clients.idle_timeout = Duration::from_millis(500));
    let mut fresh = world.connect().await;
    assert_eq!(end_of(&mut fresh).await, b"");
    let mut used = world.connect().await;
    let keep = PLAIN.replace("Connection: close\r\n", "");
    assert!(ask(&mut used, &keep).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_that_is_being_answered_is_never_idle() {
    let world = World::with(|config| {
        config.clients.idle_timeout = Duration::from_millis(50);
        config.clients.header_timeout = Duration::from_millis(50);
    });
    let mut stream = world.connect().await;
    let go_on = Arc::clone(&world.echo.go_on);
    tokio::spawn(async move {
        sleep(Duration::from_millis(400)).await;
        go_on.notify_one();
    });
    let text = ask(&mut stream, &PLAIN.replace("org/ ", "org/slow ")).await;
    assert!(text.contains("end"), "{text}");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_reset() {
    let world = World::with(|config| config.clients.stall_timeout = Duration::from_millis(300));
    let mut stream = world.connect().await;
    let request = PLAIN.replace("org/ ", "org/large ");
    stream.write_all(request.as_bytes()).await.unwrap();
    sleep(Duration::from_millis(1200)).await;
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // Control: a client that reads gets all of it.
    let text = ask(&mut world.connect().await, &request).await;
    assert!(text.len() > 64 << 20);
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_begins_is_closed() {
    let world = World::with(|config| {
        config.clients.handshake_timeout = Duration::from_millis(200);
        config.hosts.tunnel_unknown_protocols = false;
    });
    let mut silent = world.tunnel("example.org:443").await;
    assert_eq!(end_of(&mut silent).await, b"");
    let mut begun = world.tunnel("example.org:443").await;
    begun.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(end_of(&mut begun).await, b"");
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let world = World::with(|config| config.clients.max_connections = 1);
    // A tunnel keeps its seat.
    let first = world.tunnel("example.org:443").await;
    let mut second = world.connect().await;
    second.write_all(PLAIN.as_bytes()).await.unwrap();
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "answered although the seat is taken");
    drop(first);
    let heard = end_of(&mut second).await;
    assert!(heard.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_panic_ends_its_connection_only() {
    let world = World::with(|_| {});
    let mut unlucky = world.connect().await;
    let request = PLAIN.replace("org/ ", "org/panic ");
    unlucky.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(end_of(&mut unlucky).await, b"");
    let text = ask(&mut world.connect().await, PLAIN).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

/// In a process of its own, because the limit applies to the process.
#[tokio::test]
async fn running_out_of_files_is_survived() {
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "accept::tests::limits::in_a_process_of_its_own_files_run_out",
        ])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "lowers the process's file limit: run by running_out_of_files_is_survived"]
async fn in_a_process_of_its_own_files_run_out() {
    let world = World::with(|_| {});
    assert!(crate::limits::raise() >= getrlimit(Resource::Nofile).current);
    // Made beforehand: connecting needs no further descriptor.
    let early = tokio::net::TcpSocket::new_v4().unwrap();
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(3), ..before };
    setrlimit(Resource::Nofile, none).unwrap();
    // Control: there are no descriptors left.
    assert!(tokio::net::TcpSocket::new_v4().is_err());
    let mut stream = early.connect(world.address).await.unwrap();
    stream.write_all(PLAIN.as_bytes()).await.unwrap();
    let mut byte = [0];
    let answered = timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
    assert!(answered.is_err(), "accepted without a file");
    setrlimit(Resource::Nofile, before).unwrap();
    let heard = end_of(&mut stream).await;
    assert!(heard.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_dual_stack_listener_takes_both_families() {
    let listener = bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    listener.accept().await.unwrap();
    let error = bind(SocketAddr::new("127.0.0.1".parse().unwrap(), port)).unwrap_err();
    assert!(error.to_string().contains("another larder"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_half_taken_is_taken() {
    let Ok(half) = bind("[::1]:0".parse().unwrap()) else {
        return; // A machine without IPv6 cannot show it.
    };
    let port = half.local_addr().unwrap().port();
    let error = bind(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)).unwrap_err();
    assert!(error.to_string().contains("is another larder running?"), "{error}");
}
