//! Parses a builder's command line, as far as larder needs it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The builder, by the options that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Builder {
    /// `docker build` and `docker buildx build`.
    Docker,
    /// `docker compose build`: accepts build arguments only.
    Compose,
    /// Buildah and Podman, which share a builder.
    Buildah,
}

/// The network of the build's steps, by the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// Not set.
    Default,
    /// This machine's own.
    Host,
    /// No network.
    None,
    /// A bridge, another container's network, slirp4netns.
    Other,
}

/// An image build.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) builder: Builder,
    /// The index in the command of the subcommand's first word: before it are the program and its own options.
    pub(super) before: usize,
    /// The index in the command at which the subcommand's arguments begin.
    pub(super) arguments: usize,
    pub(super) network: Network,
    words: Vec<&'a str>,
}

/// The commands that build images: the program, the words of its subcommand, and the builder whose arguments follow.
const COMMANDS: &[(&str, &[&str], Builder)] = &[
    ("docker", &["build"], Builder::Docker),
    ("docker", &["image", "build"], Builder::Docker),
    ("docker", &["builder", "build"], Builder::Docker),
    ("docker", &["buildx", "build"], Builder::Docker),
    ("docker", &["buildx", "b"], Builder::Docker),
    ("docker", &["compose", "build"], Builder::Compose),
    ("docker-compose", &["build"], Builder::Compose),
    ("docker-buildx", &["build"], Builder::Docker),
    ("podman", &["build"], Builder::Buildah),
    ("podman", &["image", "build"], Builder::Buildah),
    ("podman", &["buildx", "build"], Builder::Buildah),
    ("buildah", &["bud"], Builder::Buildah),
    ("buildah", &["build"], Builder::Buildah),
    ("buildah", &["build-using-dockerfile"], Builder::Buildah),
];

/// Options before or between those words that take the next word as their value, which may well be `build`.
const WITH_VALUE: &[&str] = &[
    // docker
    "--config",
    "--context",
    "-c",
    "--host",
    "-H",
    "--log-level",
    "-l",
    "--tlscacert",
    "--tlscert",
    "--tlskey",
    "--builder",
    // compose
    "--ansi",
    "--env-file",
    "--file",
    "-f",
    "--parallel",
    "--profile",
    "--progress",
    "--project-directory",
    "--project-name",
    "-p",
    // podman and buildah
    "--cgroup-manager",
    "--conmon",
    "--connection",
    "--cpu-profile",
    "--default-mounts-file",
    "--events-backend",
    "--hooks-dir",
    "--identity",
    "--imagestore",
    "--memory-profile",
    "--module",
    "--namespace",
    "--network-backend",
    "--network-cmd-path",
    "--network-config-dir",
    "--out",
    "--registries-conf",
    "--registries-conf-dir",
    "--root",
    "--runroot",
    "--runtime",
    "--runtime-flag",
    "--short-name-alias-conf",
    "--ssh",
    "--storage-driver",
    "--storage-opt",
    "--tmpdir",
    "--url",
    "--userns-gid-map",
    "--userns-uid-map",
    "--volumepath",
];

/// The option for a build argument, the same for all builders.
pub(super) const BUILD_ARGUMENT: &str = "--build-arg";

/// The longest Containerfile that is read: larder only searches it for one word.
const MAX_CONTAINERFILE: u64 = 1 << 20;

impl<'a> Call<'a> {
    /// The build that `command` starts directly; commands behind `sudo` or `sh -c` are not recognised.
    pub(super) fn of(command: &'a [OsString]) -> Option<Self> {
        let program = Path::new(command.first()?).file_name()?.to_str()?;
        let before = words_before_arguments(command.get(1..)?);
        let (subcommand, arguments, builder) =
            COMMANDS.iter().find_map(|(name, wanted, builder)| {
                let found = before.get(..wanted.len())?;
                let same = found.iter().map(|(_, word)| *word).eq(wanted.iter().copied());
                let ((first, _), (last, _)) = (found.first()?, found.last()?);
                // After that word; the program's name precedes all.
                (*name == program && same).then_some((
                    first.saturating_add(1),
                    last.saturating_add(2),
                    *builder,
                ))
            })?;
        // A word that is not UTF-8 is a path, not an option that matters here.
        let words = command
            .get(arguments..)?
            .iter()
            .map(|word| word.to_str().unwrap_or_default())
            .collect();
        let before = subcommand;
        let mut call = Self { builder, before, arguments, network: Network::Default, words };
        call.network = call.network();
        Some(call)
    }

    /// Whether an option is given, with or without a value.
    pub(super) fn names(&self, option: &str) -> bool {
        self.words.iter().any(|word| word.split('=').next() == Some(option))
    }

    /// The names of the build arguments that the user gives, with or without a value.
    pub(super) fn build_arguments(&self) -> Vec<&'a str> {
        let given = self.values(&[BUILD_ARGUMENT]).into_iter();
        given.map(|argument| argument.split_once('=').map_or(argument, |(name, _)| name)).collect()
    }

    /// The build arguments that the user gives with a value.
    pub(super) fn values_of_build_arguments(&self) -> BTreeMap<&'a str, &'a str> {
        let given = self.values(&[BUILD_ARGUMENT]).into_iter();
        given.filter_map(|argument| argument.split_once('=')).collect()
    }

    /// The text of the Containerfile, if exactly one file can be meant.
    pub(super) fn containerfile(&self) -> Option<String> {
        let is_file = |file: &PathBuf| {
            std::fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.len() <= MAX_CONTAINERFILE)
        };
        let mut found: Vec<PathBuf> = self.containerfiles().into_iter().filter(is_file).collect();
        for file in &mut found {
            if let Ok(whole) = file.canonicalize() {
                *file = whole;
            }
        }
        found.sort();
        found.dedup();
        let [only] = found.as_slice() else { return None };
        std::fs::read_to_string(only).ok()
    }

    /// Whether the user gives a secret named `larder`.
    pub(super) fn gives_secret(&self) -> bool {
        let values = self.values(&["--secret"]);
        values.iter().any(|value| value.split(',').any(|part| part == "id=larder"))
    }

    /// Whether a step of the Containerfile mounts the secret. A Containerfile from standard input or a URL is not
    /// read.
    pub(super) fn mounts_secret(&self) -> bool {
        self.containerfiles().iter().any(|file| {
            std::fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.len() <= MAX_CONTAINERFILE)
                && std::fs::read_to_string(file).is_ok_and(|text| text.contains("id=larder"))
        })
    }

    fn network(&self) -> Network {
        match self.values(&["--network", "--net"]).last() {
            None | Some(&"default") => Network::Default,
            Some(&"host") => Network::Host,
            Some(&"none") => Network::None,
            Some(_) => Network::Other,
        }
    }

    /// The Containerfiles that the command names, relative to the current directory or (Buildah) to the context; by
    /// default those in the context. Only the builder knows which word is the context, so every word that is a
    /// directory is tried.
    fn containerfiles(&self) -> Vec<PathBuf> {
        let mut files = self.values(&["--file", "-f"]);
        // The value of the short option may be in the same word.
        let joined = |word: &&'a str| word.strip_prefix("-f").filter(|rest| !rest.is_empty());
        files.extend(self.words.iter().filter_map(joined));
        if files.is_empty() {
            files.extend(["Containerfile", "Dockerfile"]);
        }
        let directories = self.words.iter().filter(|word| Path::new(word).is_dir()).copied();
        directories
            .chain(["."])
            .flat_map(|directory| files.iter().map(move |file| Path::new(directory).join(file)))
            .collect()
    }

    /// The values of an option, in order.
    fn values(&self, names: &[&str]) -> Vec<&'a str> {
        let mut values = Vec::new();
        let mut words = self.words.iter();
        while let Some(word) = words.next() {
            if names.contains(word) {
                values.extend(words.next());
            } else if let Some((name, value)) = word.split_once('=')
                && names.contains(&name)
            {
                values.push(value);
            }
        }
        values
    }
}

/// The words that are neither options nor their values, each with its index.
fn words_before_arguments(rest: &[OsString]) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut places = rest.iter().map(OsString::as_os_str).enumerate();
    while let Some((place, word)) = places.next() {
        match word.to_str() {
            Some(option) if WITH_VALUE.contains(&option) => {
                let _value: Option<(usize, &OsStr)> = places.next();
            }
            Some(option) if option.starts_with('-') => {}
            Some(word) => words.push((place, word)),
            None => break,
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(line: &str) -> Option<(Builder, usize)> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Call::of(&words).map(|call| (call.builder, call.arguments))
    }

    #[test]
    fn builds_are_found_behind_options() {
        assert_eq!(begins("docker build ."), Some((Builder::Docker, 2)));
        assert_eq!(
            begins("/usr/bin/docker -H build --debug buildx --builder b build ."),
            Some((Builder::Docker, 8))
        );
        assert_eq!(
            begins("docker --host=x compose -f build build web"),
            Some((Builder::Compose, 6))
        );
        assert_eq!(begins("podman --root bud build ."), Some((Builder::Buildah, 4)));
        assert_eq!(begins("buildah bud"), Some((Builder::Buildah, 2)));
        for other in [
            "docker",
            "docker run build",
            "docker buildx ls",
            "podman -c build info",
            "sudo docker build .",
        ] {
            assert_eq!(begins(other), None, "{other}");
        }
    }

    #[test]
    fn the_last_network_counts() {
        for (arguments, network) in [
            ("", Network::Default),
            ("--network host", Network::Host),
            ("--network=none", Network::None),
            ("--network=host --net mine", Network::Other),
        ] {
            let words: Vec<OsString> = format!("docker build {arguments}")
                .split_whitespace()
                .map(OsString::from)
                .collect();
            assert_eq!(Call::of(&words).unwrap().network, network, "{arguments}");
        }
    }
}
