//! The signatures at the front of an index or a package.
//!
//! The first gzip member holds `.SIGN.<kind>.<name of the key>` files and nothing else. Neither a signature nor a
//! digest covers this member. apk reads any other file in it as part of the package or index, and then refuses the
//! whole file. So larder refuses it too: otherwise an attacker on the path could add a file and make larder store a
//! body that no client accepts. The caller supplies the hashes of the signed bytes. One valid signature is enough, as
//! for apk.

use aws_lc_rs::digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512};

use super::broken::Broken;
use super::shown;
use super::tar::{Files, Tar};
use crate::ecosystem::bounded::Over;
use crate::keyring::{Fault, Fingerprint, Keyring, NotSigned, RsaHash};

/// The prefix of the names of signature files.
const PREFIX: &str = ".SIGN.";

/// The maximum length of a signature, in bytes, as in apk-tools.
const MAX_SIGNATURE: u64 = 64 << 10;

/// The maximum number of signatures of one file. Real files have one, or two during a key change.
const MAX_SIGNATURES: usize = 16;

/// The maximum expanded length of the member with the signatures, in bytes.
pub(super) const MAX_MEMBER: u64 = 2 << 20;

/// One `.SIGN.` file.
struct Signature {
    kind: Option<RsaHash>,
    key: String,
    bytes: Vec<u8>,
}

/// The signatures of a file, collected from its first member.
#[derive(Default)]
pub(super) struct Signatures {
    all: Vec<Signature>,
    /// Whether the first file is a signature. If not, the member is not a signature member.
    leads: Option<bool>,
    taking: bool,
}

/// The result of valid signatures.
pub(super) struct Signed {
    /// The signers, each once.
    pub(super) signers: Vec<Fingerprint>,
    /// Whether every valid signature is over SHA-1.
    pub(super) weak_hash: bool,
}

impl Signatures {
    /// Whether the member is a signature member.
    pub(super) fn lead(&self) -> bool {
        self.leads == Some(true)
    }

    /// Checks the end of the member; `tar` is the state of its archive. Blocks of zeros are refused in a signature
    /// member, because for apk they would also end the archive in the members that follow.
    pub(super) fn end_member(&self, tar: &Tar) -> Result<(), Broken> {
        tar.finish()?;
        if self.lead() && tar.is_over() {
            return Err(Broken::form("its signatures end the whole archive"));
        }
        Ok(())
    }

    /// Verifies the signatures over the bytes with the digests `hashed`.
    pub(super) fn judge(&self, hashed: &Hashed, keys: &Keyring) -> Result<Signed, NotSigned> {
        let mut signers = Vec::new();
        let mut weak_hash = true;
        let mut faults = Vec::new();
        for Signature { kind, key, bytes } in &self.all {
            let Some(hash) = *kind else {
                faults.push(Fault::Kind("DSA and unknown"));
                continue;
            };
            match keys.verify_rsa(key, hash, hashed.by(hash), bytes) {
                Ok(fingerprint) => {
                    signers.push(fingerprint);
                    weak_hash &= hash == RsaHash::Sha1;
                }
                Err(fault) => faults.push(fault),
            }
        }
        if signers.is_empty() {
            return Err(NotSigned { faults });
        }
        signers.sort_unstable();
        signers.dedup();
        Ok(Signed { signers, weak_hash })
    }
}

impl Files for Signatures {
    fn begin(&mut self, name: &str, size: u64) -> Result<(), Broken> {
        let signature = name.strip_prefix(PREFIX);
        self.leads.get_or_insert_with(|| signature.is_some());
        self.taking = false;
        if !self.lead() {
            return Ok(());
        }
        let Some(signature) = signature else {
            let name = shown(name);
            return Err(Broken::form(format!(
                "a file among its signatures is not a signature: {name:?}"
            )));
        };
        let Some((kind, key)) = signature.split_once('.') else {
            return Ok(());
        };
        self.taking = true;
        // Key names are only looked up and never opened as files. A name that is a path is an attempted attack.
        if key.is_empty() || key.contains(['/', '\\']) || key.chars().any(char::is_control) {
            let key = shown(key);
            return Err(Broken::form(format!("a signature names its key by a path: {key:?}")));
        }
        if size > MAX_SIGNATURE {
            return Err(Over { limit: MAX_SIGNATURE, unit: "bytes in one signature" }.into());
        }
        if self.all.len() >= MAX_SIGNATURES {
            return Err(Over { limit: MAX_SIGNATURES as u64, unit: "signatures" }.into());
        }
        let kind = match kind {
            "RSA" => Some(RsaHash::Sha1),
            "RSA256" => Some(RsaHash::Sha256),
            "RSA512" => Some(RsaHash::Sha512),
            _ => None,
        };
        self.all.push(Signature { kind, key: key.to_owned(), bytes: Vec::new() });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(signature) = self.all.last_mut().filter(|_| self.taking) {
            signature.bytes.extend(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        self.taking = false;
        Ok(())
    }

    fn other(&mut self) -> Result<(), Broken> {
        self.leads.get_or_insert(false);
        if self.lead() {
            return Err(Broken::form("an entry among its signatures is not a file"));
        }
        Ok(())
    }
}

/// Computes the hashes that a signature may be over, in one pass.
#[derive(Clone)]
pub(super) struct Hashes {
    sha1: Context,
    sha256: Context,
    sha512: Context,
}

/// The digests of the signed bytes.
pub(super) struct Hashed {
    pub(super) sha1: Digest,
    pub(super) sha256: Digest,
    sha512: Digest,
}

impl Hashes {
    pub(super) fn new() -> Self {
        Self {
            sha1: Context::new(&SHA1_FOR_LEGACY_USE_ONLY),
            sha256: Context::new(&SHA256),
            sha512: Context::new(&SHA512),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        for context in [&mut self.sha1, &mut self.sha256, &mut self.sha512] {
            context.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Hashed {
        Hashed {
            sha1: self.sha1.finish(),
            sha256: self.sha256.finish(),
            sha512: self.sha512.finish(),
        }
    }
}

impl Hashed {
    fn by(&self, hash: RsaHash) -> &Digest {
        match hash {
            RsaHash::Sha1 => &self.sha1,
            RsaHash::Sha256 => &self.sha256,
            RsaHash::Sha512 => &self.sha512,
        }
    }
}
