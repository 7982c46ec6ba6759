//! RSA keys that signatures refer to by file name, as in apk.
//!
//! ```text
//! .SIGN.RSA256.<name>  ─▶  <name> looked up in a map  ─▶  RSASSA-PKCS1-v1_5 over the digest of the signed bytes
//! ```
//!
//! The name in a signature is untrusted text from an archive. It is only compared with the names of the key files that
//! larder loaded, and never becomes a path. The map holds the SHA-256 of each name, so that larder can ship keys without
//! the e-mail addresses in their names.
//!
//! Sources: RFC 8017 §8.2; RFC 5280 §4.1 (`SubjectPublicKeyInfo`), RFC 7468 §13; apk-tools' `apk-keys(5)`.

use std::collections::HashMap;

use aws_lc_rs::digest::Digest as Hashed;
use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters,
};
use sha2::{Digest as _, Sha256};

use super::kind::{Contents, KeyFile, KeyKind, Kind, PublicKey, Ring};
use super::{Fault, Fingerprint, KeyDescription, Keyring, NotKeys, Source};
use crate::clock::Time;
use crate::digest::hex;

/// Alpine's keys. Each has a line with the SHA-256 of its name and its display name, then the key in PEM.
const ALPINE: &str = include_str!("data/alpine.pem");

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// The maximum length of a displayed key name, in bytes: the longest file name that file systems allow.
const MAX_NAME: usize = 255;

/// The bytes between the outer length and the modulus in a `SubjectPublicKeyInfo` of an RSA key (RFC 8017 §A.1).
const RSA: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// The suffix of Alpine's key files, mostly after `.rsa`. A signature names its key by the file's name.
const SUFFIX: &str = ".pub";

/// The kind.
pub(super) struct NamedRsa;

impl KeyKind for NamedRsa {
    fn name(&self) -> &'static str {
        "apk"
    }

    fn formats(&self) -> &'static str {
        "an RSA key in PEM"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[SUFFIX]
    }

    fn read(&self, file: &KeyFile<'_>) -> Option<Result<Contents, NotKeys>> {
        let spki = match file.spki()? {
            Ok(spki) => spki,
            Err(error) => return Some(Err(error)),
        };
        let is_rsa = spki.get(..RSA.len() + 4).is_some_and(|head| head.ends_with(&RSA));
        is_rsa.then(|| {
            let key = RsaKeyFile::new(file, &spki)?;
            Ok(Contents { keys: vec![Box::new(key)], damaged: false })
        })
    }

    fn add_built_in(&self, keyring: &mut Keyring) {
        keyring.add_alpine();
    }

    fn is_signer(&self, signer: &str) -> bool {
        signer.len() == 64 && signer.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// A signature names its key by the file's name, so a second file of that name would be another key.
    fn has_copies(&self) -> bool {
        false
    }
}

/// An RSA key, identified by its file's name.
#[derive(Debug)]
struct RsaKeyFile {
    name: Box<str>,
    pem: Box<[u8]>,
}

impl RsaKeyFile {
    fn new(file: &KeyFile<'_>, spki: &[u8]) -> Result<Self, NotKeys> {
        if !is_usable(spki) {
            let why = "it is an RSA key of less than 2048 bits, or a damaged one";
            return Err(NotKeys::Unusable(why.to_owned()));
        }
        let name = file.name;
        // The name becomes a file name in a directory: no path separators and no leading dot.
        let plain =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b'+');
        let well_named =
            name.ends_with(SUFFIX) && !name.starts_with('.') && name.bytes().all(plain);
        if !well_named || name.len() > 200 {
            return Err(NotKeys::Unusable(format!(
                "it is an RSA key, and archives know those by their file's name, which ends with {SUFFIX}"
            )));
        }
        Ok(Self { name: name.into(), pem: file.text.into() })
    }
}

impl PublicKey for RsaKeyFile {
    fn kind(&self) -> Kind {
        Kind(&NamedRsa)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.name.clone())
    }

    fn to_file(&self) -> Option<(String, Vec<u8>)> {
        Some((self.name.to_string(), self.pem.to_vec()))
    }

    fn add_to(self: Box<Self>, keyring: &mut Keyring, source: &Source) {
        keyring.add_rsa(&self.pem, &self.name, source);
    }
}

/// The hash algorithm of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsaHash {
    /// SHA-1, which apk-tools 2 still signs with.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl RsaHash {
    fn scheme(self) -> &'static RsaParameters {
        match self {
            Self::Sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
        }
    }
}

/// RSA keys by name. Two files with the same name in two directories are two keys.
#[derive(Debug, Default)]
pub(super) struct RsaKeys {
    by_name: HashMap<[u8; 32], Vec<usize>>,
    all: Vec<RsaKey>,
}

#[derive(Debug)]
struct RsaKey {
    /// The display name.
    name: Box<str>,
    spki: Vec<u8>,
    fingerprint: Fingerprint,
    source: Source,
}

/// Whether a `SubjectPublicKeyInfo` is an RSA key of at least 2048 bits.
fn is_usable(spki: &[u8]) -> bool {
    // All three schemes accept the same keys.
    ParsedPublicKey::new(RsaHash::Sha256.scheme(), spki).is_ok()
}

impl Keyring {
    /// Adds the key in `pem`, under the name that signatures use for it: the name of its file.
    fn add_rsa(&mut self, pem: &[u8], name: &str, source: &Source) {
        if !self.rsa.read(pem, Sha256::digest(name).into(), name, source) {
            tracing::warn!(%source, "this key is left out: it is not of RSA, or too short");
        }
    }

    /// The fingerprint of the key that made `signature` over `hashed`; `name` is the key name that the signature gives.
    pub fn verify_rsa(
        &self,
        name: &str,
        hash: RsaHash,
        hashed: &Hashed,
        signature: &[u8],
    ) -> Result<Fingerprint, Fault> {
        let id: [u8; 32] = Sha256::digest(name).into();
        let keys: Vec<&RsaKey> = self
            .rsa
            .by_name
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|at| self.rsa.all.get(*at))
            .collect();
        if keys.is_empty() {
            return Err(Fault::UnknownName(shown(name).into()));
        }
        let holds = |key: &&RsaKey| {
            ParsedPublicKey::new(hash.scheme(), &key.spki)
                .is_ok_and(|key| key.verify_digest_sig(hashed, signature).is_ok())
        };
        match keys.into_iter().find(holds) {
            Some(key) => Ok(key.fingerprint.clone()),
            None => Err(Fault::Bad(format!("{} did not sign this", shown(name)).into())),
        }
    }

    /// Adds the compiled-in keys.
    fn add_alpine(&mut self) {
        let source = Source::BuiltIn("Alpine".to_owned());
        for block in ALPINE.split_inclusive(END) {
            let Some((names, pem)) = block.split_once(BEGIN) else { continue };
            let name = names.lines().next_back().and_then(|line| line.split_once(' '));
            let read = name.is_some_and(|(id, name)| {
                let pem = format!("{BEGIN}{pem}");
                let id = crate::digest::BlobId::from_hex(id).map(|id| *id.as_bytes());
                id.is_some_and(|id| self.rsa.read(pem.as_bytes(), id, name, &source))
            });
            if !read {
                tracing::error!(?name, "this key is left out");
            }
        }
    }
}

impl Ring for RsaKeys {
    fn len(&self) -> usize {
        self.all.len()
    }

    fn signers(&self) -> Vec<(Fingerprint, &Source)> {
        self.all.iter().map(|key| (key.fingerprint.clone(), &key.source)).collect()
    }

    fn about(&self, _: Time, of: &dyn Fn(&Fingerprint) -> bool) -> Vec<KeyDescription> {
        let described =
            self.all.iter().filter(|key| of(&key.fingerprint)).map(|key| KeyDescription {
                kind: Kind(&NamedRsa),
                fingerprint: Fingerprint(key.name.clone()),
                signer: key.fingerprint.clone(),
                user: String::new(),
                ends: None,
                source: key.source.clone(),
            });
        described.collect()
    }
}

impl RsaKeys {
    fn read(&mut self, pem: &[u8], id: [u8; 32], name: &str, source: &Source) -> bool {
        let Ok(parsed) = pem::parse(pem) else {
            return false;
        };
        let spki = parsed.into_contents();
        if !is_usable(&spki) {
            return false;
        }
        let fingerprint = hex(&Sha256::digest(&spki)).to_ascii_uppercase();
        let fingerprint = Fingerprint(fingerprint.into());
        let of_name = self.by_name.entry(id).or_default();
        of_name.push(self.all.len());
        self.all.push(RsaKey { name: name.into(), spki, fingerprint, source: source.clone() });
        true
    }
}

/// An untrusted name, shortened and without control characters, for messages.
fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512, digest};
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512};

    use super::*;

    fn pem(key: &KeyPair) -> String {
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        pem::encode(&pem::Pem::new("PUBLIC KEY", spki.as_ref()))
    }

    #[test]
    fn alpines_keys_are_all_there_and_found_by_name() {
        let keys = Keyring::built_in();
        let all: Vec<KeyDescription> = keys.rsa.about(Time::from_millis(0), &|_| true);
        assert_eq!(all.len(), ALPINE.matches(BEGIN).count());
        assert!(all.len() >= 18 && all.iter().all(|key| key.signer.0.len() == 64));
        // An unknown name, and a known one spelt as apk does: for the known one, a key exists and the signature is
        // invalid.
        let hashed = digest(&SHA256, b"x");
        let fault =
            |name: &str| keys.verify_rsa(name, RsaHash::Sha256, &hashed, &[0; 256]).unwrap_err();
        let host = ["lists", "alpinelinux", "org"].join(".");
        let known = format!("alpine-devel@{host}-6165ee59.rsa.pub");
        assert!(matches!(fault(&known), Fault::Bad(_)));
        assert!(matches!(fault("alpine-devel-6165ee59.rsa.pub"), Fault::UnknownName(_)));
    }

    #[test]
    fn a_signature_holds_by_the_key_of_that_name_over_that_digest() {
        let (key, other) = [(); 2].map(|()| KeyPair::generate(KeySize::Rsa2048).unwrap()).into();
        let mut keys = Keyring::new();
        let source = Source::Operator("test".to_owned());
        for (key, name) in [(&key, "one.rsa.pub"), (&other, "two.rsa.pub")] {
            assert_eq!(keys.read(pem(key).as_bytes(), name, &source).unwrap(), 1);
        }
        let mut signature = vec![0; key.public_modulus_len()];
        let random = SystemRandom::new();
        let message = b"what was signed";
        key.sign(&RSA_PKCS1_SHA512, &random, message, &mut signature).unwrap();
        let verify =
            |name: &str, hash, hashed: &Hashed| keys.verify_rsa(name, hash, hashed, &signature);
        let hashed = digest(&SHA512, message);
        let signer = verify("one.rsa.pub", RsaHash::Sha512, &hashed).unwrap();
        assert_eq!(signer, keys.rsa.about(Time::from_millis(0), &|_| true)[0].signer);
        for (name, hash, hashed) in [
            ("two.rsa.pub", RsaHash::Sha512, hashed),
            ("one.rsa.pub", RsaHash::Sha512, digest(&SHA512, b"something else")),
            ("one.rsa.pub", RsaHash::Sha256, digest(&SHA256, message)),
            ("one.rsa.pub", RsaHash::Sha1, digest(&SHA1_FOR_LEGACY_USE_ONLY, message)),
        ] {
            assert!(matches!(verify(name, hash, &hashed), Err(Fault::Bad(_))), "{name} {hash:?}");
        }
        for name in ["/etc/apk/keys/one.rsa.pub", "../one.rsa.pub", "one.rsa", ""] {
            let unknown = verify(name, RsaHash::Sha512, &hashed);
            assert!(matches!(unknown, Err(Fault::UnknownName(_))), "{name}");
        }
        key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
        let hashed = digest(&SHA256, message);
        assert!(keys.verify_rsa("one.rsa.pub", RsaHash::Sha256, &hashed, &signature).is_ok());
    }

    #[test]
    fn files_that_are_no_keys_are_none() {
        let mut keys = Keyring::new();
        let short = include_str!("data/alpine.pem").lines().take(12).collect::<String>();
        let edwards = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().public_key_pem();
        let source = Source::Operator("test".to_owned());
        for no_key in ["", "x", BEGIN, &short, &edwards] {
            assert!(keys.read(no_key.as_bytes(), "x.rsa.pub", &source).is_err(), "{no_key}");
            keys.add_rsa(no_key.as_bytes(), "x.rsa.pub", &source);
        }
        assert_eq!(keys.len(), 0);
    }
}
