//! What is answered under a probe's name ([`witness`](crate::outcome::witness)): something that each client can read, and
//! nothing of anybody's. Nothing is asked upstream for it, and nothing kept.
//!
//! The request's identity was checked before, as any other's: inside a tunnel its name is the tunnel's (promise P1).

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::outcome::witness::{Sight, Witness};
use crate::reply::{self, Body};
use crate::target::{Scheme, Target};

/// Notes the request, and answers it.
pub(super) fn answer<B>(
    request: &Request<B>,
    target: &Target,
    witness: &Witness,
) -> Response<Body> {
    let origin = target.origin();
    let sight = if origin.scheme == Scheme::Https { Sight::Request } else { Sight::Plain };
    witness.saw(&origin.host, sight);
    let path = request.uri().path();
    let (kind, body) = content(path);
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    let body = if *request.method() == Method::GET { body } else { "" };
    let mut response = Response::new(reply::full(Bytes::from_static(body.as_bytes())));
    if !read {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// By what the doctor's clients ask for: a client that is satisfied does not try again.
fn content(path: &str) -> (&'static str, &'static str) {
    match path {
        "/simple/larder-probe/" => ("text/html", "<!doctype html><title>larder</title>"),
        "/index/config.json" => ("application/json", "{\"dl\":\"https://probe.larder.internal/\"}"),
        "/-/ping" | "/larder-probe" => ("application/json", "{}"),
        // A repository without references, by git's plain protocol.
        "/probe.git/info/refs" => ("text/plain; charset=utf-8", ""),
        _ => ("text/plain; charset=utf-8", "larder answers this name itself; see larder doctor\n"),
    }
}
