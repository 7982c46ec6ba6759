//! The head of a request, checked before hyper reads it.
//!
//! No I/O: bytes in, judgement out. hyper's parser accepts less than servers do, and answers what it does not accept with an
//! empty body. So a head that servers accept is rewritten for hyper without a change of meaning ([`crate::target::raw`]), and one
//! that is refused is refused here, with a reason. A request that two parsers could understand differently is not repaired but
//! refused (promise P1).

use hyper::{StatusCode, Uri};

use crate::stream::framing::Framing;
use crate::target::shown::clipped;
use crate::target::{MAX_URL, raw};

/// The most fields of one head. Servers accept from a hundred to a thousand.
pub(super) const MAX_FIELDS: usize = 512;

/// The longest method, in bytes.
const MAX_METHOD: usize = 32;

/// A head that is refused: the status and the reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

/// A head that is accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// The request line for hyper, if it differs from the one that arrived.
    pub(super) line: Option<String>,
    /// The body, if there is one.
    pub(super) body: Option<Framing>,
    /// Whether the connection may carry another protocol after this request.
    pub(super) may_switch: bool,
}

/// Whether these bytes can be the start of a head. If they cannot, larder does not wait for more.
pub(super) fn may_be_one(start: &[u8]) -> bool {
    let word = start.split(|byte| *byte == b' ').next().unwrap_or_default();
    word.len() <= MAX_METHOD && word.iter().all(|byte| is_token(*byte))
}

/// Judges a complete head, up to its empty line.
pub(super) fn judge(head: &[u8]) -> Result<Judged, Bad> {
    let mut lines =
        head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let (line, connects, is_11) = request_line(first)?;
    let mut fields = Fields::default();
    let mut count = 0_usize;
    for field in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        if count > MAX_FIELDS {
            return Err(Bad {
                status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                why: format!("the request has more than {MAX_FIELDS} header fields"),
            });
        }
        fields.take(field)?;
    }
    let body = fields.body(is_11)?.filter(|_| !connects);
    Ok(Judged { line, body, may_switch: connects || is_11 && fields.upgrades })
}

/// The request line for hyper, if it differs; whether it is a CONNECT; whether it is HTTP/1.1.
fn request_line(line: &[u8]) -> Result<(Option<String>, bool, bool), Bad> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(malformed(
            "the first line is no request of HTTP/1: METHOD URL HTTP/1.1, with one space between; larder's port takes HTTP, and \
             https by CONNECT",
        ));
    };
    if method.is_empty() || !may_be_one(method) {
        return Err(malformed("the request's method is no word"));
    }
    let is_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ if version.starts_with(b"HTTP/") && !version.contains(&b' ') => {
            return Err(Bad {
                status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                why: "larder speaks HTTP/1.1, HTTP/1.0, and inside TLS also HTTP/2".to_owned(),
            });
        }
        _ => {
            return Err(malformed(
                "the request's URL has a space in it, or is followed by something else than the version; send a space as %20",
            ));
        }
    };
    let connects = method == b"CONNECT";
    if connects || target == b"*" {
        let good = std::str::from_utf8(target).is_ok_and(|target| target.parse::<Uri>().is_ok());
        let bad = || malformed("CONNECT takes host:port and nothing else");
        return good.then_some((None, connects, is_11)).ok_or_else(bad);
    }
    let (front, tail) = parted(target);
    if tail.len() > MAX_URL {
        return Err(Bad {
            status: StatusCode::URI_TOO_LONG,
            why: format!("the request's URL is longer than {} KiB", MAX_URL / 1024),
        });
    }
    let plain = tail.iter().all(|byte| raw::is_plain(*byte));
    if plain && target.first() == Some(&b'/') {
        return Ok((None, false, is_11));
    }
    // The URL is not shown, because it may contain a password.
    let unfit = || {
        malformed(
            "the request's URL is none that larder can read: it takes http://host/path, https://host/path or /path",
        )
    };
    let front = std::str::from_utf8(front).map_err(|_| unfit())?;
    let url = format!("{front}{}", raw::masked(tail));
    url.parse::<Uri>().map_err(|_| unfit())?;
    if plain {
        return Ok((None, false, is_11));
    }
    let method = String::from_utf8_lossy(method);
    let version = if is_11 { "HTTP/1.1" } else { "HTTP/1.0" };
    Ok((Some(format!("{method} {url} {version}\r\n")), false, is_11))
}

/// Splits a target into scheme and authority, if it has them, and the rest.
fn parted(target: &[u8]) -> (&[u8], &[u8]) {
    if target.first() == Some(&b'/') {
        return (&[], target);
    }
    let after = target.windows(3).position(|three| three == b"://").map_or(0, |at| at + 3);
    let rest = target.get(after..).unwrap_or_default();
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    target.split_at_checked(after + end).unwrap_or((target, &[]))
}

/// The fields that determine where the request ends.
#[derive(Debug, Default)]
struct Fields {
    length: Option<u64>,
    /// Whether the last transfer coding is `chunked`; `None` if there is no coding.
    chunked: Option<bool>,
    upgrades: bool,
}

impl Fields {
    fn take(&mut self, field: &[u8]) -> Result<(), Bad> {
        let shown = || clipped(&String::from_utf8_lossy(field), 60).into_owned();
        if field.starts_with(b" ") || field.starts_with(b"\t") {
            return Err(malformed(
                "a header field goes on in a second line, which HTTP/1.1 does not allow (RFC 9112 §5.2)",
            ));
        }
        let Some(colon) = field.iter().position(|byte| *byte == b':') else {
            // Nothing of the line is shown, because it may be a secret.
            return Err(malformed("a header line has no colon"));
        };
        let (name, value) = field.split_at_checked(colon).unwrap_or((field, &[]));
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            let shown = shown();
            let shown = shown.split(':').next().unwrap_or_default();
            return Err(malformed(&format!("\"{shown}\" is no name of a header field")));
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if value.iter().any(|byte| *byte == 0x7f || *byte < b' ' && *byte != b'\t') {
            return Err(malformed(&format!(
                "the header field {} has a control character in it",
                String::from_utf8_lossy(name)
            )));
        }
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                // larder never switches to HTTP/2 in clear text (h2c).
                self.upgrades |= !value.eq_ignore_ascii_case(b"h2c");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = std::str::from_utf8(value)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok());
                // The two greatest values have a special meaning for hyper.
                let length = length.filter(|length| *length < u64::MAX - 1);
                let Some(length) = length.filter(|new| self.length.is_none_or(|old| old == *new))
                else {
                    return Err(malformed(
                        "Content-Length is not one number, so that nobody can tell where the request ends",
                    ));
                };
                self.length = Some(length);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
                self.chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            }
            _ => {}
        }
        Ok(())
    }

    /// The framing of the body (RFC 9112 §6.3). If both fields are present, hyper ignores the length and closes the connection
    /// after the request.
    fn body(&self, is_11: bool) -> Result<Option<Framing>, Bad> {
        match self.chunked {
            Some(true) if is_11 => Ok(Some(Framing::CHUNKED)),
            Some(_) => Err(malformed(
                "Transfer-Encoding is not `chunked` at its end, or the request is HTTP/1.0: nobody can tell where it ends",
            )),
            None => Ok(self.length.filter(|length| *length > 0).map(Framing::Length)),
        }
    }
}

fn malformed(why: &str) -> Bad {
    Bad { status: StatusCode::BAD_REQUEST, why: why.to_owned() }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(target: &[u8]) -> Result<Option<String>, u16> {
        let head = [b"GET ", target, b" HTTP/1.1\r\nHost: example.org\r\n\r\n"].concat();
        judge(&head).map(|judged| judged.line).map_err(|bad| {
            assert!(!bad.why.is_empty() && bad.why.len() < 300, "{}", bad.why);
            bad.status.as_u16()
        })
    }

    #[test]
    fn what_hyper_takes_stays_as_it_came_and_odd_bytes_are_masked() {
        for target in [
            &b"/"[..],
            b"/a%zz%?b=%",
            b"/a\\b|c^d{e}f[g]",
            b"http://example.org",
            b"https://example.org:8443/a?b",
            b"http://user:pw@example.org/a",
            b"*",
        ] {
            assert_eq!(line_of(target), Ok(None), "{}", target.escape_ascii());
        }
        for target in
            ["/caf\u{e9}", "/a<b>`\"", "http://example.org/\u{e9}?\"", "http://example.org?<"]
        {
            let line = line_of(target.as_bytes()).unwrap().unwrap();
            let line = raw::unmasked(&line);
            assert_eq!(line, format!("GET {target} HTTP/1.1\r\n").as_bytes());
        }
        assert!(line_of(b"/\xff").unwrap().is_some());
    }

    #[test]
    fn what_is_refused_is_refused_in_words() {
        for (target, status) in [
            (&b"/a b"[..], 400),
            (b"", 400),
            (b"?a", 400),
            (b"http://", 400),
            (b"http://exam<ple.org/", 400),
            (b"http:///a", 400),
            (b"ht<p://a/", 400),
            (&b"/".repeat(MAX_URL + 1), 414),
        ] {
            assert_eq!(line_of(target), Err(status), "{}", target.escape_ascii());
        }
        for (head, status) in [
            ("\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1 x\r\n\r\n", 400),
            ("G<T / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nBad Name: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nnothing\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ] {
            let bad = judge(head.as_bytes()).unwrap_err();
            assert_eq!(bad.status.as_u16(), status, "{head}: {}", bad.why);
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(judge(many.as_bytes()).unwrap_err().status, 431);
    }

    #[test]
    fn the_end_of_a_request_is_where_hyper_sees_it() {
        let of =
            |fields: &str| judge(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap();
        assert_eq!(of("A: b\r\n"), Judged { line: None, body: None, may_switch: false });
        assert_eq!(of("content-length: 5\r\nContent-Length: 5\r\n").body, Some(Framing::Length(5)));
        assert_eq!(of("Content-Length: 0\r\n").body, None);
        for chunked in [
            "Transfer-Encoding: Chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(of(chunked).body, Some(Framing::CHUNKED), "{chunked}");
        }
        assert!(of("Upgrade: websocket\r\n").may_switch && !of("Upgrade: h2c\r\n").may_switch);
        let connect = judge(b"CONNECT a:443 HTTP/1.1\n\n").unwrap();
        assert!(connect.may_switch && connect.line.is_none());
    }
}
