//! Parses key files: `OpenPGP` certificates, armoured or binary; a registry's keys; an RSA key as Alpine uses it.
//!
//! The format is recognised by content. The file's name matters only for keys that carry no name (Alpine's). The errors
//! distinguish what helps an operator find the right file: a keybox, private keys, an empty file.

use std::fmt;
use std::io::Read as _;

use pgp::armor::Dearmor;
use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{Packet, PacketParser};
use pgp::ser::Serialize as _;
use pgp::types::KeyDetails as _;
use serde::{Deserialize, Serialize};

use super::registry::{self, RegistryKey};
use super::{Fingerprint, MAX_FILE, rsa};

/// The maximum number of packets in one file; the longest certificates have some hundred packets.
const MAX_PACKETS: usize = 100_000;

/// The bytes between the outer length and the modulus in a `SubjectPublicKeyInfo` of an RSA key (RFC 8017 §A.1).
const RSA: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// The suffix of Alpine's key files, mostly after `.rsa`. A signature names its key by the file's name.
const RSA_ENDS: &str = ".pub";

/// The use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An `OpenPGP` certificate, for apt archives.
    #[serde(rename = "openpgp")]
    OpenPgp,
    /// An RSA key, named by its file, for apk repositories.
    Apk,
    /// An ECDSA key, for npm registries.
    Npm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenPgp => "openpgp",
            Self::Apk => "apk",
            Self::Npm => "npm",
        })
    }
}

/// Why a file is not a keyring.
#[derive(Debug, thiserror::Error)]
pub enum NotKeys {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is too long.
    #[error("it is longer than {MAX_FILE} bytes")]
    TooLong,
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It is in gpg's own format.
    #[error("it is a keybox; export the key with `gpg --export KEY > FILE.gpg`")]
    Keybox,
    /// It holds private keys.
    #[error(
        "it holds a private key, which larder neither needs nor should see; export the public half, for example with \
         `gpg --export KEY > FILE.gpg`"
    )]
    Private,
    /// An RSA key that is too weak or damaged, so that its signatures cannot count.
    #[error("it is an RSA key of less than 2048 bits, or a damaged one")]
    WeakRsa,
    /// An RSA key whose file does not have the name by which signatures refer to it.
    #[error(
        "it is an RSA key, and archives know those by their file's name, which ends with {RSA_ENDS}"
    )]
    Nameless,
    /// It looks like a registry's keys, but is not valid.
    #[error("{0}")]
    Registry(String),
    /// A part of it is damaged.
    #[error("a part of it cannot be read: it may have been cut off")]
    Damaged,
    /// It holds no keys.
    #[error(
        "it is not a file of public keys (OpenPGP, armoured or binary; PEM; or the JSON of a registry's keys)"
    )]
    Other,
}

/// A key from a file.
#[derive(Debug)]
pub enum Key {
    /// An `OpenPGP` certificate.
    OpenPgp(Box<SignedPublicKey>),
    /// An RSA key, identified by its file's name.
    Apk {
        /// The file's name.
        name: Box<str>,
        /// The file's content.
        pem: Box<[u8]>,
    },
    /// A registry's key.
    Npm(RegistryKey),
}

impl Key {
    /// The use of the key.
    pub fn kind(&self) -> Kind {
        match self {
            Self::OpenPgp(_) => Kind::OpenPgp,
            Self::Apk { .. } => Kind::Apk,
            Self::Npm(_) => Kind::Npm,
        }
    }

    /// The key's identifier: an `OpenPGP` fingerprint, a file's name, or a registry's key id.
    pub fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::OpenPgp(key) => Fingerprint::of(&key.primary_key.fingerprint()),
            Self::Apk { name, .. } => Fingerprint(name.clone()),
            Self::Npm(key) => Fingerprint(key.id().into()),
        }
    }

    /// A file that holds this key alone: its name and its content; `None` if the key cannot be serialised.
    pub fn to_file(&self) -> Option<(String, Vec<u8>)> {
        match self {
            Self::OpenPgp(key) => {
                Some((format!("{}.gpg", self.fingerprint()), key.to_bytes().ok()?))
            }
            Self::Apk { name, pem } => Some((name.to_string(), pem.to_vec())),
            Self::Npm(key) => {
                // The id is base64, but a file's name cannot contain a slash.
                let id = key.id().trim_start_matches("SHA256:").replace('/', "_");
                Some((format!("npm-{id}.json"), key.to_json().into_bytes()))
            }
        }
    }
}

/// The result of reading a file.
#[derive(Debug, Default)]
pub struct Contents {
    /// The keys.
    pub keys: Vec<Key>,
    /// Whether the file also has parts that could not be read.
    pub damaged: bool,
}

/// Reads the content `bytes` of a file called `name`. The result has at least one key.
pub fn read(bytes: &[u8], name: &str) -> Result<Contents, NotKeys> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(NotKeys::TooLong);
    }
    if bytes.get(8..12) == Some(b"KBXf") {
        return Err(NotKeys::Keybox);
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
    let contents = match text.first() {
        None => return Err(NotKeys::Empty),
        // Every OpenPGP packet begins with a set bit (RFC 9580 §4.2); ASCII text never does.
        Some(first) if first & 0x80 != 0 => packets(bytes)?,
        Some(b'{') => Contents {
            keys: registry::of_json(text)?.into_iter().map(Key::Npm).collect(),
            damaged: false,
        },
        Some(_) => armoured(&String::from_utf8_lossy(text), name)?,
    };
    if contents.keys.is_empty() { Err(NotKeys::Other) } else { Ok(contents) }
}

/// Text: blocks of armour or PEM, with anything between them.
fn armoured(text: &str, name: &str) -> Result<Contents, NotKeys> {
    if text.contains("PRIVATE KEY") && text.contains("-----BEGIN ") {
        return Err(NotKeys::Private);
    }
    let mut contents = Contents::default();
    for block in text.split_inclusive("-----END PGP PUBLIC KEY BLOCK-----") {
        let Some((_, armour)) = block.split_once("-----BEGIN PGP PUBLIC KEY BLOCK-----") else {
            continue;
        };
        let armour = format!("-----BEGIN PGP PUBLIC KEY BLOCK-----{}", unfolded(armour));
        let mut binary = Vec::new();
        match Dearmor::new(armour.as_bytes()).read_to_end(&mut binary) {
            Ok(_) => {
                let found = packets(&binary)?;
                contents.damaged |= found.damaged || found.keys.is_empty();
                contents.keys.extend(found.keys);
            }
            Err(_) => contents.damaged = true,
        }
    }
    if contents.keys.is_empty() && text.contains("-----BEGIN PUBLIC KEY-----") {
        contents.keys.push(of_pem(text, name)?);
    }
    Ok(contents)
}

/// Undoes the folding of an armour in a deb822 field (`Signed-By` in a `.sources` file): there every line begins with a
/// blank, and an empty line is a dot. No line of an armour begins with a blank or is a dot.
fn unfolded(armour: &str) -> String {
    let lines = armour.lines().map(|line| match line.trim_start_matches([' ', '\t']) {
        "." => "",
        line => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A public key in PEM: a registry's, or an RSA key as Alpine uses it.
fn of_pem(text: &str, name: &str) -> Result<Key, NotKeys> {
    let block = pem::parse(text).map_err(|_| NotKeys::Damaged)?;
    if let Some(key) = RegistryKey::of_spki(block.contents(), None) {
        return Ok(Key::Npm(key));
    }
    let is_rsa = block.contents().get(..RSA.len() + 4).is_some_and(|head| head.ends_with(&RSA));
    if !is_rsa {
        return Err(NotKeys::Other);
    }
    if !rsa::is_usable(block.contents()) {
        return Err(NotKeys::WeakRsa);
    }
    // The name becomes a file name in a directory: no path separators and no leading dot.
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b'+');
    let well_named = name.ends_with(RSA_ENDS) && !name.starts_with('.') && name.bytes().all(plain);
    if !well_named || name.len() > 200 {
        return Err(NotKeys::Nameless);
    }
    Ok(Key::Apk { name: name.into(), pem: text.as_bytes().into() })
}

/// The certificates in binary packets. A packet that cannot be parsed is skipped; signatures over it then fail. Trust
/// packets are gpg's own notes between the other packets, and a strict parser would stop at them.
fn packets(binary: &[u8]) -> Result<Contents, NotKeys> {
    let (mut private, mut cut, mut damaged) = (false, false, false);
    let packets = PacketParser::new(binary)
        .take(MAX_PACKETS)
        .inspect(|packet| match packet {
            Ok(Packet::SecretKey(_) | Packet::SecretSubkey(_)) => private = true,
            Ok(_) => {}
            // An unknown algorithm is not damage; a file that ends within a packet is.
            Err(error) => cut |= is_cut(error),
        })
        .filter(|packet| matches!(packet, Ok(known) if !matches!(known, Packet::Trust(_))))
        .peekable();
    let mut keys = Vec::new();
    for key in SignedPublicKey::from_packets(packets) {
        match key {
            Ok(key) => keys.push(Key::OpenPgp(Box::new(key))),
            Err(_) => damaged = true,
        }
    }
    if private {
        return Err(NotKeys::Private);
    }
    Ok(Contents { keys, damaged: cut || damaged })
}

/// Whether the packet could not be parsed because the file ends within it.
fn is_cut(error: &pgp::errors::Error) -> bool {
    matches!(error, pgp::errors::Error::PacketIncomplete { .. } | pgp::errors::Error::IO { .. })
}
