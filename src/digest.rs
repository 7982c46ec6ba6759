//! Digests, of which promises consist.
//!
//! A [`Digest`] is a checked pair of algorithm and bytes; it cannot have the wrong length. A [`Hashing`] computes
//! several digests in one pass over the bytes. Some promises are about a file's content and not about its bytes; the
//! ecosystem supplies the code that computes those digests ([`Content`]).
//!
//! SHA-1 and the SHA-2 family come from the TLS provider, which is 1.7 times as fast as the portable code on machines
//! without SHA instructions. BLAKE2b and MD5, which the provider lacks, come from `RustCrypto`.

use std::fmt;

use blake2::digest::consts::U32;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A hash algorithm that a package index may use for its promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5 (RFC 1321): broken, read only as a hint.
    Md5 = 1,
    /// SHA-1 (FIPS 180-4): collisions exist, read only as a hint.
    Sha1 = 2,
    /// SHA-256 (FIPS 180-4).
    Sha256 = 3,
    /// SHA-384 (FIPS 180-4).
    Sha384 = 4,
    /// SHA-512 (FIPS 180-4).
    Sha512 = 5,
    /// BLAKE2b with 32 bytes of output (RFC 7693), as in the paths of PyPI's files.
    Blake2b256 = 6,
    /// SHA-1 of the control part of an apk package (v2); the control part holds the digest of the data part.
    Apk2Sha1 = 7,
    /// SHA-256 of the control part of an apk package (v2).
    Apk2Sha256 = 8,
}

impl Algorithm {
    /// Every algorithm, weakest first.
    pub const ALL: [Self; 8] = [
        Self::Md5,
        Self::Sha1,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Blake2b256,
        Self::Apk2Sha1,
        Self::Apk2Sha256,
    ];

    /// The length of a digest in bytes.
    pub const fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 | Self::Apk2Sha1 => 20,
            Self::Sha256 | Self::Blake2b256 | Self::Apk2Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Whether a match proves that the bytes are the promised ones, because nobody can make a second body for the
    /// digest.
    pub const fn is_strong(self) -> bool {
        match self {
            Self::Md5 | Self::Sha1 | Self::Apk2Sha1 => false,
            Self::Sha256 | Self::Sha384 | Self::Sha512 | Self::Blake2b256 | Self::Apk2Sha256 => {
                true
            }
        }
    }

    /// Whether the digest is of a file's content. Files with different bytes may have the same content digest, so it
    /// never identifies a file's bytes. A [`Content`] computes it.
    pub const fn is_of_content(self) -> bool {
        matches!(self, Self::Apk2Sha1 | Self::Apk2Sha256)
    }

    /// The name as logs and commands spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Blake2b256 => "blake2b-256",
            Self::Apk2Sha1 => "apk2-sha1",
            Self::Apk2Sha256 => "apk2-sha256",
        }
    }

    /// Parses a name as indexes spell it, ignoring case; `None` for algorithms that larder does not know.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut lower = name.to_ascii_lowercase();
        lower.retain(|c| c != '-' && c != '_');
        Some(match lower.as_str() {
            "md5" | "md5sum" => Self::Md5,
            "sha1" => Self::Sha1,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "blake2b256" => Self::Blake2b256,
            _ => return None,
        })
    }

    /// The algorithm for a code in a claim segment.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| *algorithm as u8 == code)
    }

    const fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

/// A set of algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithms(u16);

impl Algorithms {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// This set plus `algorithm`.
    #[must_use]
    pub const fn with(self, algorithm: Algorithm) -> Self {
        Self(self.0 | algorithm.bit())
    }

    /// Whether `algorithm` is in the set.
    pub const fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & algorithm.bit() != 0
    }
}

impl FromIterator<Algorithm> for Algorithms {
    fn from_iter<I: IntoIterator<Item = Algorithm>>(algorithms: I) -> Self {
        algorithms.into_iter().fold(Self::NONE, Self::with)
    }
}

/// A digest with a known algorithm and the right length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The digest, padded with zeros.
    bytes: [u8; 64],
}

impl Digest {
    /// A digest from its raw bytes; `None` if the length is not the algorithm's.
    pub fn new(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        if raw.len() != algorithm.length() {
            return None;
        }
        let mut bytes = [0; 64];
        bytes.get_mut(..raw.len())?.copy_from_slice(raw);
        Some(Self { algorithm, bytes })
    }

    /// A digest from hexadecimal text in either case; `None` unless the text has exactly the algorithm's length.
    pub fn from_hex(algorithm: Algorithm, text: &str) -> Option<Self> {
        let mut raw = [0; 64];
        let raw = raw.get_mut(..algorithm.length())?;
        unhex(text, raw)?;
        Self::new(algorithm, raw)
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.length()).unwrap_or(&self.bytes)
    }

    /// Lower-case hexadecimal.
    pub fn to_hex(&self) -> String {
        hex(self.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SHA-256 of a body, which is its name in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlobId([u8; 32]);

impl BlobId {
    /// A name from its 32 bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A name from 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        unhex(text, &mut bytes)?;
        Some(Self(bytes))
    }

    /// The name's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Lower-case hexadecimal, which is the name of the blob's file.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// The name as a digest.
    pub fn digest(&self) -> Digest {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(self.0) {
            *to = from;
        }
        Digest { algorithm: Algorithm::Sha256, bytes }
    }

    /// The blob name equal to `digest`, if that is a SHA-256.
    pub fn from_digest(digest: &Digest) -> Option<Self> {
        (digest.algorithm() == Algorithm::Sha256)
            .then(|| digest.as_bytes().try_into().ok().map(Self))
            .flatten()
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Computes the digests of a file's content from its bytes as they arrive.
pub trait Content: Send {
    /// Takes in the next bytes.
    fn update(&mut self, bytes: &[u8]);

    /// The digests of the content, or why the file has none.
    fn finish(self: Box<Self>) -> Result<Vec<Digest>, String>;
}

/// Creates a [`Content`].
pub type NewContent = fn() -> Box<dyn Content>;

/// The digests to compute for a body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Digests of its bytes; content digests in this set have no effect.
    pub algorithms: Algorithms,
    /// Creates the reader of its content, if content digests are needed.
    pub content: Option<NewContent>,
}

impl From<Algorithms> for Wanted {
    fn from(algorithms: Algorithms) -> Self {
        Self { algorithms, content: None }
    }
}

/// Digests being computed in one pass: always SHA-256, others on request.
pub struct Hashing {
    sha256: aws_lc_rs::digest::Context,
    others: Vec<(Algorithm, Running)>,
    content: Option<Box<dyn Content>>,
}

enum Running {
    Provider(aws_lc_rs::digest::Context),
    Blake2b(Box<blake2::Blake2b<U32>>),
    Md5(Box<md5::Md5>),
}

impl Hashing {
    /// Starts SHA-256 and everything in `wanted`.
    pub fn new(wanted: impl Into<Wanted>) -> Self {
        use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
        let Wanted { algorithms, content } = wanted.into();
        let others = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| algorithms.contains(*algorithm))
            .filter_map(|algorithm| {
                let running = match algorithm {
                    Algorithm::Sha256 | Algorithm::Apk2Sha1 | Algorithm::Apk2Sha256 => return None,
                    Algorithm::Md5 => Running::Md5(Box::default()),
                    Algorithm::Sha1 => Running::Provider(Context::new(&SHA1_FOR_LEGACY_USE_ONLY)),
                    Algorithm::Sha384 => Running::Provider(Context::new(&SHA384)),
                    Algorithm::Sha512 => Running::Provider(Context::new(&SHA512)),
                    Algorithm::Blake2b256 => Running::Blake2b(Box::default()),
                };
                Some((algorithm, running))
            })
            .collect();
        Self { sha256: Context::new(&SHA256), others, content: content.map(|begin| begin()) }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        for (_, running) in &mut self.others {
            match running {
                Running::Provider(context) => context.update(bytes),
                Running::Blake2b(state) => state.update(bytes),
                Running::Md5(state) => state.update(bytes),
            }
        }
        if let Some(content) = &mut self.content {
            content.update(bytes);
        }
    }

    /// Finishes every computation. The first digest is the SHA-256.
    pub fn finish(self) -> Digests {
        let mut blob = [0; 32];
        for (to, from) in blob.iter_mut().zip(self.sha256.finish().as_ref()) {
            *to = *from;
        }
        let blob = BlobId(blob);
        let mut all = vec![blob.digest()];
        for (algorithm, running) in self.others {
            let digest = match running {
                Running::Provider(context) => Digest::new(algorithm, context.finish().as_ref()),
                Running::Blake2b(state) => Digest::new(algorithm, &state.finalize()),
                Running::Md5(state) => Digest::new(algorithm, &state.finalize()),
            };
            all.extend(digest);
        }
        let mut fault = None;
        match self.content.map(Content::finish) {
            Some(Ok(digests)) => all.extend(digests),
            Some(Err(why)) => fault = Some(why),
            None => {}
        }
        Digests { blob, all, fault }
    }
}

impl fmt::Debug for Hashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.others.iter().map(|(algorithm, _)| algorithm)).finish()
    }
}

/// The digests of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    blob: BlobId,
    all: Vec<Digest>,
    fault: Option<String>,
}

impl Digests {
    /// The SHA-256, as a blob name.
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// The digest by `algorithm`, if it was computed.
    pub fn get(&self, algorithm: Algorithm) -> Option<&Digest> {
        self.all.iter().find(|digest| digest.algorithm() == algorithm)
    }

    /// Why content digests are missing, if they were requested.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Every digest that was computed.
    pub fn iter(&self) -> impl Iterator<Item = &Digest> {
        self.all.iter()
    }
}

/// SHA-256 of a few short pieces, each preceded by its length, so that different lists of pieces hash differently.
pub fn key_hash<const N: usize>(pieces: [&[u8]; N]) -> [u8; 32] {
    let mut hasher = sha2::Sha256::new();
    for piece in pieces {
        hasher.update((piece.len() as u64).to_le_bytes());
        hasher.update(piece);
    }
    hasher.finalize().into()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Parses hexadecimal of exactly twice `out`'s length.
fn unhex(text: &str, out: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != out.len() * 2 {
        return None;
    }
    for (pair, to) in digits.chunks_exact(2).zip(out) {
        let [high, low] = pair else { return None };
        let value = char::from(*high).to_digit(16)? << 4 | char::from(*low).to_digit(16)?;
        *to = u8::try_from(value).ok()?;
    }
    Some(())
}

/// Calls `take` with each piece of `bytes` that lies in one chunk of `length` bytes, and with whether that chunk ends with it.
/// `filled` is the number of bytes of the running chunk that came before; it is kept up to date.
pub(crate) fn in_chunks(
    filled: &mut u64,
    length: u64,
    mut bytes: &[u8],
    mut take: impl FnMut(&[u8], bool),
) {
    while !bytes.is_empty() {
        let left = usize::try_from(length - *filled).unwrap_or(usize::MAX);
        let (piece, rest) = bytes.split_at(left.min(bytes.len()));
        *filled += piece.len() as u64;
        let ends = *filled == length;
        if ends {
            *filled = 0;
        }
        take(piece, ends);
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4, RFC 1321 and RFC 7693 (32 bytes of output, from the reference tool) for "abc".
    #[test]
    fn known_answers() {
        let mut hashing = Hashing::new(Algorithm::ALL.into_iter().collect::<Algorithms>());
        hashing.update(b"a");
        hashing.update(b"bc");
        let digests = hashing.finish();
        for (algorithm, expected) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            (
                Algorithm::Blake2b256,
                "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319",
            ),
        ] {
            assert_eq!(digests.get(algorithm).unwrap().to_hex(), expected, "{algorithm:?}");
            assert_eq!(
                Digest::from_hex(algorithm, &expected.to_uppercase()),
                digests.get(algorithm).copied()
            );
        }
        assert_eq!(digests.blob().digest(), *digests.get(Algorithm::Sha256).unwrap());
    }

    #[test]
    fn a_digest_of_the_wrong_length_or_alphabet_is_none() {
        assert_eq!(Digest::from_hex(Algorithm::Sha256, "ab"), None);
        assert_eq!(Digest::from_hex(Algorithm::Md5, &"g".repeat(32)), None);
        assert_eq!(Digest::from_hex(Algorithm::Md5, &"é".repeat(16)), None);
        assert_eq!(Digest::new(Algorithm::Sha1, &[0; 21]), None);
    }

    #[test]
    fn key_hash_separates_its_pieces() {
        assert_ne!(key_hash([b"ab", b"c"]), key_hash([b"a", b"bc"]));
    }
}
