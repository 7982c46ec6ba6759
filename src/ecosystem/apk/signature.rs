//! The signatures in front of an index or a package.
//!
//! The first gzip member holds `.SIGN.<kind>.<name of the key>` files and nothing else: no signature covers the member that it
//! lies in, nor does any digest. apk reads what else stands there as part of the package or of the index, and then refuses the
//! whole; so whoever may add to it on the way would spoil for good what is kept here. What they are over, whoever reads the rest tells. One that holds is enough; apk thinks so too.

use aws_lc_rs::digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512};

use super::broken::Broken;
use super::shown;
use super::tar::{Files, Tar};
use crate::ecosystem::bounded::Over;
use crate::keyring::{Fault, Fingerprint, Keyring, NotSigned, RsaHash};

/// What every signature's file begins with.
const PREFIX: &str = ".SIGN.";

/// The longest signature, in bytes, as apk-tools has it.
const MAX_SIGNATURE: u64 = 64 << 10;

/// The most signatures of one file. Real ones have one; while a key is changed, two.
const MAX_SIGNATURES: usize = 16;

/// The longest text of a member of signatures, in bytes.
pub(super) const MAX_MEMBER: u64 = 2 << 20;

/// One `.SIGN.` file.
struct Signature {
    kind: Option<RsaHash>,
    key: String,
    bytes: Vec<u8>,
}

/// The signatures of a file. Takes the files of its first member.
#[derive(Default)]
pub(super) struct Signatures {
    all: Vec<Signature>,
    /// Whether the first file is a signature: if not, the member is something else.
    leads: Option<bool>,
    taking: bool,
}

/// Who signed.
pub(super) struct Signed {
    /// Each signer once.
    pub(super) signers: Vec<Fingerprint>,
    /// Whether every signature that holds is over SHA-1.
    pub(super) weak_hash: bool,
}

impl Signatures {
    /// Whether the member whose files were taken is one of signatures.
    pub(super) fn lead(&self) -> bool {
        self.leads == Some(true)
    }

    /// Whether the member ends as one of signatures does: `tar` is what came of it. Blocks of zeros would end for apk what
    /// follows, too.
    pub(super) fn end_member(&self, tar: &Tar) -> Result<(), Broken> {
        tar.finish()?;
        if self.lead() && tar.is_over() {
            return Err(Broken::form("its signatures end the whole archive"));
        }
        Ok(())
    }

    /// Who signed what has the digests `hashed`.
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
            return Err(Broken::form(format!("a file stands among its signatures: {name:?}")));
        };
        let Some((kind, key)) = signature.split_once('.') else {
            return Ok(());
        };
        self.taking = true;
        // Names are only ever looked up, never opened; one that is a path was made by somebody who hoped otherwise.
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
            return Err(Broken::form("something that is no file stands among its signatures"));
        }
        Ok(())
    }
}

/// What a signature may be over, computed in one pass.
#[derive(Clone)]
pub(super) struct Hashes {
    sha1: Context,
    sha256: Context,
    sha512: Context,
}

/// The digests of what may be signed.
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
