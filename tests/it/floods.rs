//! Issue 10, attack `disk`: an origin that endlessly sends data that is no part of an answer is refused with a reason, over
//! HTTP/1 and HTTP/2, for fills and for passes; other clients are not affected.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::world::verbatim::Verbatim;
use crate::world::{Ca, Got, World};

const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
const BODY: &str = "what was asked for\n";

/// The answers to `url` as a fill and as a pass.
async fn both_ways(world: &World, url: &str) -> [Got; 2] {
    let fill = world.client.get(url).send().await;
    let pass = world.client.get(url).header("x-unheard-of", "1").send().await;
    [fill, pass]
}

fn assert_refused(got: &Got) {
    assert_eq!(got.status, 502, "{got:?}");
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert!(
        text.contains("interim answers") && text.contains("upstream.interim_answers"),
        "{text}"
    );
}

async fn refused(world: &World) -> f64 {
    world.proxy.metric("larder_limit_refused_total", "\"interim_answers\"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_without_end_are_refused_in_words() {
    let world = World::new().await;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
    let origin = Verbatim::start(Some(&world.ca), move |path| {
        let interim = match path {
            b"/many" => INTERIM.repeat(20_000),
            b"/behind-empty-lines" => format!("\r\n{INTERIM}").repeat(600),
            b"/long" => INTERIM.replace("/a", &"a".repeat(30_000)).repeat(6),
            // The controls: as many as real servers send, and more.
            b"/one" => INTERIM.to_owned(),
            b"/some" => INTERIM.repeat(500),
            _ => String::new(),
        };
        [interim.as_bytes(), answer.as_bytes()].concat()
    })
    .await;
    for path in ["/many", "/behind-empty-lines", "/long"] {
        let before = refused(&world).await;
        for got in both_ways(&world, &origin.url(path)).await {
            assert_refused(&got);
        }
        assert!(refused(&world).await >= before + 2.0, "{path}");
    }
    for path in ["/one", "/some", "/none"] {
        for got in both_ways(&world, &origin.url(path)).await {
            assert_eq!(got.complete().body, BODY, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_chunk_ends_within_a_line() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), move |path| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let body = match path {
            b"/zeros" => "0".repeat(100_000),
            b"/blanks" => format!("5{}", " ".repeat(100_000)),
            b"/padded" => "00000005    \r\nhello\r\n".repeat(1000),
            _ => String::new(),
        };
        format!("{head}{body}0\r\n\r\n").into_bytes()
    })
    .await;
    for path in ["/zeros", "/blanks"] {
        for got in both_ways(&world, &origin.url(path)).await {
            assert!(!(got.status == 200 && got.is_complete()), "{path}: {got:?}");
        }
    }
    for got in both_ways(&world, &origin.url("/padded")).await {
        assert_eq!(got.complete().body.len(), 5005, "the control");
    }
}

/// An HTTP/2 origin that answers the first stream of each connection with this many interim heads, and then the answer.
struct Flood {
    authority: String,
    task: JoinHandle<()>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

impl Flood {
    async fn start(ca: &Ca, heads: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let acceptor = TlsAcceptor::from(ca.server("127.0.0.1", &["h2"]));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut preface = [0; 24];
                    stream.read_exact(&mut preface).await.unwrap();
                    loop {
                        let mut start = [0; 9];
                        if stream.read_exact(&mut start).await.is_err() {
                            return;
                        }
                        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
                        let mut payload = vec![0; length as usize];
                        stream.read_exact(&mut payload).await.unwrap();
                        let stream_of =
                            u32::from_be_bytes([start[5], start[6], start[7], start[8]]);
                        let answer = match start[3] {
                            4 if start[4] & 1 == 0 => {
                                [frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat()
                            }
                            // `:status: 103`, then `:status: 200` (RFC 7541 §6.1 and §6.2.2).
                            1 => {
                                let interim = frame(1, 4, stream_of, b"\x08\x03103");
                                let last = [
                                    frame(1, 4, stream_of, b"\x88"),
                                    frame(0, 1, stream_of, BODY.as_bytes()),
                                ];
                                [interim.repeat(heads), last.concat()].concat()
                            }
                            _ => continue,
                        };
                        // A client that was refused may have left.
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { authority, task }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_over_http2_are_refused_too() {
    let world = World::new().await;
    for (heads, well) in [(0, true), (1, true), (500, true), (600, false), (100_000, false)] {
        let origin = Flood::start(&world.ca, heads).await;
        let url = format!("https://{}/file", origin.authority);
        let fill = world.client.get(&url).send().await;
        let pass = world.client.get(&url).header("x-unheard-of", "1").h2().send().await;
        for got in [fill, pass] {
            if well {
                assert_eq!(got.complete().body, BODY, "the control: {heads}");
            } else {
                assert_refused(&got);
            }
        }
    }
}
