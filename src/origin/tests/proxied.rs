//! Requests through an upstream proxy, and around it.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::passing::pass;
use super::world::{
    After, Authority, INSIDE, NAME, Raw, ask, config, get, ok, origins, read_head, reply,
};
use crate::clock::Clock;
use crate::config::Live;
use crate::origin::{Ask, Duplex, Fault, Origins};

/// A proxy that accepts CONNECT to any host, and connects to `to`.
async fn connect_proxy(
    to: u16,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (seen, tls) = (Arc::clone(&seen), tls.clone());
            tokio::spawn(async move {
                let mut io: Box<dyn Duplex> = match tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(TlsAcceptor::from(tls).accept(stream).await.unwrap()),
                };
                let head = read_head(&mut io).await.unwrap();
                seen.lock().unwrap().push(head.clone());
                // "ada:l@vender"
                if !head.contains("proxy-authorization: Basic YWRhOmxAdmVuZGVy\r\n") {
                    let no = "HTTP/1.1 407 Proxy Authentication Required\nContent-Length: 0\n\n";
                    io.write_all(&reply(no, After::Keep).0).await.unwrap();
                    return;
                }
                io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let mut origin = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::io::copy_bidirectional(&mut io, &mut origin).await.ok();
            });
        }
    });
    (port, heads)
}

#[tokio::test]
async fn https_goes_through_a_tunnel_with_basic_authentication() {
    let authority = Authority::new();
    let raw = Raw::serve(Some(authority.plain_server()), |_| ok("x")).await;
    let (port, heads) = connect_proxy(raw.at.port(), None).await;
    let (mut config, _file) = authority.trusted();
    config.upstream.https_proxy = Some(format!("http://ada:l%40vender@127.0.0.1:{port}"));
    let through = origins(config.clone());
    let url = raw.url("https", "/");
    assert_eq!(get(&through, ask(&url)).await.unwrap(), b"x");
    assert_eq!(pass(&through.passes(), &url).await, "x");
    let authority = format!("{NAME}:{}", raw.at.port());
    for head in heads.lock().unwrap().iter() {
        assert!(head.starts_with(&format!("CONNECT {authority} HTTP/1.1\r\n")), "{head}");
        assert!(head.contains(&format!("host: {authority}\r\n")), "{head}");
        assert!(head.contains(through.via()), "{head}");
    }
    assert_eq!(heads.lock().unwrap().len(), 2);
    // The origin never receives the fields meant for the proxy.
    assert!(raw.heads().iter().all(|head| !head.contains("proxy-")));
    // The proxy resolves the name; larder has no address for it.
    let unknown = format!("https://nowhere.example.org:{}/", raw.at.port());
    let error = get(&through, ask(&unknown)).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::Untrusted { .. }), "{error}");

    config.upstream.https_proxy = Some(format!("http://eve:s3cret@127.0.0.1:{port}"));
    let error = get(&origins(config.clone()), ask(&url)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("407") && !text.contains("s3cret"), "{text}");
    assert_eq!(error.status(), 502);

    config.upstream.no_proxy = Some("example.org".into());
    assert_eq!(get(&origins(config), ask(&url)).await.unwrap(), b"x");
    assert_eq!(heads.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn tls_may_be_spoken_to_the_proxy_and_within_it_to_the_origin() {
    let authority = Authority::new();
    let server = authority.plain_server();
    let raw = Raw::serve(Some(Arc::clone(&server)), |_| ok("x")).await;
    let (port, heads) = connect_proxy(raw.at.port(), Some(server)).await;
    let (mut config, _file) = authority.trusted();
    config.upstream.https_proxy = Some(format!("https://ada:l%40vender@127.0.0.1:{port}"));
    let url = raw.url("https", "/");
    assert_eq!(get(&origins(config), ask(&url)).await.unwrap(), b"x");
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn plain_http_goes_to_the_proxy_in_absolute_form() {
    let raw = Raw::serve(None, |head| {
        if head.contains("proxy-authorization: Basic YTpi\r\n") {
            ok("x")
        } else {
            reply("HTTP/1.1 407 No\nContent-Length: 0\n\n", After::Keep)
        }
    })
    .await;
    let mut config = config();
    config.upstream.http_proxy = Some(format!("http://a:b@127.0.0.1:{}", raw.at.port()));
    let through = origins(config.clone());
    let url = "http://nowhere.example.org:80/a?b";
    assert_eq!(get(&through, ask(url)).await.unwrap(), b"x");
    assert_eq!(pass(&through.passes(), url).await, "x");
    for head in raw.heads() {
        assert!(head.starts_with("GET http://nowhere.example.org/a?b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: nowhere.example.org\r\n"), "{head}");
    }
    config.upstream.http_proxy = Some(format!("127.0.0.1:{}", raw.at.port()));
    let error = get(&origins(config), ask(url)).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::Proxy(_)), "{error}");
}

#[tokio::test]
async fn the_guard_judges_behind_a_proxy_what_needs_no_resolution() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let mut config = config();
    config.allow_nets.clear();
    config.upstream.http_proxy = Some(format!("http://127.0.0.1:{}", raw.at.port()));
    config.upstream.https_proxy.clone_from(&config.upstream.http_proxy);
    let origins = origins(config);
    for url in [
        "http://169.254.169.254:80/latest/meta-data/",
        "http://localhost:80/",
        "https://127.0.0.1:443/",
    ] {
        assert_eq!(get(&origins, ask(url)).await.unwrap_err().status(), 403, "{url}");
        let tunnel = origins.tunnel(ask(url).target.origin(), INSIDE).await;
        assert_eq!(tunnel.unwrap_err().status(), 403, "{url}");
    }
    assert_eq!(raw.connections(), 0);
    // The proxy itself is on loopback, but the operator chose it.
    assert_eq!(get(&origins, ask("http://nowhere.example.org:80/")).await.unwrap(), b"x");
}

/// A name that the proxy resolved counts as public: redirects from there reach no internal address, even for a client
/// of the internal network.
#[tokio::test]
async fn a_redirect_from_a_public_origin_opens_no_private_address() {
    let raw = Raw::serve(None, |head| {
        if head.starts_with("GET http://10.") {
            ok("inner")
        } else {
            let found = "HTTP/1.1 302 Found\nLocation: http://10.0.0.1/a\nContent-Length: 0\n\n";
            reply(found, After::Keep)
        }
    })
    .await;
    let mut config = config();
    config.upstream.http_proxy = Some(format!("http://127.0.0.1:{}", raw.at.port()));
    let origins = origins(config);
    let following = |url: &str| Ask { follow: true, ..ask(url) };
    let public = origins.fetch(ask("http://nowhere.example.org:80/")).await;
    assert!(public.unwrap().public);
    let error = get(&origins, following("http://nowhere.example.org:80/")).await;
    assert_eq!(error.unwrap_err().status(), 403);
    // The control: the client itself requests it.
    assert_eq!(get(&origins, ask("http://10.0.0.1:80/a")).await.unwrap(), b"inner");
    assert!(!origins.fetch(ask("http://10.0.0.1:80/a")).await.unwrap().public);
}

#[tokio::test]
async fn larder_as_its_own_proxy_is_a_loop() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let mut config = config();
    config.upstream.http_proxy = Some(format!("http://127.0.0.1:{}", raw.at.port()));
    let origins = origins(config);
    origins.set_own(vec![raw.at]);
    let error = get(&origins, ask("http://nowhere.example.org:80/")).await.unwrap_err();
    assert_eq!((error.fault(), error.status().as_u16()), (&Fault::Loop, 508));
    assert_eq!(raw.connections(), 0);
}

#[test]
fn a_proxy_that_cannot_be_read_is_an_error_and_not_ignored() {
    for bad in ["socks5://127.0.0.1:1080", "http://", "http://a b", "ftp://u:s3cret@127.0.0.1"] {
        let mut config = config();
        config.upstream.https_proxy = Some(bad.into());
        let error = Origins::new(Live::new(config), Clock::system()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("upstream.https_proxy") && !text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn a_tunnel_speaks_with_the_origin_directly_and_through_a_proxy() {
    let raw = Raw::serve(None, |_| reply("220 ready\n", After::Close)).await;
    let (port, heads) = connect_proxy(raw.at.port(), None).await;
    for proxy in [None, Some(format!("http://ada:l%40vender@127.0.0.1:{port}"))] {
        let mut config = config();
        config.upstream.https_proxy = proxy;
        let origins = origins(config);
        let origin = ask(&raw.url("http", "/")).target.origin().clone();
        let mut io = origins.tunnel(&origin, INSIDE).await.unwrap();
        io.write_all(b"EHLO\r\n\r\n").await.unwrap();
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "220 ready\r\n");
    }
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_reload_takes_the_new_proxy_and_a_bad_one_leaves_the_old() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let origins = origins(config());
    let url = raw.url("http", "/");
    get(&origins, ask(&url)).await.unwrap();
    let mut next = config();
    next.upstream.http_proxy = Some("nonsense:/".into());
    origins.config.set(next.clone());
    assert!(origins.reload().is_err());
    get(&origins, ask(&url)).await.unwrap();
    next.upstream.http_proxy = Some(format!("http://127.0.0.1:{}", raw.at.port()));
    origins.config.set(next);
    origins.reload().unwrap();
    get(&origins, ask(&url)).await.unwrap();
    let heads = raw.heads();
    assert!(heads[1].starts_with("GET / ") && heads[2].starts_with("GET http://"), "{heads:?}");
}
