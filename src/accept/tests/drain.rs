//! How the front shuts down.

use super::*;

const SLOW: &str = "GET http://example.org/slow HTTP/1.1\r\nHost: example.org\r\n\r\n";

/// Reads until the first part of the body has come.
async fn read_beginning(stream: &mut (impl AsyncRead + Unpin)) {
    let mut heard = Vec::new();
    while !heard.ends_with(b"beginning ") {
        heard.push(stream.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn a_drain_lets_answers_end_and_idle_connections_go() {
    let mut world = World::with(|_| {});
    let mut idle = world.connect().await;
    let mut plain = world.connect().await;
    plain.write_all(SLOW.as_bytes()).await.unwrap();
    read_beginning(&mut plain).await;
    let tunnel = world.tunnel("example.org:443").await;
    let mut secure = world.tls(tunnel, "example.org").await;
    let request = SLOW.replace("http://example.org", "");
    secure.write_all(request.as_bytes()).await.unwrap();
    read_beginning(&mut secure).await;

    world.stop();
    let mut rest = String::new();
    idle.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "", "an idle connection is closed at once");
    assert!(TcpStream::connect(world.address).await.is_err());
    assert!(!world.running.is_finished());

    world.echo.go_on.notify_waiters();
    plain.read_to_string(&mut rest).await.unwrap();
    secure.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest.matches("end").count(), 2, "{rest}");
    world.running.await.unwrap();
}

#[tokio::test]
async fn what_outlives_the_drain_is_reset() {
    let mut world = World::with(|config| {
        config.clients.drain_timeout = Duration::from_millis(100);
    });
    let mut plain = world.connect().await;
    plain.write_all(SLOW.as_bytes()).await.unwrap();
    read_beginning(&mut plain).await;
    world.stop();
    let mut rest = Vec::new();
    let error = plain.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.running.await.unwrap();
}

/// Issue 17, faults, row 15: after a second signal the drain ends at once, and no connection is closed quietly.
#[tokio::test]
async fn a_drain_that_is_hurried_resets_what_is_open() {
    let mut world = World::with(|config| {
        config.clients.drain_timeout = Duration::from_hours(1);
    });
    let mut plain = world.connect().await;
    plain.write_all(SLOW.as_bytes()).await.unwrap();
    read_beginning(&mut plain).await;
    world.stop();
    world.hurry.cancel();
    let mut rest = Vec::new();
    let error = plain.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.running.await.unwrap();
}
