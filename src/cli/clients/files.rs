//! The files that variables name: root bundles, settings for apt and wget, and the trust store for Java.
//!
//! They contain nothing secret, and every user can read them: apt drops its privileges before it reads its root
//! certificates.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::bundle::Bundle;
use super::{java, no_proxy};
use crate::config::environment::Environment;

/// The paths of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Files {
    pub(in crate::cli) bundle: PathBuf,
    pub(in crate::cli) extra: PathBuf,
    pub(in crate::cli) apt: PathBuf,
    pub(in crate::cli) wget: PathBuf,
    pub(in crate::cli) java: PathBuf,
}

impl Files {
    /// Writes them into `directory`, for clients of the larder at `proxy` whose CA is `ca_pem`.
    pub(in crate::cli) fn write(
        directory: &Path,
        proxy: &str,
        ca_pem: &str,
        environment: &Environment,
    ) -> anyhow::Result<Self> {
        let files = Self {
            bundle: directory.join("bundle.pem"),
            extra: directory.join("extra.pem"),
            apt: directory.join("apt.conf"),
            wget: directory.join("wgetrc"),
            java: directory.join("truststore.jks"),
        };
        let bundle = Bundle::gather(ca_pem, environment);
        if !bundle.has_system {
            tracing::warn!(
                "no file with this machine's roots was found: clients trust larder alone, and what goes around it \
                 (NO_PROXY) fails"
            );
        }
        if no_proxy::is_everything(environment) {
            tracing::warn!("NO_PROXY holds *: clients go around larder");
        }
        if java::has_own_store(environment) {
            tracing::warn!(
                "a variable gives Java a trust store of its own, which larder cannot add to: Java goes around larder"
            );
        }
        let text = |path: Option<PathBuf>| {
            path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let apt = text(environment.get("APT_CONFIG").map(PathBuf::from));
        let home = environment.get("HOME").map(|home| Path::new(home).join(".wgetrc"));
        let wget = text(environment.get("WGETRC").map(PathBuf::from).or(home));
        put(&files.bundle, bundle.all.as_bytes())?;
        put(&files.extra, bundle.extra.as_bytes())?;
        let asks = std::fs::read_to_string(SET_UP).is_ok_and(|text| text.contains(DETECTOR));
        put(&files.apt, apt_conf(&apt, proxy, &files.bundle, asks).as_bytes())?;
        put(&files.wget, wgetrc(&wget, &files.bundle).as_bytes())?;
        put(&files.java, &java::trust_store(&bundle.all))?;
        Ok(files)
    }
}

/// What the set-up script writes for apt, and the program that it makes apt ask.
const SET_UP: &str = "/etc/apt/apt.conf.d/99larder";
const DETECTOR: &str = "\"/etc/larder/proxy\"";

/// The file for `APT_CONFIG`: larder's proxy, the settings of the user's own file, then larder's roots.
///
/// apt reads this file before all others, so a proxy that the user's or the machine's files set overrides larder's:
/// the network may have no other way out. The roots must override theirs, because without them every https repository
/// fails through larder: apt moves settings below `Binary::apt` and the like into place after it has read all files
/// (apt.conf(5)).
///
/// `asks`: the set-up script told apt to ask a program for the machine's own larder. Its answer would override this
/// larder's proxy, and keep apt away from this larder where the other one is not there.
fn apt_conf(users: &str, proxy: &str, bundle: &Path, asks: bool) -> String {
    let bundle = bundle.display();
    let users = before(users, "//");
    let mut text = format!(
        "Acquire::http::Proxy \"{proxy}/\";\nAcquire::https::Proxy \"{proxy}/\";\n\
         // {BEFORE}\n{users}\n// {OWN}\n"
    );
    for tree in
        ["", "Binary::apt::", "Binary::apt-get::", "Binary::apt-helper::", "Binary::aptitude::"]
    {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{tree}Acquire::https::CaInfo \"{bundle}\";");
        for scheme in ["http", "https"].iter().filter(|_| asks) {
            let _infallible = writeln!(text, "{tree}Acquire::{scheme}::Proxy-Auto-Detect \"\";");
        }
    }
    text
}

/// The file for `WGETRC`, which replaces `~/.wgetrc`: the user's settings, then larder's roots. A wget built with
/// `GnuTLS` reads no roots from the environment.
fn wgetrc(users: &str, bundle: &Path) -> String {
    let users = before(users, "#");
    format!("# {BEFORE}\n{users}\n# {OWN}\nca_certificate = {}\n", bundle.display())
}

/// Mark the begin and the end of the user's own settings.
const BEFORE: &str = "what was set before:";
const OWN: &str = "what larder sets:";

/// The user's own settings, also if `text` is a file that larder wrote for an outer command.
fn before<'a>(text: &'a str, comment: &str) -> &'a str {
    let (begin, end) = (format!("{comment} {BEFORE}\n"), format!("\n{comment} {OWN}\n"));
    let within = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    within.map_or(text, |(users, _)| users)
}

/// Writes a temporary file and renames it over the old one: a client may be reading that.
#[expect(
    clippy::disallowed_methods,
    reason = "these files are made anew for each use; none has to survive a crash"
)]
pub(in crate::cli) fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| std::fs::rename(&unfinished, path));
    written.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_keeps_the_users_settings_and_gets_larders_roots() {
        let text = apt_conf(
            "Acquire::Retries \"3\";\nAcquire::http::Proxy \"http://corp.example.org\";",
            "http://127.0.0.1:1",
            Path::new("/b.pem"),
            false,
        );
        let at =
            |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is missing in:\n{text}"));
        assert!(
            at("Acquire::http::Proxy \"http://127.0.0.1:1/\";") < at("http://corp.example.org")
        );
        assert!(at("Acquire::Retries \"3\";") < at("\nAcquire::https::CaInfo \"/b.pem\";"));
        assert!(text.contains("\nBinary::apt-get::Acquire::https::CaInfo \"/b.pem\";"));
    }

    #[test]
    fn wget_keeps_the_users_settings() {
        let text = wgetrc("tries = 3", Path::new("/b.pem"));
        assert!(text.contains("\ntries = 3\n"), "{text}");
        assert!(text.ends_with("\nca_certificate = /b.pem\n"), "{text}");
    }

    #[test]
    fn settings_do_not_pile_up_in_a_command_inside_a_command() {
        let outer = apt_conf(
            "Acquire::Retries \"3\";",
            "http://127.0.0.1:1",
            Path::new("/outer.pem"),
            true,
        );
        let inner = apt_conf(&outer, "http://127.0.0.1:2", Path::new("/inner.pem"), false);
        assert!(
            inner.contains("Acquire::Retries \"3\";") && !inner.contains("127.0.0.1:1/"),
            "{inner}"
        );
        assert!(!inner.contains("/outer.pem"), "{inner}");
        let detects = |text: &str| text.matches("Proxy-Auto-Detect \"\";").count();
        assert_eq!((detects(&outer), detects(&inner)), (10, 0));
        let twice = wgetrc(&wgetrc("tries = 3", Path::new("/outer.pem")), Path::new("/inner.pem"));
        assert_eq!(twice, wgetrc("tries = 3", Path::new("/inner.pem")));
    }

    #[test]
    fn files_are_written_for_all_to_read_and_include_what_stood_before() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let before = directory.path().join("before.conf");
        put(&before, b"Acquire::Retries \"7\";").unwrap();
        let before = before.to_string_lossy().into_owned();
        let environment: Environment = [("APT_CONFIG", &*before)].into_iter().collect();
        let files = Files::write(directory.path(), "http://127.0.0.1:1", "", &environment).unwrap();
        assert!(std::fs::read_to_string(&files.apt).unwrap().contains("Acquire::Retries \"7\";"));
        for path in [&files.bundle, &files.extra, &files.apt, &files.wget] {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o044,
                0o044,
                "{path:?}"
            );
        }
        // Overwritten in place, as `larder env` does.
        Files::write(directory.path(), "http://127.0.0.1:2", "", &environment).unwrap();
        assert!(std::fs::read_to_string(&files.apt).unwrap().contains("127.0.0.1:2"));
    }
}
