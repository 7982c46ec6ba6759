//! The formats in which `larder env` prints variables.
//!
//! Each reader has rules of its own. A value is escaped if the format has an escape. If it has none, or if programs
//! that read the same kind of file disagree, a value that could be misread is refused, and the error names the
//! variable.
//!
//! | format | reader | rule |
//! | --- | --- | --- |
//! | `sh` | POSIX shells | single quotes |
//! | `dotenv` | `--env-file`, compose, `EnvironmentFile=`, `set -a; . FILE` | no escape that all of them support |
//! | `docker-args` | `docker build $(…)` | the shell splits at blanks and expands patterns; quotes stay as they are |
//! | `docker-run-args` | `docker run $(…)` | the same |
//! | `github` | `.env` of a self-hosted runner, `$GITHUB_ENV` | everything after the first `=`, to the end of the line |
//! | `gitlab` | `environment` in a runner's `config.toml` | TOML; the runner expands `$` in it |
//! | `systemd` | a drop-in of a unit | `systemd.exec(5)`: C escapes within double quotes, `%` doubled |
//! | `json` | programs | RFC 8259 |
//!
//! A build is given only the variables that Docker predefines: those stay out of the image's history and of its cache
//! key, and any other would need an `ARG` in the Containerfile.

use std::fmt::Write as _;

use anyhow::bail;
use clap::ValueEnum;
use serde_json::json;

/// The reader of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Lines for a POSIX shell
    Sh,
    /// A file of variables, as `docker run --env-file`, compose and `EnvironmentFile=` read it
    Dotenv,
    /// Arguments for `docker build`: proxy variables that do not stay in the image, and the root bundle as the secret
    /// `larder`
    DockerArgs,
    /// Arguments for `docker run`
    DockerRunArgs,
    /// The `.env` of a self-hosted GitHub runner, or lines for `$GITHUB_ENV`
    Github,
    /// `environment` for `[[runners]]` in the `config.toml` of a GitLab runner
    Gitlab,
    /// A drop-in for a systemd unit
    Systemd,
    /// One JSON object
    Json,
}

/// What is printed.
pub(super) struct Printed<'a> {
    /// larder's address, as the reader reaches it.
    pub(super) proxy: &'a str,
    /// The host name in that address, if containers must be given it for the machine on which they run.
    pub(super) machine: Option<&'a str>,
    /// The directory of the files that variables name.
    pub(super) directory: &'a str,
    /// The variables.
    pub(super) variables: &'a [(&'static str, String)],
}

/// The build arguments that Docker and Buildah accept without an `ARG`.
const PREDEFINED: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];

/// The variable that names the file for the build's secret.
const BUNDLE: &str = "SSL_CERT_FILE";

impl Format {
    /// Whether the reader runs in a container, which does not reach this machine's loopback.
    pub(super) fn is_for_containers(self) -> bool {
        matches!(self, Self::DockerArgs | Self::DockerRunArgs | Self::Gitlab)
    }

    /// Whether the output is kept in a file that is used again after a reboot.
    pub(super) fn outlives_the_machine(self) -> bool {
        matches!(self, Self::Dotenv | Self::Github | Self::Gitlab | Self::Systemd)
    }

    /// The text, or an error that names a value which the reader would misread.
    pub(super) fn render(self, printed: &Printed<'_>) -> anyhow::Result<String> {
        for (name, value) in printed.variables {
            self.check(name, value)?;
        }
        // Builders and runners split a path at these characters; there is no escape.
        if self.is_for_containers() && printed.directory.contains([':', ',', '"']) {
            bail!(
                "{} cannot be mounted into a container, because of its colon, comma or quote; name another --directory",
                printed.directory
            );
        }
        Ok(match self {
            Self::Sh => lines(printed, |name, value| format!("export {name}={}", quoted(value))),
            Self::Dotenv | Self::Github => lines(printed, |name, value| format!("{name}={value}")),
            Self::Systemd => {
                let lines = lines(printed, |name, value| {
                    format!("Environment=\"{name}={}\"", systemd(value))
                });
                format!("[Service]\n{lines}")
            }
            Self::DockerArgs => build_arguments(printed),
            Self::DockerRunArgs => run_arguments(printed),
            Self::Gitlab => gitlab(printed),
            Self::Json => json(printed),
        })
    }

    /// Whether the reader reads `value` unchanged.
    pub(super) fn holds(self, value: &str) -> bool {
        value.chars().all(|character| self.can_hold(character))
    }

    fn check(self, name: &str, value: &str) -> anyhow::Result<()> {
        if let Some(character) = value.chars().find(|character| !self.can_hold(*character)) {
            bail!(
                "{name} is {value:?}, and its {character:?} {}; change it, or read --format json",
                self.refusal()
            );
        }
        Ok(())
    }

    /// Whether the reader reads `character` unchanged, or there is an escape for it.
    fn can_hold(self, character: char) -> bool {
        match self {
            Self::Sh | Self::Json => true,
            Self::Dotenv => character.is_alphanumeric() || "_./:,@%+=^[]*-".contains(character),
            Self::DockerArgs | Self::DockerRunArgs => {
                !character.is_whitespace()
                    && !character.is_control()
                    && !"*?[]\\".contains(character)
            }
            Self::Github => !character.is_control(),
            Self::Gitlab => !character.is_control() && character != '$',
            // A newline and a tab are the only control characters that systemd accepts in a variable.
            Self::Systemd => !character.is_control() || matches!(character, '\n' | '\t'),
        }
    }

    fn refusal(self) -> &'static str {
        match self {
            Self::Sh | Self::Json => "cannot be written",
            Self::Dotenv => "is read differently by the programs that read such files",
            Self::DockerArgs | Self::DockerRunArgs => {
                "would be split or expanded by the shell that passes the arguments on"
            }
            Self::Github => "cannot stand in a line that the runner reads",
            Self::Gitlab => "cannot stand in a variable that the runner expands",
            Self::Systemd => "cannot stand in a variable of systemd's",
        }
    }
}

fn lines(printed: &Printed<'_>, line: impl Fn(&str, &str) -> String) -> String {
    printed.variables.iter().map(|(name, value)| line(name, value) + "\n").collect()
}

/// A word for a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

/// The inside of a double-quoted word for systemd, in which a percent sign would also be a specifier.
fn systemd(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '%' => text.push_str("%%"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            _ => text.push(character),
        }
    }
    text
}

/// The option that makes the machine's name known in the container, if larder's address uses it.
fn machine(printed: &Printed<'_>) -> String {
    // `host-gateway` is Docker's name for the address at which containers reach their machine.
    printed.machine.map_or_else(String::new, |name| format!("--add-host {name}:host-gateway "))
}

fn build_arguments(printed: &Printed<'_>) -> String {
    let mut text = machine(printed);
    for (name, value) in printed.variables {
        // Writing to a String cannot fail.
        let _infallible = if PREDEFINED.contains(name) {
            write!(text, "--build-arg {name}={value} ")
        } else if *name == BUNDLE {
            write!(text, "--secret id=larder,src={value} ")
        } else {
            Ok(())
        };
    }
    text.trim_end().to_owned() + "\n"
}

fn run_arguments(printed: &Printed<'_>) -> String {
    let directory = printed.directory;
    let mut text = machine(printed) + &format!("-v {directory}:{directory}:ro");
    for (name, value) in printed.variables {
        // Writing to a String cannot fail.
        let _infallible = write!(text, " -e {name}={value}");
    }
    text + "\n"
}

fn gitlab(printed: &Printed<'_>) -> String {
    // Without control characters, a JSON string is a TOML basic string.
    let string = |text: String| json!(text).to_string();
    let mut text = "# in [[runners]]:\nenvironment = [\n".to_owned();
    for (name, value) in printed.variables {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "  {},", string(format!("{name}={value}")));
    }
    let volume = string(format!("{0}:{0}:ro", printed.directory));
    text.push_str("]\n# in [runners.docker], to what stands there:\n");
    // As above.
    let _infallible = writeln!(text, "# volumes = [{volume}]");
    if let Some(name) = printed.machine {
        let host = string(format!("{name}:host-gateway"));
        let _infallible = writeln!(text, "# extra_hosts = [{host}]");
    }
    text
}

fn json(printed: &Printed<'_>) -> String {
    let variables: serde_json::Map<_, _> =
        printed.variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let object = json!({
        "proxy": printed.proxy,
        "directory": printed.directory,
        "variables": variables,
    });
    format!("{object:#}\n")
}
