//! Where log lines go: to standard error, for people or as JSON.

use std::fmt::{Debug, Write as _};
use std::io::{self, IsTerminal as _};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{self, Writer};

use crate::config::load::{Loaded, Source};
use crate::config::{Log, LogFormat};
use crate::target::shown::{self, OneLine};

/// Libraries whose most talkative levels print header fields, credentials among them, or every frame.
const TALKATIVE: [&str; 7] =
    ["h2", "hyper", "hyper_util", "rustls", "sled", "tokio_rustls", "tokio_util"];

/// It warns of every packet in a keyring that it leaves out; what is wrong with a key, the keyring itself says.
const GRUMBLING: (&str, &str) = ("pgp", "error");

/// Starts logging as the configuration says; `quiet` is the filter of commands whose own output matters more, unless
/// the operator set one.
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
    // Somebody else's subscriber, in a program that holds larder, is kept.
    let _started = match log {
        Log { format: LogFormat::Json, filter: _ } => {
            builder.with_writer(|| Printable(io::stderr())).json().flatten_event(true).try_init()
        }
        Log { format: LogFormat::Human, filter: _ } => {
            let ansi = io::stderr().is_terminal();
            builder.compact().with_ansi(ansi).fmt_fields(fields()).try_init()
        }
    };
}

/// Writes the fields of an event as the compact form does, each on its line: names, URLs and words of strangers stand in
/// them, and a line end in one of them would forge the next line.
fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    let write = |to: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let name = field.name();
        if name.starts_with("log.") {
            return Ok(());
        }
        if name != "message" {
            write!(to, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
        }
        write!(OneLine(to), "{value:?}")
    };
    format::debug_fn(write).delimited(" ")
}

/// Writes lines of JSON with everything in their strings printable.
struct Printable<W>(W);

impl<W: io::Write> io::Write for Printable<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self(to) = self;
        // The subscriber writes one event at a time; its last line end is none of a string's.
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
    // The key was read with the same parser; what is left out here was never let in.
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

    /// Issue 10 row 10: who writes the fields of a request writes no line of the log.
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
        let human =
            fmt().with_writer(sink(&written)).compact().with_ansi(false).fmt_fields(fields());
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
