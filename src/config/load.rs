//! Merges file, environment and flags into one [`Config`], and records where each value came from.
//!
//! `larder.toml` < environment < flags. Below all three are the variables of other programs (`HTTPS_PROXY`), and
//! below those the defaults. Every problem is reported, not only the first, with its source, its key and what was
//! expected. Nothing here opens a file or resolves a name; `environment` does.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::environment::Environment;
use super::keys::{KEYS, Key, Wrong, key};
use super::suggest::nearest;

/// The sources of a configuration, in descending precedence: flags, environment, file.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Keys that flags set, and their values.
    pub flags: &'a [Flag],
    /// The environment.
    pub environment: &'a Environment,
    /// The configuration file's path and text.
    pub file: Option<(&'a Path, &'a str)>,
}

/// A key that a flag sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as it was written: `--listen`.
    pub flag: String,
    /// The key's name.
    pub key: String,
    /// Its value or values.
    pub values: Vec<String>,
}

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Where they came from, in the order of [`KEYS`].
    pub sources: Vec<(&'static Key, Source)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The key is not set.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A variable of larder's or of other programs.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A configuration that cannot be used: one line for each problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadConfig(pub Vec<String>);

impl std::error::Error for BadConfig {}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Merges the sources.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, BadConfig> {
    let mut loading = Loading::over_defaults(sources.environment);
    loading.others(sources.environment);
    if let Some((path, text)) = sources.file {
        loading.file(path, text);
    }
    loading.environment(sources.environment);
    loading.flags(sources.flags);
    if loading.config.listen.is_empty() {
        loading.problems.push("listen: at least one address is needed".to_owned());
    }
    if !loading.problems.is_empty() {
        return Err(BadConfig(loading.problems));
    }
    Ok(Loaded { config: loading.config, sources: loading.sources })
}

/// A configuration that is being loaded.
struct Loading {
    config: Config,
    sources: Vec<(&'static Key, Source)>,
    problems: Vec<String>,
}

/// Variables with larder's prefix that are not keys: `LARDER_CONFIG` names the file; `LARDER_PROXY` another larder
/// and `LARDER_CA_SHA256` its CA, for the commands that take `--proxy`. The others are set by larder's own tests when
/// they run the program.
const OTHER_VARIABLES: [&str; 5] =
    ["LARDER_CONFIG", "LARDER_PROXY", "LARDER_CA_SHA256", "LARDER_FUZZ_SECONDS", "LARDER_KILLS"];

/// Names the point at which a debug build kills itself, for the tests of promise P8.
const FAILPOINT: &str = "LARDER_FAILPOINT";

impl Loading {
    fn over_defaults(environment: &Environment) -> Self {
        Self {
            config: Config { data: environment.default_data(), ..Config::default() },
            sources: KEYS.iter().map(|key| (key, Source::Default)).collect(),
            problems: Vec::new(),
        }
    }

    /// Applies the variables of other programs. A spelling that comes first in a key's list takes precedence.
    fn others(&mut self, environment: &Environment) {
        for key in KEYS {
            let found = key.others.iter().find_map(|name| Some((*name, environment.get(name)?)));
            if let Some((name, value)) = found {
                self.set(key, &[value.to_owned()], Source::Environment(name.to_owned()));
            }
        }
    }

    fn file(&mut self, path: &Path, text: &str) {
        match DeTable::parse(text) {
            Ok(table) => self.table(&File { path, text }, "", table.get_ref()),
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(text, &span));
                self.problems.push(format!("{}:{line}: {}", path.display(), error.message()));
            }
        }
    }

    /// Reads a table; `prefix` is its path, with a trailing dot.
    fn table(&mut self, file: &File<'_>, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let full = format!("{prefix}{}", name.get_ref());
            let at =
                Source::File { path: file.path.to_owned(), line: line_of(file.text, &name.span()) };
            let below = format!("{full}.");
            if let DeValue::Table(inner) = value.get_ref()
                && KEYS.iter().any(|key| key.name.starts_with(&below))
            {
                self.table(file, &below, inner);
            } else if let Some(key) = key(&full) {
                match texts(value) {
                    Some(values) => self.set(key, &values, at),
                    None => self.problems.push(format!("{at}: {full}: expected {}", key.expected)),
                }
            } else {
                let hint = hint(&full, KEYS.iter().map(|key| key.name));
                self.problems.push(format!("{at}: there is no key {full}{hint}"));
            }
        }
    }

    fn environment(&mut self, environment: &Environment) {
        for (name, value) in environment.with_prefix("LARDER_") {
            if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
                let values = if key.list { split(value) } else { vec![value.to_owned()] };
                self.set(key, &values, Source::Environment(name.to_owned()));
            } else if !is_for_tests_or_the_file(name) && !is_of_a_cluster(name) {
                let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let hint = hint(name, variables.iter().map(String::as_str));
                self.problems.push(format!("{name}: larder reads no such variable{hint}"));
            }
        }
    }

    fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            if let Some(key) = key(&flag.key) {
                self.set(key, &flag.values, Source::Flag(flag.flag.clone()));
            } else {
                let hint = hint(&flag.key, KEYS.iter().map(|key| key.name));
                self.problems.push(format!("{}: there is no key {}{hint}", flag.flag, flag.key));
            }
        }
    }

    fn set(&mut self, key: &'static Key, values: &[String], source: Source) {
        if let Err(Wrong(found)) = key.set(&mut self.config, values) {
            // A value that seems wrong in a proxy may contain a password.
            let found = if key.secret { "the value".to_owned() } else { format!("{found:?}") };
            let problem = format!("{source}: {}: {found} is not {}", key.name, key.expected);
            self.problems.push(problem);
            return;
        }
        if let Some((_, from)) = self.sources.iter_mut().find(|(other, _)| other.name == key.name) {
            *from = source;
        }
    }
}

/// Whether Kubernetes set the variable: a Service called `larder` adds its address to every container of its
/// namespace, in variables that begin like larder's. No key may begin so.
fn is_of_a_cluster(name: &str) -> bool {
    ["LARDER_SERVICE_HOST", "LARDER_SERVICE_PORT", "LARDER_PORT"].iter().any(|link| {
        name.strip_prefix(link).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    })
}

/// Whether a variable with larder's prefix is known although it is not a key.
fn is_for_tests_or_the_file(name: &str) -> bool {
    OTHER_VARIABLES.contains(&name) || cfg!(debug_assertions) && name == FAILPOINT
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

/// A TOML value as texts: one, or those of an array. `None` for types that no key accepts.
fn texts(value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
    match value.get_ref() {
        DeValue::String(text) => Some(vec![text.to_string()]),
        DeValue::Integer(number) => Some(vec![number.to_string()]),
        DeValue::Boolean(switch) => Some(vec![switch.to_string()]),
        DeValue::Array(array) => {
            let nested: Option<Vec<_>> = array.iter().map(texts).collect();
            Some(nested?.into_iter().flatten().collect())
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

/// The elements of a list in a variable or a flag.
pub fn split(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

fn hint<'a>(wrong: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    nearest(wrong, names).map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Loaded, BadConfig> {
        let flags: Vec<Flag> = flags
            .iter()
            .map(|(key, value)| Flag {
                flag: format!("--{key}"),
                key: (*key).into(),
                values: split(value),
            })
            .collect();
        load(&Sources {
            flags: &flags,
            environment: &environment.iter().copied().collect(),
            file: Some((Path::new("larder.toml"), file)),
        })
    }

    fn problems(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
        loaded(file, environment, &[]).unwrap_err().0
    }

    fn source(loaded: &Loaded, name: &str) -> String {
        let (_, source) = loaded.sources.iter().find(|(key, _)| key.name == name).unwrap();
        source.to_string()
    }

    #[test]
    fn flags_stand_above_the_environment_and_that_above_the_file() {
        let file =
            "\n[store]\nmax_size = \"1GiB\"\nmin_free = \"2GiB\"\n[log]\nfilter = \"warn\"\n";
        let environment = [("LARDER_STORE_MAX_SIZE", "3GiB"), ("LARDER_STORE_MIN_FREE", "4GiB")];
        let loaded = loaded(file, &environment, &[("store.max_size", "5GiB")]).unwrap();
        assert_eq!(
            (loaded.config.store.max_size, source(&loaded, "store.max_size")),
            (5 << 30, "--store.max_size".into())
        );
        assert_eq!(
            (loaded.config.store.min_free, source(&loaded, "store.min_free")),
            (4 << 30, "LARDER_STORE_MIN_FREE".into())
        );
        assert_eq!(
            (loaded.config.log.filter.as_str(), source(&loaded, "log.filter")),
            ("warn", "larder.toml:6".into())
        );
        assert_eq!(source(&loaded, "log.format"), "default");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line_and_the_nearest_name() {
        let found = problems("data = \"/d\"\n\n[store]\nmaxsize = \"1GiB\"\n", &[]);
        assert_eq!(
            found,
            ["larder.toml:4: there is no key store.maxsize; did you mean store.max_size?"]
        );
        let found = problems("[colours]\nbackground = \"red\"\n", &[]);
        assert_eq!(found, ["larder.toml:1: there is no key colours"]);
    }

    #[test]
    fn a_wrong_value_is_an_error_that_says_what_was_expected() {
        let found = problems(
            "[clients]\nidle_timeout = 30\nmax_connections = \"many\"\n",
            &[("LARDER_LISTEN", "here")],
        );
        assert_eq!(found.len(), 3, "every problem is reported: {found:?}");
        assert_eq!(
            found[0],
            "larder.toml:2: clients.idle_timeout: \"30\" is not a span of time such as \"30s\", \"5m\", \"12h\" or \"7d\""
        );
        assert!(
            found[1].starts_with(
                "larder.toml:3: clients.max_connections: \"many\" is not a whole number"
            )
        );
        assert!(found[2].starts_with("LARDER_LISTEN: listen: \"here\" is not an address"));
    }

    #[test]
    fn a_table_or_a_list_in_the_place_of_a_value_is_an_error() {
        assert!(problems("[data]\nx = 1\n", &[])[0].starts_with("larder.toml:1: data: expected"));
        assert!(
            problems("data = [\"a\", \"b\"]\n", &[])[0]
                .starts_with("larder.toml:1: data: \"a list of 2\" is not")
        );
        assert!(problems("listen = []\n", &[])[0].starts_with("listen: at least one"));
        assert!(problems("data = \n", &[])[0].starts_with("larder.toml:1: "));
    }

    #[test]
    fn lists_in_the_environment_have_commas() {
        let environment = [
            ("LARDER_ALLOW_NETS", "10.0.0.0/8, 192.0.2.1"),
            ("LARDER_UPSTREAM_CA", "/a.pem"),
            ("LARDER_HTTP_HARMLESS_HEADERS", "X-Build-*,x-job"),
            ("LARDER_LISTEN", "127.0.0.1:1,:2"),
            ("LARDER_HOSTS_REFUSE", ""),
            ("LARDER_DATA", "/d"),
        ];
        let config = loaded("allow_nets = [\"127.0.0.0/8\"]", &environment, &[]).unwrap().config;
        let nets: Vec<String> = config.allow_nets.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.0.0/8", "192.0.2.1/32"]);
        assert_eq!(config.upstream_ca, [PathBuf::from("/a.pem")]);
        assert_eq!(config.http.harmless_headers, ["x-build-*", "x-job"]);
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.data, Path::new("/d"));
    }

    #[test]
    fn an_unknown_variable_of_larders_is_an_error_but_the_tests_own_are_not() {
        let found = problems("", &[("LARDER_ALLOWNETS", "x")]);
        assert_eq!(
            found,
            ["LARDER_ALLOWNETS: larder reads no such variable; did you mean LARDER_ALLOW_NETS?"]
        );
        let cluster = [
            ("LARDER_SERVICE_HOST", "10.0.0.1"),
            ("LARDER_SERVICE_PORT_PROXY", "3142"),
            ("LARDER_PORT", "tcp://10.0.0.1:3142"),
            ("LARDER_PORT_3142_TCP_ADDR", "10.0.0.1"),
        ];
        assert!(loaded("", &cluster, &[]).is_ok());
        assert_eq!(problems("", &[("LARDER_PORTS", "1")]).len(), 1, "the control");
        let own = [("LARDER_FUZZ_SECONDS", "5"), ("LARDER_CONFIG", "x"), ("OTHER", "1")];
        assert!(loaded("", &own, &[]).is_ok());
        // A release build has no failpoints.
        let failpoint = loaded("", &[("LARDER_FAILPOINT", "commit")], &[]);
        assert_eq!(failpoint.is_ok(), cfg!(debug_assertions));
    }

    #[test]
    fn the_variables_that_programs_share_stand_below_the_file() {
        let shared =
            [("HTTPS_PROXY", "http://u:p@one.example.org"), ("NO_PROXY", "a"), ("no_proxy", "b")];
        let alone = loaded("", &shared, &[]).unwrap();
        assert_eq!(
            alone.config.upstream.https_proxy.as_deref(),
            Some("http://u:p@one.example.org")
        );
        assert_eq!(
            alone.config.upstream.no_proxy.as_deref(),
            Some("b"),
            "curl reads the small letters first"
        );
        assert_eq!(source(&alone, "upstream.https_proxy"), "HTTPS_PROXY");
        let over = loaded("[upstream]\nhttps_proxy = \"\"\n", &shared, &[]).unwrap();
        assert_eq!(over.config.upstream.https_proxy, None, "nothing is a value too");
    }

    #[test]
    fn no_password_is_ever_shown() {
        let text = "[upstream]\nhttps_proxy = \"http://user:hunter2@proxy.example.org\"\n";
        let loaded = loaded(text, &[], &[]).unwrap();
        let key = key("upstream.https_proxy").unwrap();
        assert_eq!(key.shown(&loaded.config), "\"http://user:…@proxy.example.org\"");
        assert!(!format!("{loaded:?}").contains("hunter2"));
        let wrong = problems("[upstream]\nhttps_proxy = \"ftp://user:hunter2@proxy\"\n", &[]);
        assert!(
            !wrong[0].contains("hunter2") && wrong[0].contains("upstream.https_proxy"),
            "{wrong:?}"
        );
    }

    #[test]
    fn what_larder_config_prints_is_a_configuration_file() {
        let defaults = Config::default();
        let lines = KEYS.iter().map(|key| format!("{} = {}", key.name, key.shown(&defaults)));
        let printed = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(loaded(&printed, &[], &[]).unwrap().config, defaults);
    }
}
