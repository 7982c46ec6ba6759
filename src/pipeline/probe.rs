//! The answer to a request for a probe's host name ([`witness`](crate::outcome::witness)): content that each client can parse,
//! without data of any user. larder asks no origin for it, and keeps nothing.
//!
//! The request's identity was checked before, as that of any other request: inside a tunnel its host is the tunnel's (promise
//! P1).

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

/// The content for the paths that the doctor's clients request: a client that gets a valid answer does not retry.
fn content(path: &str) -> (&'static str, &'static str) {
    match path {
        "/simple/larder-probe/" => ("text/html", "<!doctype html><title>larder</title>"),
        "/index/config.json" => ("application/json", "{\"dl\":\"https://probe.larder.internal/\"}"),
        "/-/ping" | "/larder-probe" => ("application/json", "{}"),
        // An empty repository, in git's dumb HTTP protocol.
        "/probe.git/info/refs" => ("text/plain; charset=utf-8", ""),
        _ => ("text/plain; charset=utf-8", "larder answers this name itself; see larder doctor\n"),
    }
}
