//! Real clients, and what they must accept.

use std::process::Output;

use tokio::process::Command;

use super::*;

async fn output(command: &mut Command) -> Output {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .expect("the tests need curl, openssl and python3")
}

async fn curl(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let output = output(
        Command::new("curl")
            .args(["-sS", "-g", "--max-time", "20", "--noproxy", ""])
            .args(["--proxy", &format!("http://{}", world.address), "--cacert"])
            .arg(world.state.path().join("ca.crt"))
            .args(args),
    )
    .await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn curl_is_served_over_both_versions_of_http_and_for_addresses() {
    let world = World::with(|_| {});
    for (version, url, expected) in [
        ("--http2", "https://example.org/a", "https://example.org/a HTTP/2.0 127.0.0.1 0"),
        ("--http1.1", "https://example.org/a", "https://example.org/a HTTP/1.1 127.0.0.1 0"),
        ("--http2", "https://192.0.2.1/", "https://192.0.2.1/ HTTP/2.0 127.0.0.1 0"),
        (
            "--http1.1",
            "https://[2001:db8::1]:8443/",
            "https://[2001:db8::1]:8443/ HTTP/1.1 127.0.0.1 0",
        ),
        ("--http1.1", "http://example.org/a?b", "http://example.org/a?b HTTP/1.1 127.0.0.1 0"),
    ] {
        assert_eq!(curl(&world, &[version, url]).await, (Some(0), expected.into()));
    }
}

#[tokio::test]
async fn curl_is_served_plain_http_in_a_tunnel_and_https_without_one() {
    let world = World::with(|_| {});
    assert_eq!(
        curl(&world, &["--proxytunnel", "http://example.org/a"]).await,
        (Some(0), "http://example.org/a HTTP/1.1 127.0.0.1 0".into())
    );
    assert_eq!(
        curl(&world, &["--request-target", "https://example.org/a", "http://example.org/a"]).await,
        (Some(0), "https://example.org/a HTTP/1.1 127.0.0.1 0".into())
    );
}

#[tokio::test]
async fn an_upload_arrives_whole() {
    let world = World::with(|_| {});
    let file = world.state.path().join("upload");
    let content = vec![7; 3_000_000];
    tokio::fs::write(&file, content).await.unwrap();
    let data = format!("@{}", file.display());
    for version in ["--http1.1", "--http2"] {
        let (code, text) =
            curl(&world, &[version, "--data-binary", &data, "https://example.org/"]).await;
        assert!(code == Some(0) && text.ends_with(" 3000000"), "{text}");
    }
}

/// Over HTTP/2 the stream is reset, and curl reports 92; without a cut the exit code is the same, so both cases are
/// covered.
#[tokio::test]
async fn a_failed_body_is_never_a_complete_one_for_curl() {
    let world = World::with(|_| {});
    for (version, path, expected) in [
        ("--http2", "quiet", 92),
        ("--http1.1", "cut", 56),
        // Chunked and without an end; only a length or chunks protect the client here.
        ("--http1.1", "quiet", 18),
    ] {
        let url = format!("https://example.org/{path}");
        let (code, text) = curl(&world, &[version, &url]).await;
        assert_eq!(code, Some(expected), "{version} {path}: {text}");
    }
}

/// What pip, requests and urllib do, in the strict mode that is Python 3.13's default. `http.client` sends its
/// CONNECT as HTTP/1.0.
const PYTHON: &str = r#"
import http.client, socket, ssl, sys
port, ca = int(sys.argv[1]), sys.argv[2]
context = ssl.create_default_context(cafile=ca)
context.verify_flags |= ssl.VERIFY_X509_STRICT
connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
connection.set_tunnel("example.org", 443)
connection.request("GET", "/a")
print(connection.getresponse().read().decode())
for authority, name in [("192.0.2.1:443", "192.0.2.1"), ("[2001:db8::1]:443", "2001:db8::1")]:
    plain = socket.create_connection(("127.0.0.1", port))
    plain.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    assert plain.recv(4096).startswith(b"HTTP/1.1 200")
    with context.wrap_socket(plain, server_hostname=name) as secure:
        print(secure.version())
"#;

#[tokio::test]
async fn python_accepts_the_certificates_in_strict_mode() {
    let world = World::with(|_| {});
    let output = output(
        Command::new("python3")
            .args(["-c", PYTHON, &world.address.port().to_string()])
            .arg(world.state.path().join("ca.crt")),
    )
    .await;
    assert_eq!(
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()),
        "https://example.org/a HTTP/1.1 127.0.0.1 0\nTLSv1.3\nTLSv1.3\n"
    );
}

async fn s_client(world: &World, args: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-proxy", &world.address.to_string()])
        .args(["-connect", "example.org:443", "-servername", "example.org"])
        .args(["-verify_return_error", "-CAfile"])
        .arg(world.state.path().join("ca.crt"))
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(get("example.org", "/").as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    drop(stdin);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn openssl_verifies_and_resumes_its_sessions() {
    let world = World::with(|_| {});
    let session = world.state.path().join("session");
    let session = session.to_str().unwrap();
    let first = s_client(&world, &["-tls1_3", "-ign_eof", "-sess_out", session]).await;
    assert!(first.contains("New, TLSv1.3"), "{first}");
    assert!(first.contains("Verify return code: 0 (ok)"), "{first}");
    let second = s_client(&world, &["-tls1_3", "-ign_eof", "-sess_in", session]).await;
    assert!(second.contains("Reused, TLSv1.3"), "{second}");
    let old = s_client(&world, &["-tls1_2", "-ign_eof", "-sess_out", session]).await;
    assert!(old.contains("New, TLSv1.2"), "{old}");
    let old = s_client(&world, &["-tls1_2", "-ign_eof", "-sess_in", session]).await;
    assert!(old.contains("Reused, TLSv1.2"), "{old}");
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_ca_is_refused_by_itself_and_nothing_breaks() {
    let world = World::with(|_| {});
    let other = World::with(|_| {});
    let foreign = other.state.path().join("ca.crt");
    let (code, text) =
        curl(&world, &["--cacert", foreign.to_str().unwrap(), "https://example.org/"]).await;
    assert_eq!(code, Some(60), "{text}");
    let (code, _) = curl(&world, &["https://example.org/"]).await;
    assert_eq!(code, Some(0));
}
