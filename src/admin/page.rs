//! larder's own pages: the answers to requests in origin form, which are sent to larder itself and not through it.
//!
//! | path | what |
//! | --- | --- |
//! | `/` | what larder is and how to use it; HTML for browsers, `406 Usage Information` for apt |
//! | `/setup` | the script that sets a client up |
//! | `/ca.crt` | the CA's certificate, PEM; during a rotation both, the one that signs first |
//! | `/-/health` | 200 while the process answers |
//! | `/-/ready` | 200 while larder accepts requests and queries (`larder keys`), 503 before that and while it drains |
//! | `/-/probe/TOKEN` | what arrived under a probe's name; only its doctor knows the token; JSON |
//! | `/-/stats`, `/-/recent`, `/-/ls?matching=`, `/-/why?url=` | the answers for `larder stats --proxy` and other queries; JSON lines |
//! | `/-/job/TOKEN` | the counters of a job; only its `exec` knows the token; JSON |
//! | `/-/metrics` | counters and gauges, as `OpenMetrics` text |
//!
//! Programs that look for a cache for apt (auto-apt-proxy) request `/` on port 3142 by apt's own client, and recognise
//! it by `406` with `Usage Information`, which is how apt-cacher-ng answers. To everybody else that is an error.
//!
//! These pages change nothing and contain no secret from clients that may use larder. Pages with counters and queries
//! are refused to a browser that requests them under a host name that is not larder's (`accept::mirror`): the request
//! may come from a hostile site's script.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::queries::QueryPlace;
use super::question::Question;
use super::setup::Script;
use super::usage::{Usage, is_apt, wants_html};
use super::{Admin, Running, remote};
use crate::limits::Reading;
use crate::outcome::Outcome;
use crate::reply::Body;

/// As in `OpenMetrics` 1.0, which Prometheus requests and parses.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const JSON_LINES: &str = "application/x-ndjson";
/// The prefix of a probe's token. The page shows what arrived under the probe's name, for `larder doctor`.
const PROBE: &str = "/-/probe/";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// A type that browsers offer to import and that `curl -O` accepts (RFC 8555 §9.1 defines none for a single
/// certificate).
const PEM: &str = "application/x-pem-file";

/// Answers a request in origin form.
pub async fn page<B>(admin: &Arc<Admin>, request: Request<B>, peer: SocketAddr) -> Response<Body> {
    let path = request.uri().path();
    tracing::debug!(%peer, path, "own page");
    let Some(running) = &admin.running else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "larder does not serve\n");
    };
    running.metrics.ended(Outcome::Own, None, "");
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused =
            text(StatusCode::METHOD_NOT_ALLOWED, "larder's own pages accept GET and HEAD only\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/" => {
            let usage = Usage::new(running, &request);
            let mut shown = if wants_html(request.headers()) {
                answer(StatusCode::OK, HTML, usage.html())
            } else {
                text(StatusCode::OK, usage.text())
            };
            if is_apt(request.headers()) {
                *shown.status_mut() = StatusCode::NOT_ACCEPTABLE;
                shown.extensions_mut().insert(ReasonPhrase::from_static(b"Usage Information"));
            }
            let varies = HeaderValue::from_static("accept, user-agent");
            shown.headers_mut().insert(header::VARY, varies);
            shown
        }
        // As text, so that a browser shows the script before anyone runs it.
        "/setup" => text(StatusCode::OK, Script::of(running).text),
        "/ca.crt" => {
            let mut anchors = running.authority.all();
            // The CA in use comes first: a client that trusts only the first certificate must trust that one.
            anchors.sort_by_key(|anchor| !anchor.mints);
            let pem: String = anchors.into_iter().map(|anchor| anchor.pem).collect();
            let mut certificate = answer(StatusCode::OK, PEM, pem);
            let name = HeaderValue::from_static("attachment; filename=\"larder-ca.crt\"");
            certificate.headers_mut().insert(header::CONTENT_DISPOSITION, name);
            certificate
        }
        "/-/health" => text(StatusCode::OK, "ok\n"),
        "/-/ready" if *running.ready.borrow() => text(StatusCode::OK, "ready\n"),
        "/-/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
        "/-/metrics" => metrics(admin).await,
        _ if let Some(question) = remote::question(path, request.uri().query()) => {
            asked(admin, running, question, peer).await
        }
        _ if path.starts_with(PROBE) => {
            let token = path.strip_prefix(PROBE).unwrap_or_default();
            let seen = serde_json::to_string(&running.metrics.witness.seen(token));
            answer(StatusCode::OK, JSON, seen.unwrap_or_default())
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "larder is a proxy: set HTTPS_PROXY and HTTP_PROXY to this address. GET / explains how.\n",
        ),
    }
}

/// An answer, and its place among the answers that larder holds in memory at a time.
struct HeldAnswer {
    lines: Vec<u8>,
    _place: QueryPlace,
}

impl AsRef<[u8]> for HeldAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.lines
    }
}

/// Answers a question that every client may ask.
async fn asked(
    admin: &Arc<Admin>,
    running: &Running,
    question: Question,
    peer: SocketAddr,
) -> Response<Body> {
    // A job's token is a secret, so its holder may ask even if queries are off.
    let open = admin.config.get().clients.queries || matches!(question, Question::Tally { .. });
    if !open {
        let line = "this larder answers no queries over HTTP (clients.queries)\n";
        return text(StatusCode::FORBIDDEN, line);
    }
    if matches!(question, Question::Tally { .. }) {
        // A tally is small and found at once, so that no job has to wait for the queries of other clients.
        return answer(StatusCode::OK, JSON_LINES, admin.answer_everybody(&question));
    }
    let Some(place) = running.queries.take(peer.ip()) else {
        let line = "too many queries at a time; try again in a moment\n";
        return text(StatusCode::SERVICE_UNAVAILABLE, line);
    };
    let admin = Arc::clone(admin);
    let answering = tokio::task::spawn_blocking(move || {
        let lines = admin.answer_everybody(&question);
        HeldAnswer { lines, _place: place }
    });
    match answering.await {
        // The place is freed together with the answer's bytes. So the answers that no client reads take a bounded amount of
        // memory, however many are requested.
        Ok(placed) => answer(StatusCode::OK, JSON_LINES, Bytes::from_owner(placed)),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be answered\n"),
    }
}

async fn metrics(admin: &Arc<Admin>) -> Response<Body> {
    let admin = Arc::clone(admin);
    // The store's numbers may have to be read from disk.
    match tokio::task::spawn_blocking(move || exposition(&admin)).await {
        Ok(Ok(body)) => answer(StatusCode::OK, OPEN_METRICS, body),
        Ok(Err(_)) | Err(_) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n")
        }
    }
}

/// All metrics as one text. Blocking.
fn exposition(admin: &Admin) -> Result<String, std::fmt::Error> {
    let mut out = format!(
        "# HELP larder_build_info Version of larder.\n# TYPE larder_build_info gauge\n\
         larder_build_info{{version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    let usage = admin.store.usage();
    let mut gauges = vec![
        ("store_entries", "Stored answers", usage.entries),
        ("store_blobs", "Stored bodies", usage.blobs),
        ("store_bytes", "Bytes of stored bodies", usage.bytes),
        ("store_spool_bytes", "Bytes of unfinished bodies", usage.spool_bytes),
        ("store_claims_bytes", "Bytes of claims", usage.claims_bytes),
        ("store_overhead_bytes", "Bytes of the ledger and of directories", usage.overhead_bytes),
        ("store_indexes", "Index documents whose claims are current", usage.indexes),
        ("store_max_bytes", "Limit on the bytes of the store (store.max_size)", usage.cap),
    ];
    let counters = [
        ("store_evicted", "Stored bodies evicted to make room for others", usage.evicted),
        (
            "store_oversize",
            "Bodies not kept because they exceed store.max_body_share",
            usage.oversize,
        ),
        ("store_damaged", "Stored bodies that were found damaged", usage.damaged),
        ("store_ledger_failures", "Failures of the ledger", usage.ledger_failures),
    ];
    if let Some(running) = &admin.running {
        running.metrics.render(&mut out)?;
        // Seconds, to be compared with Prometheus's time().
        let seconds = u64::try_from(running.authority.not_after().as_millis() / 1000).unwrap_or(0);
        let left = running.authority.not_after().since(admin.clock.now()).as_secs();
        gauges.push(("ca_expires_in_seconds", "Seconds until the CA's certificate expires", left));
        gauges.push((
            "ca_not_after_timestamp_seconds",
            "When the CA's certificate expires",
            seconds,
        ));
    }
    for (name, help, value) in gauges {
        writeln!(
            out,
            "# HELP larder_{name} {help}.\n# TYPE larder_{name} gauge\nlarder_{name} {value}"
        )?;
    }
    for (name, help, value) in counters {
        writeln!(
            out,
            "# HELP larder_{name} {help}.\n# TYPE larder_{name} counter\nlarder_{name}_total {value}"
        )?;
    }
    if let Some(running) = &admin.running {
        limits(&running.metrics.limits(), &mut out)?;
    }
    out.push_str("# EOF\n");
    Ok(out)
}

/// The state of the limits. The label is the limit's name, never a client.
fn limits(readings: &[Reading], out: &mut String) -> std::fmt::Result {
    let mut family = |name: &str, suffix: &str, kind: &str, help: &str, of: fn(&Reading) -> u64| {
        writeln!(out, "# HELP larder_{name} {help}.\n# TYPE larder_{name} {kind}")?;
        for reading in readings {
            let value = of(reading);
            writeln!(out, "larder_{name}{suffix}{{limit=\"{}\"}} {value}", reading.name)?;
        }
        Ok(())
    };
    let in_use =
        "Current use of a limit; for limits per address, by the address with the highest use";
    family("limit_in_use", "", "gauge", in_use, |reading| reading.in_use)?;
    family("limit_max", "", "gauge", "Maximum of a limit", |reading| reading.most)?;
    let refused = "Refusals because a limit was reached";
    family("limit_refused", "_total", "counter", refused, |reading| reading.refused)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // If a hostile page makes a browser load this, the browser must not interpret it.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let nothing = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    headers.insert(header::CONTENT_SECURITY_POLICY, nothing);
    response
}

#[cfg(test)]
mod tests {
    use super::super::queries::AT_ONCE_EACH;
    use super::*;
    use crate::authority::Authority;
    use crate::clock::Clock;
    use crate::config::{Config, Live};
    use crate::keyring::{Keyring, Trusted};
    use crate::outcome::metrics::Metrics;
    use crate::store::Store;

    fn admin() -> (tempfile::TempDir, Arc<Admin>) {
        let data = tempfile::tempdir().unwrap();
        let config = Live::new(Config { data: data.path().to_owned(), ..Config::default() });
        let clock = Clock::system();
        let authority = Authority::open(&super::super::state_dir(data.path()), &clock).unwrap();
        let keys = Trusted::new(Keyring::new());
        let running = Running::new(authority, Arc::new(Metrics::default()), keys, &clock);
        let store = Store::open(config.clone(), clock.clone()).unwrap();
        (data, Arc::new(Admin { config, clock, store, running: Some(running) }))
    }

    async fn get(admin: &Arc<Admin>, method: &str, path: &str) -> (Response<()>, String) {
        get_as(admin, method, path, "curl/8.0").await
    }

    async fn get_as(
        admin: &Arc<Admin>,
        method: &str,
        path: &str,
        agent: &str,
    ) -> (Response<()>, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "cache.example.org:3142")
            .header("user-agent", agent)
            .body(())
            .unwrap();
        let (head, body) = page(admin, request, "127.0.0.1:1".parse().unwrap()).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(head, ()), String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn programs_that_look_for_a_cache_for_apt_find_larder() {
        let (_data, admin) = admin();
        let (head, _) = get(&admin, "GET", "/").await;
        assert_eq!(head.status(), StatusCode::OK, "the control");
        let (head, body) = get_as(&admin, "GET", "/", "Debian APT-HTTP/1.3 (2.6.1)").await;
        assert_eq!(head.status(), StatusCode::NOT_ACCEPTABLE);
        let reason = head.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), b"Usage Information");
        assert!(body.contains("http://cache.example.org:3142/setup"), "{body}");
        assert!(body.contains(&admin.running.as_ref().unwrap().authority.fingerprint_sha256()));
    }

    #[tokio::test]
    async fn the_script_is_the_same_for_all_who_ask_and_the_page_names_its_hash() {
        let (_data, admin) = admin();
        let (head, script) = get(&admin, "GET", "/setup").await;
        assert_eq!(head.headers()[header::CONTENT_TYPE], TEXT);
        assert!(script.starts_with("#!/bin/sh\n") && script.ends_with("\nmain \"$@\"\n"));
        assert!(!script.contains("cache.example.org"), "the script holds what the client said");
        let (_, page) = get(&admin, "GET", "/").await;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, script.as_bytes());
        let sha256: String = crate::digest::hex(digest.as_ref());
        assert!(page.contains(&sha256), "{page}");
    }

    #[tokio::test]
    async fn the_ca_is_handed_out_as_pem() {
        let (_data, admin) = admin();
        let (head, body) = get(&admin, "GET", "/ca.crt").await;
        assert_eq!(head.headers()[header::CONTENT_TYPE], PEM);
        assert!(body.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(!body.contains("KEY"));
    }

    #[tokio::test]
    async fn ready_is_not_the_same_as_healthy() {
        let (_data, admin) = admin();
        let running = admin.running.as_ref().unwrap();
        assert_eq!(get(&admin, "GET", "/-/health").await.0.status(), StatusCode::OK);
        assert_eq!(
            get(&admin, "GET", "/-/ready").await.0.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        running.listens(vec!["127.0.0.1:3142".parse().unwrap()]);
        assert_eq!(
            get(&admin, "GET", "/-/ready").await.0.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "it listens, and does not know what is stored"
        );
        running.is_ready();
        assert_eq!(get(&admin, "GET", "/-/ready").await.0.status(), StatusCode::OK);
        running.is_draining();
        assert_eq!(
            get(&admin, "GET", "/-/ready").await.0.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        running.is_ready();
        assert_eq!(
            get(&admin, "GET", "/-/ready").await.0.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "it had begun to end before it had read everything"
        );
    }

    /// An answer has up to 32 MiB, and a client may never read it.
    #[tokio::test]
    async fn a_long_answer_keeps_its_place_until_its_bytes_are_gone() {
        const ONE: &str = "192.0.2.1:1";
        let (_data, admin) = admin();
        let ask = |from: &str| {
            let request = Request::get("/-/stats").body(()).unwrap();
            page(&admin, request, from.parse().unwrap())
        };
        let mut answers = Vec::new();
        for _ in 0..AT_ONCE_EACH {
            answers.push(ask(ONE).await);
        }
        assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK), "the control");
        assert_eq!(ask(ONE).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("192.0.2.2:1").await.status(), StatusCode::OK, "another client");
        let bytes = answers.remove(0).into_body().collect().await.unwrap().to_bytes();
        assert_eq!(ask(ONE).await.status(), StatusCode::SERVICE_UNAVAILABLE, "on their way");
        drop(bytes);
        assert_eq!(ask(ONE).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_end_as_openmetrics_demands() {
        let (_data, admin) = admin();
        let (head, body) = get(&admin, "GET", "/-/metrics").await;
        assert_eq!(head.headers()[header::CONTENT_TYPE], OPEN_METRICS);
        assert!(body.ends_with("\n# EOF\n") && body.matches("# EOF").count() == 1);
        assert!(body.contains("larder_requests_total{outcome=\"own\""), "{body}");
        let version = env!("CARGO_PKG_VERSION");
        assert!(
            body.contains(&format!("larder_build_info{{version=\"{version}\"}} 1\n")),
            "{body}"
        );
        for kind in ["mismatch", "changed", "malformed", "signature", "full"] {
            let line = format!("\nlarder_alarms_total{{kind=\"{kind}\"}} 0\n");
            assert!(body.contains(&line), "an alarm is zero before the first: {body}");
        }
        assert!(body.contains("\n# TYPE larder_store_max_bytes gauge\n"), "{body}");
        assert!(body.contains("\nlarder_store_evicted_total 0\n"), "{body}");
    }

    #[tokio::test]
    async fn own_pages_are_only_read() {
        let (_data, admin) = admin();
        let (head, _) = get(&admin, "POST", "/").await;
        assert_eq!(
            (head.status(), &head.headers()[header::ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &HeaderValue::from_static("GET, HEAD"))
        );
        assert_eq!(get(&admin, "GET", "/etc/passwd").await.0.status(), StatusCode::NOT_FOUND);
    }
}
