//! Root certificates for clients: larder's CA together with every root that the client would trust without larder.
//!
//! Certificates are copied as text, block by block, so that certificates that larder cannot parse are kept; private
//! keys and text between blocks are not.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{VARIABLES, Value};
use crate::config::environment::Environment;

/// Root certificates in PEM.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Bundle {
    /// larder's CA, the machine's roots, and those that variables name: for tools whose variable replaces their
    /// roots.
    pub(in crate::cli) all: String,
    /// larder's CA and the roots that variables name for tools whose variable adds to their roots.
    pub(in crate::cli) extra: String,
    /// Whether the machine's roots were found.
    pub(in crate::cli) has_system: bool,
}

/// Where systems keep all their roots in one file: Debian, Fedora, SUSE, Alpine and BSD, Nix, old Fedora.
pub(in crate::cli) const SYSTEM_FILES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-bundle.crt",
];

/// The most files read from a directory of roots. A system's directory has about 300 roots, each twice.
const MAX_FILES: usize = 4096;

impl Bundle {
    /// Reads the roots of this machine and those that the environment names.
    pub(in crate::cli) fn gather(ca_pem: &str, environment: &Environment) -> Self {
        let system =
            SYSTEM_FILES.iter().map(|path| read(Path::new(path))).find(|text| !text.is_empty());
        let named = |wanted: &[Value]| {
            VARIABLES
                .iter()
                .filter(|(_, kind)| wanted.contains(kind))
                .filter_map(|(name, _)| environment.get(name))
                .map(|path| read(Path::new(path)))
                .collect::<Vec<_>>()
        };
        Self::of(
            ca_pem,
            system.as_deref(),
            &named(&[Value::Bundle, Value::BundleIfSet, Value::Extra]),
            &named(&[Value::Extra]),
        )
    }

    fn of(ca_pem: &str, system: Option<&str>, named: &[String], extra: &[String]) -> Self {
        let join = |texts: &mut dyn Iterator<Item = &str>| {
            let mut seen = HashSet::new();
            let mut joined = String::new();
            for block in texts.flat_map(certificates).filter(|block| seen.insert(*block)) {
                joined.push_str(block);
                joined.push('\n');
            }
            joined
        };
        let named = named.iter().map(String::as_str);
        Self {
            all: join(&mut [ca_pem].into_iter().chain(system).chain(named)),
            extra: join(&mut [ca_pem].into_iter().chain(extra.iter().map(String::as_str))),
            has_system: system.is_some(),
        }
    }
}

/// The certificate blocks in `text`, from BEGIN to END.
fn certificates(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, from) = rest.split_at_checked(rest.find(BEGIN)?)?;
        let (block, after) = from.split_at_checked(from.find(END)?.checked_add(END.len())?)?;
        rest = after;
        Some(block)
    })
}

/// The text of a file, or of every file in a directory of roots. Empty for what cannot be read: the tool for which
/// the variable is set could not have read it either, and reports that itself.
fn read(path: &Path) -> String {
    let Ok(directory) = std::fs::read_dir(path) else {
        return std::fs::read(path)
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    };
    let files: Vec<PathBuf> = directory
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .take(MAX_FILES)
        .collect();
    files.iter().map(|file| read(file)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(body: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn the_bundle_holds_the_ca_the_machines_roots_and_the_users() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own.pem");
        let extra = directory.path().join("extra.pem");
        std::os::unix::fs::symlink("/dev/null", directory.path().join("nothing")).unwrap();
        for (path, body) in [(&own, "T1dO"), (&extra, "RVhUUkE=")] {
            let mut file =
                std::fs::OpenOptions::new().create_new(true).write(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, certificate(body).as_bytes()).unwrap();
        }
        let (own, extra) =
            (own.to_string_lossy().into_owned(), extra.to_string_lossy().into_owned());
        let environment: Environment = [
            ("PIP_CERT", &*own),
            ("NODE_EXTRA_CA_CERTS", &*extra),
            ("AWS_CA_BUNDLE", "/does/not/exist"),
        ]
        .into_iter()
        .collect();
        let bundle = Bundle::gather(&certificate("TEFSREVS"), &environment);
        assert!(bundle.all.starts_with("-----BEGIN CERTIFICATE-----\nTEFSREVS\n"));
        assert!(bundle.all.contains("T1dO") && bundle.all.contains("RVhUUkE="));
        assert!(
            bundle.extra.contains("TEFSREVS")
                && bundle.extra.contains("RVhUUkE=")
                && !bundle.extra.contains("T1dO")
        );
        let bare = Bundle::gather(&certificate("TEFSREVS"), &Environment::default());
        assert!(!bare.all.contains("T1dO"), "the control: nobody named it");
    }

    #[test]
    fn a_root_that_stands_twice_is_taken_once() {
        let (ca, root) = (certificate("Q0E="), certificate("Uk9PVA=="));
        let bundle = Bundle::of(
            &ca,
            Some(&format!("# a remark\n{root}{root}")),
            &[root.clone(), ca.clone()],
            &[],
        );
        assert_eq!(bundle.all, format!("{ca}{root}"));
    }

    #[test]
    fn private_keys_are_not_copied() {
        let (begin, end) = ("-----BEGIN", "PRIVATE KEY-----");
        let text = format!("{begin} {end}\nc2VjcmV0\n-----END {end}\n{}", certificate("Uk9PVA=="));
        assert_eq!(certificates(&text).collect::<Vec<_>>(), [certificate("Uk9PVA==").trim_end()]);
        assert_eq!(certificates("-----BEGIN CERTIFICATE-----\ncut").count(), 0);
    }
}
