//! The page on `/`: what larder is, the fingerprint to compare, and commands for each situation; plain text, or HTML
//! for browsers.
//!
//! The commands are meant to be pasted into a shell, and contain larder's name as the client used it. [`own_name`]
//! lets only a host and a port through.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use hyper::header;
use hyper::{HeaderMap, Request};

use super::Running;
use super::setup::Script;

/// A situation and the commands for it.
struct Situation {
    title: &'static str,
    about: &'static str,
    lines: Vec<String>,
}

/// The page for clients that reach larder at `name`.
#[derive(Debug)]
pub(super) struct Usage {
    name: String,
    fingerprint: String,
    script: Script,
}

const WHAT: &str = "One cache for everything a build downloads. Clients keep their unmodified https:// repositories, use \
                    this address as proxy and trust the CA below.";
const COMPARE: &str =
    "The CA's SHA-256 fingerprint; `larder ca show` on larder's own machine prints the same:";
const MORE: &str = "Also here: /setup /ca.crt /-/health /-/ready /-/metrics";

/// Of the root, `color-scheme` also applies to the canvas and the scroll bars. Long lines wrap: a command that is cut off
/// at the edge cannot be read before it is run.
const STYLE: &str = ":root{color-scheme:light dark}\
    body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.7rem;border:1px solid #8888;border-radius:.3rem}\
    h2{font-size:1.1rem;margin-top:2rem}button{float:right;margin:.5rem}";
/// Copies the commands below a button. The clipboard's newer interface exists only on pages that came over TLS.
const COPY: &str = "document.addEventListener('click',e=>{const b=e.target;if(b.tagName!='BUTTON')return;\
    getSelection().selectAllChildren(b.nextElementSibling);\
    b.textContent=document.execCommand('copy')?'Copied':'Press Ctrl+C'})";

impl Usage {
    /// The page for the sender of `request`.
    pub(super) fn new<B>(running: &Running, request: &Request<B>) -> Self {
        Self {
            name: own_name(request),
            fingerprint: running.authority.fingerprint_sha256(),
            script: Script::of(running),
        }
    }

    fn situations(&self) -> [Situation; 6] {
        let (name, sha256) = (&self.name, self.script.sha256());
        [
            Situation {
                title: "A machine, or a CI runner",
                about: "Trusts the CA and sets the proxy for all; the command checks the script's SHA-256. --help explains more.",
                lines: vec![self.script.line(name, "sudo ")],
            },
            Situation {
                title: "A CI job (as root in its container)",
                about: "The variables are for the shell of the job. Without curl: wget -qO \"$f\" URL.",
                lines: vec![self.script.line(name, ""), ". /etc/profile.d/larder.sh".to_owned()],
            },
            Situation {
                title: "An image",
                about: "In the Containerfile, before the first download; and with --build-arg HTTPS_PROXY and HTTP_PROXY for \
                        what reads only variables.",
                lines: vec![
                    format!("ADD --checksum=sha256:{sha256} http://{name}/setup /tmp/larder-setup"),
                    format!("RUN sh /tmp/larder-setup http://{name}"),
                ],
            },
            Situation {
                title: "One command, on larder's own machine",
                about: "Changes nothing but that command's environment.",
                lines: vec!["larder exec -- COMMAND".to_owned()],
            },
            Situation {
                title: "A client that cannot use a proxy",
                about: "The address with its scheme as a path, instead of the URL in the client's settings; no CA is needed.",
                lines: vec![format!("http://{name}/https/HOST/PATH")],
            },
            Situation {
                title: "Undo",
                about: "Restores every file that it changed.",
                lines: vec!["sudo sh /etc/larder/setup --remove".to_owned()],
            },
        ]
    }

    /// The plain text page, for curl.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "larder {}\n\n{WHAT}\n\n{COMPARE}\n{}\n",
            env!("CARGO_PKG_VERSION"),
            self.fingerprint
        );
        for Situation { title, about, lines } in self.situations() {
            // Writing to a String cannot fail.
            let _infallible =
                write!(text, "\n{title}\n  {about}\n\n    {}\n", lines.join("\n    "));
        }
        let _infallible = writeln!(text, "\n{MORE}");
        text
    }

    /// The HTML page, for browsers: one document that loads nothing.
    pub(super) fn html(&self) -> String {
        let mut body = String::new();
        for Situation { title, about, lines } in self.situations() {
            let _infallible = write!(
                body,
                "<h2>{}</h2>\n<p>{}</p>\n<button>Copy</button>\n<pre>{}</pre>\n",
                escaped(title),
                escaped(about),
                escaped(&lines.join("\n"))
            );
        }
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>larder</title>\n\
             <style>{STYLE}</style>\n\
             <h1>larder {}</h1>\n<p>{}</p>\n<p>{}</p>\n<pre>{}</pre>\n{body}<p>{}</p>\n<script>{COPY}</script>\n</html>\n",
            env!("CARGO_PKG_VERSION"),
            escaped(WHAT),
            escaped(COMPARE),
            escaped(&self.fingerprint),
            escaped(MORE),
        )
    }
}

/// Whether the client is a browser. Other programs accept `*/*`, or send no `Accept`.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}

/// Whether the client is apt's, or a program that asks by means of it. Every release of it says so, with the
/// distribution's name before it.
pub(super) fn is_apt(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.is_some_and(|agent| agent.contains("APT-HTTP/"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The host and port under which the client reaches this larder.
fn own_name<B>(request: &Request<B>) -> String {
    request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .and_then(host_and_port)
        .unwrap_or_else(|| format!("THIS-MACHINE:{}", crate::config::PORT))
}

/// The host and port of a `Host` field, whose port may be missing. `None` if it is anything but a name or an address:
/// the result becomes part of shell commands.
fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (format!("[{address}]"), port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    let named = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
    let is_address = host.starts_with('[');
    // The longest possible name has 253 bytes (RFC 1035 §2.3.4, without the last dot).
    let is_name = host.len() <= 253
        && host.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && host.bytes().all(named);
    // Without a port, http's default.
    let port: u16 = match port {
        None => 80,
        Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    (is_address || is_name).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_host_header_is_not_shown_back() {
        let named =
            |host: &str| own_name(&Request::builder().header("host", host).body(()).unwrap());
        for (host, shown) in [
            ("[::1]:3142", "[::1]:3142"),
            ("[::1]", "[::1]:80"),
            ("cache.example.org:3142", "cache.example.org:3142"),
            ("cache_1", "cache_1:80"),
            ("192.0.2.1:3142", "192.0.2.1:3142"),
        ] {
            assert_eq!(named(host), shown);
        }
        for hostile in [
            "$(reboot)",
            "`reboot`",
            "a b",
            "a;b",
            "a&b",
            "a|b",
            "a'b",
            "a\"b",
            "a\\b",
            "a\tb",
            "a>b",
            "<script>",
            "",
            "-rf",
            ".",
            "a:b",
            "a:1:2",
            "a:-1",
            "a:+1",
            "a:99999",
            "a:1;b",
            "[::1]x",
            "[::1",
            "[$(x)]",
            "[::1]:1;x",
            "a/b",
            "a@b",
            "a#b",
            "a?b",
            "*",
            "a:",
        ] {
            assert_eq!(named(hostile), "THIS-MACHINE:3142", "{hostile}");
        }
        let long = "a".repeat(300);
        assert_eq!(named(&long), "THIS-MACHINE:3142");
        let bytes = header::HeaderValue::from_bytes(b"a\xffb").unwrap();
        let request = Request::builder().header("host", bytes).body(()).unwrap();
        assert_eq!(own_name(&request), "THIS-MACHINE:3142");
    }

    #[test]
    fn only_who_names_html_gets_it() {
        let wants = |accept: &str| {
            wants_html(Request::builder().header("accept", accept).body(()).unwrap().headers())
        };
        assert!(wants("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"));
        assert!(!wants("*/*") && !wants("text/*"));
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn apt_is_known_in_every_distribution() {
        let is = |agent: &str| {
            is_apt(Request::builder().header("user-agent", agent).body(()).unwrap().headers())
        };
        for apt in [
            "Debian APT-HTTP/1.3 (2.6.1)",
            "Ubuntu APT-HTTP/1.3 (2.4.13)",
            "Debian APT-HTTP/1.3 (1.0.9.8.6)",
        ] {
            assert!(is(apt), "{apt}");
        }
        for other in ["Mozilla/5.0 (X11)", "curl/7.88.1", "Captain/1.0", ""] {
            assert!(!is(other), "{other}");
        }
        assert!(!is_apt(&HeaderMap::new()));
    }

    #[test]
    fn html_is_escaped() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
