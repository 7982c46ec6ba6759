//! The claims of one version of an index document, in a sorted, immutable file that is read by position.
//!
//! ```text
//! header    magic 4 │ version 2 │ digest width 2 │ rows 8 │ manifest length 4 │ CRC-32 4
//! blocks    32 rows each, the last one fewer, each block followed by its CRC-32
//! fences    the first eight bytes of each block's first match key, then their CRC-32
//! prints    two further bytes of each row's match key, then their CRC-32
//! manifest  sealed: the index of these claims, and the topics under which they are found
//!
//! row       match key 16 │ group 4 │ algorithm 1 │ size 8 │ digest, padded to the segment's widest
//! ```
//!
//! The highest bit of the algorithm byte tells that the claim has a signature of its own.
//!
//! Numbers are big-endian, so that rows sort as their bytes do. The digests of one claim share a group, and all of them
//! must match. A look-up searches the fences, which are in memory while the segment is open, and then reads one or two
//! blocks with `pread`. Most indexes under a topic do not name the wanted file; the prints, also in memory, tell that
//! without a system call. The file is not memory-mapped, because truncating a mapped file would kill the process with
//! SIGBUS.
//!
//! Any damage makes the whole segment unreadable, and the caller drops it: its index then makes no claims. A segment
//! that cannot be read at the moment (no free file descriptor, the disk does not respond) is not damaged. Its claims
//! are unknown until it can be read, and nothing that they might govern is delivered.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::durable;
use super::sealed::{Kind, seal, unseal, unseal_shorter};
use crate::claim::{SignedBy, Topic};
use crate::clock::Time;
use crate::digest::{Algorithm, BlobId, Digest};
use crate::ecosystem::MAX_CLAIMS;
use crate::proof::Rank;
use crate::target::{MatchKey, Origin, Partition, Root, Target};

/// Length of a row with the widest digest.
pub(super) const ROW: usize = PREFIX + 64;

/// Maximum number of rows of a segment: at the limit of claims, three digests each, as in apt's `Packages`.
pub(super) const MAX_ROWS: u64 = 3 * MAX_CLAIMS;

const PREFIX: usize = 16 + 4 + 1 + 8;
const HEADER: usize = 24;
const MAGIC: [u8; 4] = *b"LclM";
const VERSION: u16 = 2;

/// Rows per block. With SHA-256 a block is 2 KiB, which is read as quickly as one row.
const BLOCK_ROWS: u64 = 32;

/// Maximum number of blocks that one look-up reads. Further claims of an index about the same target are ignored.
const MAX_BLOCKS_READ: u64 = 4;

/// Maximum length of a manifest: 64 topics, and URLs limited by [`crate::target::MAX_URL`].
const MAX_MANIFEST: u32 = 8 << 20;

/// Flag in the algorithm byte: the claim has a signature of its own.
const SIGNED: u8 = 0x80;

/// The value of `size` if the index promised none.
const NO_SIZE: u64 = u64::MAX;

const MANIFEST: Kind = Kind { magic: *b"LmaN", version: 5 };

/// The version before it: the same without [`Manifest::signed_by`], its last field.
const UNSIGNED_MANIFEST: Kind = Kind { version: 4, ..MANIFEST };

/// That field, if it is `None`.
const NOT_NOTED: &[u8] = &[0];

/// One digest of one claim, in the file's byte order; sorts by match key, then by claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row(pub(super) [u8; ROW]);

/// Describes the index whose claims a segment holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The index's origin, for revalidating it.
    pub(super) origin: Origin,
    /// Path and query of its URL. They contain no secret, because an index with a token in its URL makes no claims.
    pub(super) path_and_query: String,
    /// Its variant.
    pub(super) variant: String,
    /// The partition for which these claims hold: public, or the credential with which the index was read.
    pub(super) reader: Partition,
    /// Its URL for display.
    pub(super) shown: String,
    /// The SHA-256 of the document.
    pub(super) document: BlobId,
    /// When these claims became current.
    pub(super) published: Time,
    /// The highest rank of proof that its claims give.
    pub(super) rank: Rank,
    /// The root under which it may select and refuse.
    pub(super) root: Root,
    /// The topics under which its claims are found.
    pub(super) topics: Vec<Topic>,
    /// The origins of the files that it names; only the first few.
    pub(super) origins: Vec<Origin>,
    /// How many claims it makes.
    pub(super) claims: u64,
    /// Sums up which of them have a signature of their own, as a sum over their match keys. When other signing keys are
    /// known, the same document gives another sum.
    pub(super) signed: u64,
    /// Whether a known key that has expired since signed it.
    pub(super) expired_key: bool,
    /// Whose signatures they rest on; `None` if that was not noted: an earlier larder published them.
    pub(super) signed_by: Option<SignedBy>,
}

/// One claim of a segment about a match key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// All of these must match. Not empty.
    pub(super) digests: Vec<Digest>,
    /// The length in bytes, if promised.
    pub(super) size: Option<u64>,
    /// Whether the claim has a signature of its own.
    pub(super) signed: bool,
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    layout: Layout,
    fences: Box<[u64]>,
    prints: Box<[[u8; 2]]>,
}

impl Row {
    pub(super) fn new(
        key: MatchKey,
        group: u32,
        digest: &Digest,
        size: Option<u64>,
        signed: bool,
    ) -> Self {
        let mut row = [0; ROW];
        let mark = if signed { SIGNED } else { 0 };
        let pieces = key
            .0
            .into_iter()
            .chain(group.to_be_bytes())
            .chain([digest.algorithm() as u8 | mark])
            .chain(size.unwrap_or(NO_SIZE).to_be_bytes())
            .chain(digest.as_bytes().iter().copied());
        for (to, from) in row.iter_mut().zip(pieces) {
            *to = from;
        }
        Self(row)
    }

    /// The first eight bytes of the match key.
    pub(super) fn fence(&self) -> u64 {
        fence(&self.0)
    }
}

impl Manifest {
    /// Its length in a segment, in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        seal(MANIFEST, self).map(|bytes| bytes.len() as u64)
    }

    fn unseal(bytes: &[u8]) -> Option<Self> {
        unseal(MANIFEST, bytes).or_else(|| unseal_shorter(UNSIGNED_MANIFEST, bytes, NOT_NOTED))
    }

    /// The index's target; `None` if the manifest's URL is invalid.
    pub(super) fn index(&self) -> Option<Target> {
        let target = Target::new(self.origin.clone(), &self.path_and_query).ok()?;
        Some(target.with_variant(&self.variant))
    }
}

/// The positions of all parts of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// The widest digest, in bytes.
    width: u16,
    rows: u64,
    manifest: u32,
}

impl Layout {
    fn row(self) -> u64 {
        PREFIX as u64 + u64::from(self.width)
    }

    fn blocks(self) -> u64 {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    fn block_at(self, block: u64) -> u64 {
        HEADER as u64 + block * (BLOCK_ROWS * self.row() + 4)
    }

    fn rows_in(self, block: u64) -> u64 {
        (self.rows - block * BLOCK_ROWS).min(BLOCK_ROWS)
    }

    fn fences_at(self) -> u64 {
        HEADER as u64 + self.rows * self.row() + self.blocks() * 4
    }

    fn prints_at(self) -> u64 {
        self.fences_at() + self.blocks() * 8 + 4
    }

    fn manifest_at(self) -> u64 {
        self.prints_at() + self.rows * 2 + 4
    }

    fn length(self) -> u64 {
        self.manifest_at() + u64::from(self.manifest)
    }

    fn header(self) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_be_bytes());
        header.extend(self.width.to_be_bytes());
        header.extend(self.rows.to_be_bytes());
        header.extend(self.manifest.to_be_bytes());
        header.extend(crc32fast::hash(&header).to_be_bytes());
        header
    }

    /// Reads the header and checks it against the file's length.
    fn read(file: &File) -> io::Result<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let [_, _, _, _, _, _, w0, w1, rows @ .., m0, m1, m2, m3, _, _, _, _] = header;
        let layout = Self {
            width: u16::from_be_bytes([w0, w1]),
            rows: u64::from_be_bytes(rows),
            manifest: u32::from_be_bytes([m0, m1, m2, m3]),
        };
        // Check the limits first, so that the computations below cannot overflow.
        let sane = layout.rows <= MAX_ROWS && layout.width <= 64 && layout.manifest <= MAX_MANIFEST;
        if !sane || header != *layout.header() || file.metadata()?.len() != layout.length() {
            return Err(damaged("its header"));
        }
        Ok(layout)
    }
}

/// The length of a segment of `rows` rows without its manifest; `width` is the widest digest's.
pub(super) fn length_of(rows: u64, width: u16) -> u64 {
    Layout { width, rows, manifest: 0 }.length()
}

/// Writes a segment of `rows` sorted rows, whose widest digest has `width` bytes. Does not sync.
pub(super) fn write(
    file: &File,
    sorted: impl Iterator<Item = io::Result<Row>>,
    rows: u64,
    width: u16,
    manifest: &Manifest,
) -> io::Result<()> {
    let manifest = seal(MANIFEST, manifest)?;
    let layout =
        Layout { width, rows, manifest: u32::try_from(manifest.len()).map_err(io::Error::other)? };
    let mut to = BufWriter::with_capacity(1 << 16, file);
    to.write_all(&layout.header())?;
    let row_width = PREFIX + usize::from(width);
    let (mut fences, mut prints) = (Vec::new(), Vec::new());
    let mut block = Vec::new();
    let mut written = 0;
    for row in sorted {
        let row = row?;
        if written % BLOCK_ROWS == 0 {
            end_block(&mut to, &mut block)?;
            fences.extend(row.fence().to_be_bytes());
        }
        prints.extend(print(&row.0));
        block.extend(row.0.iter().take(row_width));
        written += 1;
    }
    end_block(&mut to, &mut block)?;
    if written != rows {
        return Err(io::Error::other("the claims were miscounted"));
    }
    for mut table in [fences, prints] {
        table.extend(crc32fast::hash(&table).to_be_bytes());
        to.write_all(&table)?;
    }
    to.write_all(&manifest)?;
    to.flush()
}

fn end_block(to: &mut impl io::Write, block: &mut Vec<u8>) -> io::Result<()> {
    if !block.is_empty() {
        block.extend(crc32fast::hash(block).to_be_bytes());
        to.write_all(block)?;
        block.clear();
    }
    Ok(())
}

/// Reads a segment's manifest, and its length in bytes.
pub(super) fn manifest(path: &Path) -> io::Result<(Manifest, u64)> {
    let file = durable::open(path).map_err(|error| durable::naming(path, &error))?;
    let layout = Layout::read(&file)?;
    let mut bytes = vec![0; layout.manifest as usize];
    file.read_exact_at(&mut bytes, layout.manifest_at())?;
    let manifest = Manifest::unseal(&bytes).ok_or_else(|| damaged("its manifest"))?;
    Ok((manifest, layout.length()))
}

// === impl Segment ===

impl Segment {
    /// Opens a segment and reads its fences and prints into memory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = durable::open(path).map_err(|error| durable::naming(path, &error))?;
        let layout = Layout::read(&file)?;
        let table = |from: u64, to: u64| {
            let mut bytes = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, from)?;
            checked(&bytes).map(<[u8]>::to_vec).ok_or_else(|| damaged("its tables"))
        };
        let fences = table(layout.fences_at(), layout.prints_at())?;
        let prints = table(layout.prints_at(), layout.manifest_at())?;
        let fences =
            fences.as_chunks::<8>().0.iter().map(|fence| u64::from_be_bytes(*fence)).collect();
        let prints = prints.as_chunks::<2>().0.into();
        Ok(Self { file, layout, fences, prints })
    }

    /// The memory that fences and prints take, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.fences.len() * 8 + self.prints.len() * 2
    }

    /// Every claim about `key`, in the order of the document. `block` is a scratch buffer, for callers that search many
    /// segments.
    pub(super) fn find(&self, key: MatchKey, block: &mut Vec<u8>) -> io::Result<Vec<Found>> {
        let fence = fence(&key.0);
        // Rows with this key may begin in the block before the first one whose fence reaches it.
        let reaching = self.fences.partition_point(|first| *first < fence) as u64;
        let start = reaching.saturating_sub(1);
        let end = self.layout.blocks().min(start + MAX_BLOCKS_READ);
        let mut found = Vec::new();
        let mut last = None;
        for number in start..end {
            if number > start && self.fence_of(number).is_none_or(|first| first > fence) {
                break;
            }
            if !self.may_hold(number, print(&key.0)) {
                continue;
            }
            self.read(number, block)?;
            let rows = checked(block).ok_or_else(|| damaged("a block"))?;
            for row in rows.chunks_exact(PREFIX + usize::from(self.layout.width)) {
                let (at, rest) = row.split_first_chunk().ok_or_else(|| damaged("a row"))?;
                match at.cmp(&key.0) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => {
                        let (group, digest, one) = parse(rest).ok_or_else(|| damaged("a row"))?;
                        if last != Some(group) {
                            found.push(one);
                            last = Some(group);
                        }
                        if let Some(claim) = found.last_mut() {
                            claim.digests.push(digest);
                        }
                    }
                    std::cmp::Ordering::Greater => return Ok(found),
                }
            }
        }
        Ok(found)
    }

    /// The fence of a block: the start of its first match key.
    fn fence_of(&self, block: u64) -> Option<u64> {
        self.fences.get(usize::try_from(block).ok()?).copied()
    }

    /// Whether a row with such a key may be in a block. One other key in 65,536 has the same print.
    fn may_hold(&self, block: u64, print: [u8; 2]) -> bool {
        let bound = |block: u64| usize::try_from(block * BLOCK_ROWS).unwrap_or(usize::MAX);
        let rows = bound(block)..bound(block + 1).min(self.prints.len());
        self.prints.get(rows).is_some_and(|rows| rows.contains(&print))
    }

    fn read(&self, number: u64, block: &mut Vec<u8>) -> io::Result<()> {
        let length = self.layout.rows_in(number) * self.layout.row() + 4;
        block.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        self.file.read_exact_at(block, self.layout.block_at(number))
    }
}

/// Parses a row after its key: its group, its digest, and its claim, still without digests.
fn parse(rest: &[u8]) -> Option<(u32, Digest, Found)> {
    let (group, rest) = rest.split_first_chunk()?;
    let (code, rest) = rest.split_first()?;
    let (size, rest) = rest.split_first_chunk()?;
    let algorithm = Algorithm::from_code(*code & !SIGNED)?;
    let digest = Digest::new(algorithm, rest.get(..algorithm.length())?)?;
    let size = u64::from_be_bytes(*size);
    let claim = Found {
        digests: Vec::new(),
        size: (size != NO_SIZE).then_some(size),
        signed: *code & SIGNED != 0,
    };
    Some((u32::from_be_bytes(*group), digest, claim))
}

fn fence(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Two bytes of a match key that hardly affect its position. A key is a hash, so all values are equally likely.
fn print(key: &[u8]) -> [u8; 2] {
    key.get(14..16).and_then(|print| print.try_into().ok()).unwrap_or_default()
}

/// The bytes before a trailing CRC-32, if it matches.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk()?;
    (crc32fast::hash(body) == u32::from_be_bytes(*crc)).then_some(body)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a segment of claims is damaged: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sort::Sorter;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::path::PathBuf;

    fn origin() -> Origin {
        crate::target::identity::origin_of(crate::target::Scheme::Https, "example.org").unwrap()
    }

    fn manifest_of(claims: u64) -> Manifest {
        Manifest {
            origin: origin(),
            path_and_query: "/simple/a/?x=1".into(),
            variant: "json".into(),
            reader: Partition::Public,
            shown: "https://example.org/simple/a/".into(),
            document: BlobId::new([3; 32]),
            published: Time::from_millis(5),
            rank: Rank::Indexed,
            root: Root { origin: origin(), path: "/simple/".into() },
            topics: vec![Topic::new("pypi", "a")],
            origins: vec![origin()],
            claims,
            signed: 0,
            expired_key: false,
            signed_by: Some(SignedBy::default()),
        }
    }

    fn written(directory: &Path, rows: Vec<Row>, width: u16) -> PathBuf {
        let path = directory.join("segment");
        let file = File::create_new(&path).unwrap();
        let count = rows.len() as u64;
        let mut sorter = Sorter::new(&directory.join("sort"), 100);
        for row in rows {
            sorter.push(row).unwrap();
        }
        let rows = sorter.sorted().unwrap();
        write(&file, rows, count, width, &manifest_of(count)).unwrap();
        path
    }

    fn digest(algorithm: Algorithm, byte: u8) -> Digest {
        Digest::new(algorithm, &vec![byte; algorithm.length()]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Keys are drawn from few values, so that several claims share a key and blocks begin in the middle of one.
        #[test]
        fn a_look_up_finds_what_a_map_would(
            claims in prop::collection::vec((0_u8..40, any::<u8>(), any::<Option<u32>>(), any::<bool>()), 0..400),
        ) {
            let data = tempfile::tempdir().unwrap();
            let mut rows = Vec::new();
            let mut expected: HashMap<u8, Vec<Found>> = HashMap::new();
            for (group, (key, byte, size, signed)) in claims.iter().enumerate() {
                let size = size.map(u64::from);
                let digests = vec![digest(Algorithm::Md5, *byte), digest(Algorithm::Sha512, *byte)];
                for digest in &digests {
                    let group = u32::try_from(group).unwrap();
                    rows.push(Row::new(MatchKey([*key; 16]), group, digest, size, *signed));
                }
                expected.entry(*key).or_default().push(Found { digests, size, signed: *signed });
            }
            let segment = Segment::open(&written(data.path(), rows, 64)).unwrap();
            for key in 0..41 {
                let found = segment.find(MatchKey([key; 16]), &mut Vec::new()).unwrap();
                let wanted = expected.remove(&key).unwrap_or_default();
                // One look-up reads a few blocks at most, so an index that floods one target with claims harms only
                // itself.
                let limit = wanted.len().min(40);
                prop_assert_eq!(&found[..found.len().min(limit)], &wanted[..limit]);
            }
        }
    }

    #[test]
    fn a_manifest_comes_back_and_gives_the_index() {
        let data = tempfile::tempdir().unwrap();
        let row = Row::new(MatchKey([1; 16]), 0, &digest(Algorithm::Sha256, 1), Some(1), false);
        let path = written(data.path(), vec![row], 32);
        let (manifest, length) = manifest(&path).unwrap();
        assert_eq!(manifest, manifest_of(1));
        assert_eq!(length, path.metadata().unwrap().len());
        let index = manifest.index().unwrap();
        assert_eq!(index.url(), "https://example.org/simple/a/?x=1");
        assert_eq!(index.variant(), "json");
        assert_eq!(
            length_of(1, 32)
                + u64::from(Layout::read(&File::open(&path).unwrap()).unwrap().manifest),
            length
        );
    }

    #[test]
    fn a_manifest_of_the_version_before_has_no_signers() {
        let (before, mut bytes) = (manifest_of(1), seal(MANIFEST, &manifest_of(1)).unwrap());
        // What a larder of that version wrote: all fields but the last one.
        let body = postcard::to_stdvec(&Manifest { signed_by: None, ..before.clone() }).unwrap();
        let fields = body.split_last().unwrap().1;
        bytes.truncate(4);
        bytes.extend(4_u16.to_be_bytes());
        bytes.extend(u32::try_from(fields.len()).unwrap().to_be_bytes());
        bytes.extend(crc32fast::hash(fields).to_be_bytes());
        bytes.extend(fields);
        assert_eq!(Manifest::unseal(&bytes), Some(Manifest { signed_by: None, ..before }));
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(Manifest::unseal(&bytes), None, "the control: damage");
    }

    #[test]
    fn any_damage_is_an_error_and_never_another_digest() {
        let data = tempfile::tempdir().unwrap();
        let key = MatchKey([7; 16]);
        let row = Row::new(key, 0, &digest(Algorithm::Sha256, 9), Some(1), false);
        let path = written(data.path(), vec![row], 32);
        let whole = std::fs::read(&path).unwrap();
        let look_up = || -> io::Result<Vec<Found>> {
            manifest(&path)?;
            Segment::open(&path)?.find(key, &mut Vec::new())
        };
        assert_eq!(look_up().unwrap().len(), 1);
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            std::fs::remove_file(&path).unwrap();
            durable::write(&path, &damaged, 0o600).unwrap();
            assert!(look_up().is_err(), "byte {position}");
        }
        durable::write(&path, &whole[..whole.len() - 1], 0o600).unwrap();
        assert!(look_up().is_err(), "cut");
    }

    #[test]
    fn an_index_may_claim_nothing() {
        let data = tempfile::tempdir().unwrap();
        let path = written(data.path(), Vec::new(), 0);
        let segment = Segment::open(&path).unwrap();
        assert_eq!(segment.find(MatchKey([0; 16]), &mut Vec::new()).unwrap(), []);
    }
}
