//! `OpenPGP` certificates, by which apt archives sign their indexes.
//!
//! Source: RFC 9580.

mod cleartext;
mod policy;
mod signatures;

use std::collections::HashMap;
use std::io::Read as _;

use pgp::armor::Dearmor;
use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{Packet, PacketParser};
use pgp::ser::Serialize as _;
use pgp::types::{Fingerprint as PgpFingerprint, KeyDetails as _, KeyId};

pub use self::cleartext::{Cleartext, NotCleartext};
use super::kind::{Contents, Key, KeyFile, KeyKind, Kind, PublicKey, Ring};
use super::{Fault, Fingerprint, KeyDescription, Keyring, NotKeys, NotSigned, Signed, Source};
use crate::clock::Time;
use crate::digest::hex;

/// The maximum number of packets in one file; the longest certificates have some hundred packets.
const MAX_PACKETS: usize = 100_000;

/// The fewest digits that may identify a certificate: its key id. Keys with a given shorter id can be forged.
pub const KEY_ID: usize = 16;

/// The archives whose keys ship with larder: the distributions' own files, unchanged.
const BUILT_IN: [(&str, &[u8]); 2] = [
    ("Debian", include_bytes!("../data/debian.gpg")),
    ("Ubuntu", include_bytes!("../data/ubuntu.gpg")),
];

/// The kind.
pub(super) struct OpenPgp;

impl KeyKind for OpenPgp {
    fn name(&self) -> &'static str {
        "openpgp"
    }

    fn formats(&self) -> &'static str {
        "OpenPGP, armoured or binary"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[".gpg", ".asc", ".pgp"]
    }

    fn read(&self, file: &KeyFile<'_>) -> Option<Result<Contents, NotKeys>> {
        if file.bytes.get(8..12) == Some(b"KBXf") {
            return Some(Err(NotKeys::Keybox));
        }
        // Every packet begins with a set bit (RFC 9580 §4.2); ASCII text never does.
        if file.text.first().is_some_and(|first| first & 0x80 != 0) {
            return Some(packets(file.bytes));
        }
        if file.text.starts_with(b"{") {
            return None;
        }
        armoured(&String::from_utf8_lossy(file.text)).transpose()
    }

    fn add_built_in(&self, keyring: &mut Keyring) {
        for (whose, bytes) in BUILT_IN {
            keyring.add_built_in(whose, bytes);
        }
    }

    fn is_signer(&self, signer: &str) -> bool {
        signer.len() >= 32 && signer.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
    }

    fn is_named(&self, fingerprint: &Fingerprint, named: &str) -> bool {
        let digits: String = named.chars().filter(|c| !c.is_whitespace()).collect();
        let digits = digits.trim_start_matches("0x").to_ascii_uppercase();
        digits.len() >= KEY_ID && fingerprint.0.ends_with(&digits)
    }
}

impl PublicKey for SignedPublicKey {
    fn kind(&self) -> Kind {
        Kind(&OpenPgp)
    }

    fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.primary_key.fingerprint())
    }

    fn to_file(&self) -> Option<(String, Vec<u8>)> {
        Some((format!("{}.gpg", PublicKey::fingerprint(self)), self.to_bytes().ok()?))
    }

    fn add_to(self: Box<Self>, keyring: &mut Keyring, source: &Source) {
        keyring.openpgp.add(*self, source);
    }
}

/// Blocks of armour, with anything between them; `None` if there are none.
fn armoured(text: &str) -> Result<Option<Contents>, NotKeys> {
    let (mut contents, mut found) = (Contents::default(), false);
    for block in text.split_inclusive("-----END PGP PUBLIC KEY BLOCK-----") {
        let Some((_, armour)) = block.split_once("-----BEGIN PGP PUBLIC KEY BLOCK-----") else {
            continue;
        };
        found = true;
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
    Ok(found.then_some(contents))
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
    let mut keys: Vec<Key> = Vec::new();
    for key in SignedPublicKey::from_packets(packets) {
        match key {
            Ok(key) => keys.push(Box::new(key)),
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

/// The primary key's fingerprint, in hexadecimal digits.
fn fingerprint(fingerprint: &PgpFingerprint) -> Fingerprint {
    Fingerprint(hex(fingerprint.as_bytes()).to_ascii_uppercase().into())
}

/// The trusted certificates.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    pub(super) all: Vec<Certificate>,
    by_fingerprint: HashMap<PgpFingerprint, Vec<KeyPosition>>,
    by_id: HashMap<KeyId, Vec<KeyPosition>>,
}

/// The position of a key: its certificate, and its subkey number unless it is the primary key.
type KeyPosition = (usize, Option<usize>);

/// A trusted certificate: a primary key with its subkeys.
#[derive(Debug)]
pub(super) struct Certificate {
    key: SignedPublicKey,
    source: Source,
}

impl Ring for Certificates {
    fn len(&self) -> usize {
        self.all.len()
    }

    /// A revocation in any copy counts.
    fn signers(&self) -> Vec<(Fingerprint, &Source)> {
        let revoked = self.revoked();
        let makers = self
            .makers()
            .map(|(certificate, place)| (certificate.maker(place), &certificate.source));
        let is_revoked = |maker: &Fingerprint| {
            revoked.contains(maker) || revoked.iter().any(|key| *key.0 == *primary(&maker.0))
        };
        makers.filter(|(maker, _)| !is_revoked(maker)).collect()
    }

    fn revoked(&self) -> Vec<Fingerprint> {
        let revoked = self.makers().filter(|(certificate, place)| certificate.revokes(*place));
        revoked.map(|(certificate, place)| certificate.maker(place)).collect()
    }

    fn about(&self, now: Time, of: &dyn Fn(&Fingerprint) -> bool) -> Vec<KeyDescription> {
        let certificates = self.all.iter().filter(|certificate| of(&certificate.fingerprint()));
        let described = certificates.map(|certificate| KeyDescription {
            kind: Kind(&OpenPgp),
            fingerprint: certificate.fingerprint(),
            signer: certificate.fingerprint(),
            user: certificate.user(),
            ends: policy::ends(&certificate.key, now),
            source: certificate.source.clone(),
        });
        described.collect()
    }

    /// A subkey counts as its certificate if it may sign at `now`. One that a certificate lists without the subkey's own
    /// confirmation does not count; it may belong to someone else.
    fn names(&self, named: &str, signer: &str, now: Time) -> bool {
        let is_it = |known: &&PgpFingerprint| hex(known.as_bytes()).eq_ignore_ascii_case(named);
        let known = self.by_fingerprint.keys().find(is_it);
        let places = known.and_then(|known| self.by_fingerprint.get(known));
        places.into_iter().flatten().any(|(number, place)| {
            let certificate = self.all.get(*number);
            certificate.is_some_and(|certificate| {
                *certificate.fingerprint().0 == *signer && certificate.signs_by(*place, now)
            })
        })
    }
}

impl Certificates {
    /// Every key of every copy of a certificate.
    fn makers(&self) -> impl Iterator<Item = (&Certificate, Option<usize>)> {
        self.all.iter().flat_map(|certificate| {
            let subkeys = (0..certificate.key.public_subkeys.len()).map(Some);
            std::iter::once(None).chain(subkeys).map(move |place| (certificate, place))
        })
    }

    /// Whether a copy of this certificate revokes its primary key. That copy may lack the subkey that another one has.
    fn is_revoked(&self, certificate: &Certificate) -> bool {
        let primary = certificate.key.primary_key.fingerprint();
        let copies = self.by_fingerprint.get(&primary).into_iter().flatten();
        let own = copies.filter(|(_, place)| place.is_none());
        own.filter_map(|(number, _)| self.all.get(*number))
            .any(|copy| policy::is_revoked(&copy.key))
    }

    /// Adds a certificate. Adding one twice is harmless: one copy may be newer, and the candidates are tried in turn. A
    /// revocation in any copy counts, so that an old copy cannot restore a revoked key.
    fn add(&mut self, key: SignedPublicKey, source: &Source) {
        let number = self.all.len();
        let primary = (key.primary_key.fingerprint(), key.primary_key.legacy_key_id());
        let subkeys = key.public_subkeys.iter().enumerate().map(|(place, subkey)| {
            let names = (subkey.key.fingerprint(), subkey.key.legacy_key_id());
            (names, Some(place))
        });
        for ((fingerprint, id), place) in std::iter::once((primary, None)).chain(subkeys) {
            let at = (number, place);
            self.by_fingerprint.entry(fingerprint).or_default().push(at);
            self.by_id.entry(id).or_default().push(at);
        }
        self.all.push(Certificate { key, source: source.clone() });
    }
}

/// The primary key of a key, by the identifiers that [`Certificate::maker`] gives.
fn primary(maker: &str) -> &str {
    maker.split_once('.').map_or(maker, |(primary, _)| primary)
}

impl Certificate {
    /// Whether the key at `place` may sign for this certificate.
    fn signs_by(&self, place: Option<usize>, now: Time) -> bool {
        let Some(place) = place else {
            return policy::primary_signs(&self.key, now).is_ok();
        };
        let subkey = self.key.public_subkeys.get(place);
        subkey.is_some_and(|subkey| policy::subkey_signs(&self.key, subkey, now).is_ok())
    }

    /// Whether this copy revokes the key at `place`. Who revokes the primary key revokes all.
    fn revokes(&self, place: Option<usize>) -> bool {
        let subkey = place.and_then(|place| self.key.public_subkeys.get(place));
        policy::is_revoked(&self.key)
            || subkey.is_some_and(|subkey| policy::is_subkey_revoked(&self.key, subkey))
    }

    /// The identifier of the key at `place` as the maker of a signature. That of a subkey names its certificate as well, because
    /// anybody can list another certificate's subkey.
    pub(super) fn maker(&self, place: Option<usize>) -> Fingerprint {
        let primary = self.fingerprint();
        let Some(subkey) = place.and_then(|place| self.key.public_subkeys.get(place)) else {
            return primary;
        };
        Fingerprint(format!("{primary}.{}", fingerprint(&subkey.key.fingerprint())).into())
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        PublicKey::fingerprint(&self.key)
    }

    fn user(&self) -> String {
        let user = self.key.details.users.first();
        user.map_or_else(String::new, |user| String::from_utf8_lossy(user.id.id()).into_owned())
    }
}

#[cfg(test)]
mod tests;
