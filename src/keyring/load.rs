//! Keys from files: those compiled in, the system's, the operator's.
//!
//! A file that is not a keyring is named in the log and skipped: a container's package may put anything there, and one bad
//! file must not take the others away.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use pgp::armor::Dearmor;
use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{Packet, PacketParser};

use super::{Keyring, rsa};

/// The archive keys that ship with larder: a container has no keyrings, and without keys nothing that comes over plain
/// http could be kept. They are Debian's and Ubuntu's own files, unchanged.
const BUILT_IN: [(&str, &[u8]); 2] = [
    ("built-in: Debian", include_bytes!("data/debian.gpg")),
    ("built-in: Ubuntu", include_bytes!("data/ubuntu.gpg")),
];

/// Where systems keep the keys that their administrator trusts for package archives.
pub const SYSTEM: [&str; 4] =
    ["/usr/share/keyrings", "/etc/apt/keyrings", "/etc/apt/trusted.gpg.d", "/etc/apk/keys"];

/// The longest file, in bytes. Debian's developers' keyring, which is no archive's, has 30 MB.
const MAX_FILE: u64 = 4 << 20;

/// The most files of one directory.
const MAX_FILES: usize = 1024;

/// The most packets of one file: its longest certificates have some hundred.
const MAX_PACKETS: usize = 100_000;

/// Keys that were withdrawn or have expired; distributions ship them so that old archives can be looked at.
const REMOVED: &str = "removed-keys";

/// Why a file is no keyring.
#[derive(Debug, thiserror::Error)]
pub enum NotKeys {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is too long.
    #[error("it is longer than {MAX_FILE} bytes")]
    TooLong,
    /// It is in gpg's own format.
    #[error("it is a keybox; export the key with `gpg --export KEY > FILE.gpg`")]
    Keybox,
    /// It is a PEM file, of another kind of key.
    #[error("it is a public key in PEM, and not of RSA with at least 2048 bits")]
    NotRsa,
    /// It holds private keys.
    #[error("it is not a file of public keys (neither armoured nor binary OpenPGP)")]
    Other,
}

impl Keyring {
    /// The keys compiled in.
    pub fn built_in() -> Self {
        let mut keyring = Self::new();
        for (source, bytes) in BUILT_IN {
            if let Err(error) = keyring.read(bytes, source) {
                tracing::error!(source, %error, "these keys are left out");
            }
        }
        keyring.add_alpine();
        keyring
    }

    /// Adds the keys in the files of `directory`, in the order of their names. One that is not there is empty. Blocking.
    pub fn add_directory(&mut self, directory: &Path) {
        for path in files(directory) {
            if let Err(error) = self.add_file(&path) {
                tracing::warn!(path = %path.display(), %error, "this file of keys is left out");
            }
        }
    }

    /// Adds the keys in a file. Blocking.
    pub fn add_file(&mut self, path: &Path) -> Result<usize, NotKeys> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(NotKeys::TooLong);
        }
        let source = path.display().to_string();
        if rsa::is_rsa(&bytes) {
            // Signatures name such a key by its file.
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let read = self.read_rsa(&bytes, name, &source);
            return if read { Ok(1) } else { Err(NotKeys::NotRsa) };
        }
        self.read(&bytes, &source)
    }

    /// Adds the keys in `bytes`, armoured (one or more blocks) or binary; says how many there were.
    pub fn read(&mut self, bytes: &[u8], source: &str) -> Result<usize, NotKeys> {
        if bytes.get(8..12) == Some(b"KBXf") {
            return Err(NotKeys::Keybox);
        }
        let before = self.len();
        if bytes.is_ascii() {
            let text = String::from_utf8_lossy(bytes);
            for block in text.split_inclusive("-----END PGP PUBLIC KEY BLOCK-----") {
                if block.contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
                    let mut binary = Vec::new();
                    let mut armour = Dearmor::new(block.trim_start().as_bytes());
                    if armour.read_to_end(&mut binary).is_ok() {
                        self.read_packets(&binary, source);
                    }
                }
            }
        } else {
            self.read_packets(bytes, source);
        }
        match self.len() - before {
            0 => Err(NotKeys::Other),
            added => Ok(added),
        }
    }

    /// A packet that cannot be read is as if it were not there: what was said about it then fails its check. Trust packets
    /// are gpg's own notes between the others, and hide them from a strict parser.
    fn read_packets(&mut self, binary: &[u8], source: &str) {
        let packets = PacketParser::new(binary)
            .take(MAX_PACKETS)
            .filter(|packet| matches!(packet, Ok(known) if !matches!(known, Packet::Trust(_))))
            .peekable();
        for key in SignedPublicKey::from_packets(packets).filter_map(Result::ok) {
            self.add(key, source);
        }
    }
}

/// The files in a directory that may hold keys.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(found) = directory.read_dir() else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = found
        .flatten()
        .map(|file| file.path())
        .filter(|path| {
            let ends = ["gpg", "asc", "pgp", "pub"];
            let name = path.file_name().and_then(|name| name.to_str());
            path.extension().and_then(|end| end.to_str()).is_some_and(|end| ends.contains(&end))
                && name.is_some_and(|name| !name.contains(REMOVED))
        })
        .take(MAX_FILES)
        .collect();
    paths.sort();
    paths
}
