//! Where log lines go: to standard error, for people or as JSON.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::load::{Loaded, Source};
use crate::config::{Log, LogFormat};

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
        Log { format: LogFormat::Json, filter: _ } => builder.json().flatten_event(true).try_init(),
        Log { format: LogFormat::Human, filter: _ } => {
            builder.compact().with_ansi(io::stderr().is_terminal()).try_init()
        }
    };
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
    use super::*;

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
