//! Queries a larder on another machine, over HTTP as any client can. Blocking.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use clap::Args;

use super::{Invocation, env};
use crate::admin::{Answer, Question, remote};
use crate::clock::Stopwatch;
use crate::target::shown::one_line;

/// The timeout of each network operation of a query.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest time that a query takes. A program that sends a byte now and then would otherwise keep the end of a CI job waiting.
const LONGEST: Duration = Duration::from_mins(2);

/// The longest answer that is read: any program may listen at the address.
const MAX_ANSWER: usize = 64 << 20;

/// Which larder to query.
#[derive(Args, Debug, Default)]
pub(super) struct Elsewhere {
    /// Asks the larder at this address (default: `LARDER_PROXY`), which shows public entries and events only
    #[arg(long, value_name = "http://HOST:PORT", value_parser = env::proxy)]
    pub(super) proxy: Option<String>,
}

impl Elsewhere {
    /// The larder that the flag or the variable names.
    pub(super) fn named(&self, invocation: &Invocation) -> anyhow::Result<Option<String>> {
        if self.proxy.is_some() {
            return Ok(self.proxy.clone());
        }
        let named = invocation.environment.get("LARDER_PROXY").filter(|text| !text.is_empty());
        let read = |text| env::proxy(text).map_err(|why| anyhow::anyhow!("LARDER_PROXY: {why}"));
        // A data directory that was set explicitly wins over the variable.
        named.filter(|_| !invocation.data_is_given()).map(read).transpose()
    }
}

/// Asks `question` of the larder at `proxy`.
pub(super) fn ask(proxy: &str, question: &Question) -> anyhow::Result<Vec<Answer>> {
    let Some(path) = remote::path(question) else {
        anyhow::bail!("only the machine on which larder runs can ask this");
    };
    let lines = get(proxy, &path, MAX_ANSWER).map_err(|why| anyhow::anyhow!(why))?;
    let unknown = |error| anyhow::anyhow!("the larder at {proxy} is of another version ({error})");
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| read(line).map_err(unknown)).collect()
}

/// Reads one answer. A hostile program at the larder's address may put line breaks and control characters into any text, also
/// into the names of outcomes and proofs, to forge a line in a terminal or in a CI's log. So each text is put on one line here,
/// before any command prints it.
fn read(line: &[u8]) -> serde_json::Result<Answer> {
    serde_json::from_slice(&on_one_line(line)?)
}

/// The same JSON with each string on one line. It is not parsed as a whole: of an answer that is full of small values, the tree
/// would take a gigabyte.
fn on_one_line(json: &[u8]) -> serde_json::Result<Vec<u8>> {
    let (mut safe, mut rest) = (Vec::with_capacity(json.len()), json);
    while let Some((before, string)) =
        rest.iter().position(|byte| *byte == b'"').and_then(|start| rest.split_at_checked(start))
    {
        let (string, after) =
            string.split_at_checked(end_of_string(string)).unwrap_or((string, &[]));
        let text: String = serde_json::from_slice(string)?;
        safe.extend_from_slice(before);
        serde_json::to_writer(&mut safe, &*one_line(&text))?;
        rest = after;
    }
    safe.extend_from_slice(rest);
    Ok(safe)
}

/// Where the JSON string ends that `json` begins with.
fn end_of_string(json: &[u8]) -> usize {
    let mut escaped = false;
    let end = json.iter().skip(1).position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => *byte == b'"',
    });
    end.map_or(json.len(), |end| end + 2)
}

/// Gets one of larder's own pages, of at most `most` bytes.
pub(super) fn get(proxy: &str, path: &str, most: usize) -> Result<Vec<u8>, String> {
    let authority = proxy.trim_start_matches("http://");
    let failed = |error: std::io::Error| format!("no larder answers at {proxy}: {error}");
    let addresses = authority.to_socket_addrs().map_err(failed)?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                return converse(stream, authority, path, most, LONGEST)
                    .map_err(failed)
                    .and_then(|answer| body(&answer));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn converse(
    mut stream: TcpStream,
    authority: &str,
    path: &str,
    most: usize,
    longest: Duration,
) -> std::io::Result<Vec<u8>> {
    let stopwatch = Stopwatch::start();
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the body ends with the connection, and is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let (mut answer, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    while answer.len() < most {
        let left = longest.saturating_sub(stopwatch.elapsed());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left.min(PATIENCE)))?;
        let read = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read.min(most - answer.len()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
    Ok(answer)
}

/// The body of a 200 answer.
fn body(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let parts = end.and_then(|end| answer.split_at_checked(end.saturating_add(4)));
    let line =
        String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default());
    match parts {
        Some((_, body)) if line.split(' ').nth(1) == Some("200") => Ok(body.to_vec()),
        Some((_, body)) if line.contains(" 403 ") || line.contains(" 503 ") => {
            Err(one_line(String::from_utf8_lossy(body).trim()).into_owned())
        }
        _ => Err(format!(
            "the server there is no larder that answers queries: {:.80}",
            one_line(&line)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hostile program may answer at the address of a remote larder.
    #[test]
    fn what_answers_elsewhere_forges_no_line() {
        let line = br#"{"tally":{"totals":{"outcomes":{"hit":18446744073709551615,"pass":1},"proofs":{"x\n::error::\u001b[2J":1},
            "to_client":0,"from_origin":0,"from_store":0,"distrusted":18446744073709551615,"left":1},
            "refused":[{"url":"a\nb","cause":"c\rd","why":"e"}],"failed":[]}}"#;
        let Answer::Tally(tally) = read(line).unwrap() else { panic!("that was a tally") };
        assert_eq!(tally.totals.proofs.keys().next().unwrap(), "x\\n::error::\\u{1b}[2J");
        assert_eq!(tally.refused[0].url, "a\\nb");
        assert_eq!(tally.refused[0].cause, "c\\rd");
        // Its large numbers do not make the command fail either.
        assert_eq!(tally.totals.requests(), u64::MAX);
        assert!(read(b"{\"tally\":3}").is_err(), "the control");
    }

    /// Promise P7: an answer takes no more memory than its text.
    #[test]
    fn what_answers_elsewhere_is_not_built_up_in_memory() {
        let long = format!(r#"{{"a\nb":[{}{{"c\"\\":"d\u001b"}},1.50,null]}}"#, "0,".repeat(1000));
        let safe = on_one_line(long.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(safe).unwrap(),
            long.replacen(r"a\nb", r"a\\nb", 1).replacen(r"d\u001b", r"d\\u{1b}", 1)
        );
        for broken in [r#"{"a"#, r#"{"a\"#, r#"{"a\x":1}"#] {
            assert!(on_one_line(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn an_answer_that_trickles_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let get = |longest, most| {
            let stream = TcpStream::connect(address).unwrap();
            converse(stream, "example.org", "/", most, longest)
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                while stream.as_ref().unwrap().write_all(b".").is_ok() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let error = get(Duration::from_millis(50), usize::MAX).unwrap_err();
        assert!(
            matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock),
            "{error}"
        );
        // The control: what comes in time is taken, up to the limit.
        assert_eq!(get(LONGEST, 5).unwrap(), b".....");
    }

    #[test]
    fn only_the_body_of_a_200_is_taken() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nx\r\n\r\ny").unwrap(), b"x\r\n\r\ny");
        assert!(body(b"HTTP/1.1 404 Not Found\r\n\r\nx").unwrap_err().contains("404"));
        assert!(body(b"SSH-2.0-x\r\n").unwrap_err().contains("SSH"));
        assert!(body(b"").is_err());
    }
}
