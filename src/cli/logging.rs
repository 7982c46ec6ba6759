//! Log lines go to standard error, as text for people or as JSON.

use std::fmt::{Debug, Write as _};
use std::io::{self, IsTerminal as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::config::load::{Loaded, Source};
use crate::config::{Log, LogFormat};
use crate::target::shown::{self, OneLine};

/// Libraries whose debug levels print every frame, or header fields with credentials in them.
const TALKATIVE: [&str; 7] =
    ["h2", "hyper", "hyper_util", "rustls", "sled", "tokio_rustls", "tokio_util"];

/// This library warns about every packet of a keyring that it skips. The keyring module logs key problems itself.
const GRUMBLING: (&str, &str) = ("pgp", "error");

/// Starts logging as the configuration says. `quiet` is the filter for commands whose own output matters more; it
/// applies unless the operator set `log.filter`.
pub(super) fn start(loaded: &Loaded, quiet: Option<&str>) {
    let log = &loaded.config.log;
    let set = loaded
        .sources
        .iter()
        .any(|(key, source)| key.name == "log.filter" && *source != Source::Default);
    let text = match quiet {
        Some(quiet) if !set => quiet,
        Some(_) | None => &log.filter,
    };
    let builder = fmt().with_env_filter(filter(text)).with_writer(io::stderr);
    // If a program that embeds larder has installed its own subscriber, that one stays.
    let _started = match log {
        Log { format: LogFormat::Json, filter: _ } => {
            builder.with_writer(|| Printable(io::stderr())).json().flatten_event(true).try_init()
        }
        Log { format: LogFormat::Human, filter: _ } => {
            let ansi = io::stderr().is_terminal();
            builder.compact().with_ansi(ansi).fmt_fields(Fields).try_init()
        }
    };
}

/// Writes the fields of an event as the compact format does, but escapes control characters: the fields contain
/// names, URLs and messages that clients and origins chose, and a line break in one of them would forge a log line. A
/// request's line begins with its method and URL.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, to: Writer<'writer>, fields: R) -> std::fmt::Result {
        let mut line = Fielded { to, begun: false, is_request: false, written: Ok(()) };
        fields.record(&mut line);
        line.written
    }
}

/// The fields of one event.
struct Fielded<'writer> {
    to: Writer<'writer>,
    begun: bool,
    /// Whether the event has a `method` field; only a request's event has.
    is_request: bool,
    written: std::fmt::Result,
}

impl Fielded<'_> {
    fn write(&mut self, name: &str, value: &dyn Debug) -> std::fmt::Result {
        if std::mem::replace(&mut self.begun, true) {
            self.to.write_char(' ')?;
        }
        let is_bare = name == "message" || self.is_request && matches!(name, "method" | "url");
        if !is_bare {
            write!(self.to, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
        }
        write!(OneLine(&mut self.to), "{value:?}")
    }
}

impl Visit for Fielded<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let name = field.name();
        self.is_request |= name == "method";
        // The URL contains the host, and the outcome contains the cause: the separate fields are for programs.
        let is_for_programs = self.is_request && matches!(name, "host" | "cause");
        if name.starts_with("log.") || is_for_programs || self.written.is_err() {
            return;
        }
        self.written = self.write(name, value);
    }
}

/// Writes JSON lines in which every string is printable.
struct Printable<W>(W);

impl<W: io::Write> io::Write for Printable<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self(to) = self;
        // The subscriber writes one event at a time; only the line break at its end is outside a string.
        match std::str::from_utf8(line) {
            Ok(text) => {
                let (text, end) = text.strip_suffix('\n').map_or((text, ""), |text| (text, "\n"));
                to.write_all(shown::json(text).as_bytes())?;
                to.write_all(end.as_bytes())?;
            }
            Err(_) => to.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn filter(text: &str) -> EnvFilter {
    // The configuration checked the filter with the same parser, so the lossy parse drops nothing.
    let talkative = TALKATIVE.map(|library| (library, "warn"));
    let mut filter = EnvFilter::builder().parse_lossy(text);
    for (library, level) in talkative.into_iter().chain([GRUMBLING]) {
        if !text.contains(&format!("{library}=")) {
            filter = [format!("{library}={level}").parse()]
                .into_iter()
                .flatten()
                .fold(filter, EnvFilter::add_directive);
        }
    }
    filter
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Issue 10 row 10: text that a client or origin chose cannot forge a log line.
    #[test]
    fn a_strangers_text_stays_on_its_line() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = |written: &Arc<Mutex<Vec<u8>>>| {
            let written = Arc::clone(written);
            move || Printable(Sink(Arc::clone(&written)))
        };
        let log = || {
            let error = "no\r\nINFO forged \u{1b}[31m\u{202e}\u{85}\u{2028}";
            tracing::info!(%error, name = error, "GET {error}");
            tracing::info!(number = 7, "the \"next\" \\ line");
        };
        let human = fmt().with_writer(sink(&written)).compact().with_ansi(false).fmt_fields(Fields);
        tracing::subscriber::with_default(human.finish(), log);
        let json = fmt().with_writer(sink(&written)).json().flatten_event(true);
        tracing::subscriber::with_default(json.finish(), log);
        let text = String::from_utf8(std::mem::take(&mut *written.lock().unwrap())).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines.iter().all(|line| line.chars().all(shown::is_printable)), "{text:?}");
        assert!(lines[0].contains("GET no\\r\\nINFO forged \\u{1b}[31m\\u{202e}"), "{text}");
        assert!(lines[1].contains("the \"next\" \\ line number=7"), "{text}");
        for line in &lines[2..4] {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    /// Issue 13 row 1: people read method and URL first, programs read fields.
    #[test]
    fn a_request_is_a_line_for_people_and_fields_for_programs() {
        use crate::outcome::Outcome;
        use crate::outcome::cause::Cause;
        use crate::outcome::ended::Ended;
        use crate::outcome::metrics::Metrics;

        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = |written: &Arc<Mutex<Vec<u8>>>| {
            let written = Arc::clone(written);
            move || Printable(Sink(Arc::clone(&written)))
        };
        let log = || {
            let url = "https://files.example.org/a.whl";
            let outcome = Outcome::Failed(Cause::Dns);
            Ended {
                host: "files.example.org",
                why: Some("its host cannot be resolved"),
                status: 502,
                ..Ended::new(outcome, "192.0.2.1".parse().unwrap(), "GET", url)
            }
            .write_down(&Metrics::default());
            tracing::info!(url, "not a request");
        };
        let human = fmt().with_writer(sink(&written)).compact().with_ansi(false).fmt_fields(Fields);
        tracing::subscriber::with_default(human.finish(), log);
        let json = fmt().with_writer(sink(&written)).json().flatten_event(true);
        tracing::subscriber::with_default(json.finish(), log);
        let text = String::from_utf8(std::mem::take(&mut *written.lock().unwrap())).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let line = "GET https://files.example.org/a.whl outcome=failed(dns) proof=- status=502 ";
        assert!(lines[0].contains(line) && lines[0].contains("client=192.0.2.1"), "{text}");
        assert!(lines[0].contains("why=its host cannot be resolved"), "{text}");
        assert!(lines[1].contains("not a request url="), "the control: {text}");
        let request: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
        for (field, value) in [
            ("method", "GET"),
            ("url", "https://files.example.org/a.whl"),
            ("host", "files.example.org"),
            ("outcome", "failed(dns)"),
            ("cause", "dns"),
            ("why", "its host cannot be resolved"),
        ] {
            assert_eq!(request[field], value, "{request}");
        }
        assert_eq!(request["status"], 502);
        assert_eq!(request.get("message"), None, "{request}");
    }

    #[derive(Clone)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn talkative_libraries_are_quiet_unless_they_are_named() {
        let filter_of = |text| filter(text).to_string();
        assert!(filter_of("trace").contains("h2=warn"));
        assert!(filter_of("info").contains("pgp=error"));
        assert!(
            filter_of("info,h2=trace").contains("h2=trace")
                && !filter_of("info,h2=trace").contains("h2=warn")
        );
    }
}
