//! Hop-by-hop header fields, which must not cross a proxy (RFC 9110 §7.6.1).
//!
//! Requests and answers are written anew on the next connection. Fields that frame or control one connection must not
//! cross, because that enables request smuggling. Fields that `Connection` names are removed as well. Callers
//! deliberately keep two: an upgrade that both sides support, and `TE: trailers`, without which gRPC has no status.

use hyper::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};

use super::error::Fault;

/// Removed in both directions, besides the fields that `Connection` names. `http2-settings` belongs to an upgrade to
/// h2c, which some clients offer and larder does not support.
const CONNECTION_BOUND: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Removes the hop-by-hop fields from `headers`.
pub(super) fn strip(headers: &mut HeaderMap) {
    // There may be several `Connection` fields, each a list: `Connection: close, X-Foo`.
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in named.iter().chain(&CONNECTION_BOUND) {
        headers.remove(name);
    }
}

/// Removes from an answer the hop-by-hop fields, and `Alt-Svc`, which would lead the client past larder to another
/// address or to HTTP/3.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    // Beside a transfer coding, `Content-Length` is void (RFC 9112 §6.3), but would frame the answer on the next
    // connection.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip(headers);
    headers.remove(ALT_SVC);
}

/// Checks that the only transfer coding is `chunked`, or none. hyper decodes no other coding, so the body would still
/// be encoded although the header no longer says so.
pub(super) fn check_framing(headers: &HeaderMap) -> Result<(), Fault> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Fault::Framing("it has a transfer coding other than `chunked`".into())),
    }
}

/// The protocols that `headers` ask to upgrade to, without h2c. `None` if there are none, or if `Connection` does not
/// list `upgrade`.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let protocols: Vec<&str> = tokens(headers, &UPGRADE)
        .filter(|protocol| !protocol.eq_ignore_ascii_case("h2c"))
        .collect();
    HeaderValue::from_str(&protocols.join(", ")).ok().filter(|value| !value.is_empty())
}

/// Whether the sender accepts trailers.
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &TE).any(|coding| {
        let name = coding.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("trailers")
    })
}

/// Adds larder to `Via` (RFC 9110 §7.6.3).
pub(super) fn add_via(headers: &mut HeaderMap, protocol: &str, pseudonym: &str) {
    if let Ok(value) = HeaderValue::try_from(format!("{protocol} {pseudonym}")) {
        headers.append(VIA, value);
    }
}

/// Whether `Via` names `pseudonym`.
pub(super) fn went_through(headers: &HeaderMap, pseudonym: &str) -> bool {
    tokens(headers, &VIA).any(|hop| hop.split_ascii_whitespace().nth(1) == Some(pseudonym))
}

/// The members of a list field. Values that are not text are skipped.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .fold(HeaderMap::new(), |mut all, (name, value): (_, HeaderValue)| {
                all.append(name, value);
                all
            })
    }

    #[test]
    fn what_connection_names_ends_with_it() {
        let mut all = headers(&[
            ("connection", "close, X-One"),
            ("connection", "x-two,,"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic s3cret"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("trailer", "grpc-status"),
        ]);
        strip(&mut all);
        let left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-three", "trailer"]);
    }

    #[test]
    fn a_length_beside_a_transfer_coding_is_void() {
        let mut both = headers(&[("content-length", "5"), ("transfer-encoding", "chunked")]);
        strip_answer(&mut both);
        assert!(both.is_empty());
        let mut one = headers(&[("content-length", "5"), ("alt-svc", "h3=\":443\"")]);
        strip_answer(&mut one);
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn only_chunked_is_undone() {
        for bad in ["gzip, chunked", "gzip", "identity", "chunked, chunked", "x"] {
            assert!(check_framing(&headers(&[("transfer-encoding", bad)])).is_err(), "{bad}");
        }
        assert!(check_framing(&headers(&[("transfer-encoding", "Chunked")])).is_ok());
        assert!(check_framing(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn h2_in_clear_text_is_no_upgrade() {
        let asked = |connection, upgrade_to| {
            upgrade(&headers(&[("connection", connection), ("upgrade", upgrade_to)]))
        };
        assert_eq!(asked("Upgrade, HTTP2-Settings", "h2c"), None);
        assert_eq!(asked("keep-alive, Upgrade", "websocket").unwrap(), "websocket");
        assert_eq!(asked("upgrade", "h2c, websocket").unwrap(), "websocket");
        assert_eq!(asked("close", "websocket"), None);
    }

    #[test]
    fn a_loop_is_known_by_its_pseudonym_among_other_hops() {
        let mut all = headers(&[("via", "1.0 fred, 1.1 larder-0 (x)")]);
        assert!(went_through(&all, "larder-0"));
        assert!(!went_through(&all, "larder-00"));
        add_via(&mut all, "2", "larder-1");
        assert!(went_through(&all, "larder-1"));
    }
}
