//! `APKINDEX.tar.gz`: its signatures, and its record of each package.
//!
//! ```text
//! member 0    .SIGN.RSA.<key>, …                the signatures, over every raw byte after this member
//! member 1…   DESCRIPTION, APKINDEX             a tar
//!
//! APKINDEX    C:Q1<base64>  P:<name>  V:<version>  A:<architecture>  S:<length>  t:<build time>  …  an empty line
//! ```
//!
//! The file is read twice, because nothing may be claimed before the signature is verified: the first pass reads the
//! signatures, the second the records. An unsigned index begins with member 1.

use std::collections::HashMap;
use std::io::Read;

use super::broken::Broken;
use super::members::{Members, Sink};
use super::signature::{Hashed, Hashes, MAX_MEMBER, Signatures};
use super::tar::{Files, Tar};
use super::{pieces, shape, shown};
use crate::claim::{Claim, ClaimSink, PackageCount, Topic};
use crate::clock::Time;
use crate::digest::{Algorithm, Digest, key_hash};
use crate::ecosystem::bounded::Over;
use crate::ecosystem::{Malformed, base64};
use crate::target::{Root, Target};

const EXPECTED: &str = "v2 apk index";

/// How far any index may expand, in bytes. The largest known has some 20 MiB.
const FREE: u64 = 64 << 20;

/// Beyond [`FREE`], the maximum ratio of expanded to compressed bytes. Real indexes have four.
const STEEPEST: u64 = 50;

/// The maximum length of an expanded index, in bytes.
const LONGEST: u64 = 1 << 30;

/// The maximum number of gzip members. Real indexes have two.
const MAX_MEMBERS: usize = 1024;

/// The maximum number of packages. The largest repository has some 30,000.
const MAX_PACKAGES: u64 = 1 << 20;

/// The maximum length of a line that larder parses, in bytes. Other lines, such as lists of what a package provides,
/// may be of any length.
const MAX_LINE: usize = 4096;

/// The signatures at the front of an index, and the hashes of the bytes that they sign.
pub(super) struct Front {
    pub(super) signatures: Signatures,
    pub(super) hashed: Hashed,
}

/// Reads the signatures of the index, and hashes the bytes that they sign.
pub(super) fn front(file: impl Read) -> Result<Front, Malformed> {
    let mut members = Members::new();
    let mut hashes = Hashes::new();
    let mut first = First { tar: Tar::new(), signatures: Signatures::default(), expanded: 0 };
    pieces(file, |bytes| {
        let mut rest = bytes;
        if members.complete() == 0 {
            let read = members.update_one(bytes, &mut first);
            rest = read.map_err(|broken| broken.malformed(EXPECTED))?;
        }
        // The other members need no parsing here: the signature is over all of their raw bytes.
        hashes.update(rest);
        Ok(())
    })?;
    Ok(Front { signatures: first.signatures, hashed: hashes.finish() })
}

/// Reads the first gzip member.
struct First {
    tar: Tar,
    signatures: Signatures,
    expanded: u64,
}

impl Sink for First {
    fn raw(&mut self, _: usize, _: &[u8]) {}

    fn plain(&mut self, _: usize, bytes: &[u8]) -> Result<(), Broken> {
        self.expanded += bytes.len() as u64;
        self.tar.update(bytes, &mut self.signatures)?;
        // A first member without signatures is the index itself, and may be long.
        if self.signatures.lead() && self.expanded > MAX_MEMBER {
            return Err(Over { limit: MAX_MEMBER, unit: "expanded bytes of signatures" }.into());
        }
        if self.expanded > LONGEST {
            return Err(Over { limit: LONGEST, unit: "expanded bytes" }.into());
        }
        Ok(())
    }

    fn end(&mut self, _: usize) -> Result<(), Broken> {
        self.signatures.end_member(&self.tar)
    }
}

/// Reads the records of the index at `at`. `signed`: the first member holds the signatures.
pub(super) fn read(
    file: impl Read,
    at: &Target,
    signed: bool,
    out: &mut dyn ClaimSink,
) -> Result<PackageCount, Malformed> {
    let broken = |broken: Broken| broken.malformed(EXPECTED);
    let mut members = Members::new();
    let mut body =
        Body { signed, tar: Tar::new(), records: Records::new(at, out), raw: 0, expanded: 0 };
    pieces(file, |bytes| members.update(bytes, &mut body).map_err(broken))?;
    members.finish().and_then(|_| body.tar.finish()).map_err(broken)?;
    body.records.finish().map_err(broken)
}

/// Reads the text of an `APKINDEX` file without its archive.
pub(super) fn text(
    text: &[u8],
    at: &Target,
    out: &mut dyn ClaimSink,
) -> Result<PackageCount, Broken> {
    let mut records = Records::new(at, out);
    records.begin("APKINDEX", text.len() as u64)?;
    records.data(text)?;
    records.end()?;
    records.finish()
}

/// Reads the members that the signature covers.
struct Body<'a> {
    signed: bool,
    tar: Tar,
    records: Records<'a>,
    raw: u64,
    expanded: u64,
}

impl Sink for Body<'_> {
    fn raw(&mut self, _: usize, bytes: &[u8]) {
        self.raw += bytes.len() as u64;
    }

    fn plain(&mut self, number: usize, bytes: &[u8]) -> Result<(), Broken> {
        self.expanded += bytes.len() as u64;
        let limit = self.raw.saturating_mul(STEEPEST).clamp(FREE, LONGEST);
        if self.expanded > limit {
            return Err(Over { limit, unit: "expanded bytes" }.into());
        }
        if self.signed && number == 0 {
            return Ok(());
        }
        self.tar.update(bytes, &mut self.records)
    }

    fn end(&mut self, number: usize) -> Result<(), Broken> {
        if number >= MAX_MEMBERS {
            return Err(Over { limit: MAX_MEMBERS as u64, unit: "gzip members" }.into());
        }
        Ok(())
    }
}

/// The parsed fields of one package.
#[derive(Default)]
struct PackageRecord {
    name: Option<String>,
    version: Option<String>,
    architecture: Option<String>,
    size: Option<String>,
    checksum: Option<String>,
    built: Option<String>,
    /// Whether the record has any line.
    begun: bool,
}

/// Reads the lines of `APKINDEX`, which may be of any length.
struct Records<'a> {
    at: &'a Target,
    root: Root,
    topic: Topic,
    out: &'a mut dyn ClaimSink,
    /// Whether the current file of the archive is `APKINDEX`; and whether one was found.
    inside: bool,
    found: bool,
    line: Vec<u8>,
    record: PackageRecord,
    /// A hash of the record of each file name: a second record of the same file must be equal.
    seen: HashMap<[u8; 32], [u8; 32]>,
    census: PackageCount,
}

impl<'a> Records<'a> {
    fn new(at: &'a Target, out: &'a mut dyn ClaimSink) -> Self {
        Self {
            at,
            root: Root::directory_of(at),
            topic: shape::topic(at),
            out,
            inside: false,
            found: false,
            line: Vec::new(),
            record: PackageRecord::default(),
            seen: HashMap::new(),
            census: PackageCount { packages: 0, newest: Time::from_millis(0) },
        }
    }

    fn finish(self) -> Result<PackageCount, Broken> {
        if self.found { Ok(self.census) } else { Err(Broken::form("it has no APKINDEX")) }
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), Broken> {
        let space = MAX_LINE.saturating_sub(self.line.len());
        let (kept, over) = piece.split_at_checked(space).unwrap_or((piece, &[]));
        self.line.extend(kept);
        if !over.is_empty() && self.record.place(self.line.first().copied()).is_some() {
            return Err(Over { limit: MAX_LINE as u64, unit: "bytes in one line" }.into());
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Broken> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.end_record();
        }
        self.record.begun = true;
        let Some((field, value)) =
            line.split_first().and_then(|(field, rest)| Some((*field, rest.strip_prefix(b":")?)))
        else {
            return Err(Broken::form(format!("a line that is no field: {}", start(&line))));
        };
        if let Some(place) = self.record.place(Some(field)) {
            let text = std::str::from_utf8(value)
                .map_err(|_| Broken::form(format!("a field that is no text: {}", start(&line))))?;
            if place.replace(text.to_owned()).is_some() {
                return Err(Broken::form(format!("a field twice: {}", start(&line))));
            }
        }
        Ok(())
    }

    fn end_record(&mut self) -> Result<(), Broken> {
        let record = std::mem::take(&mut self.record);
        if !record.begun {
            return Ok(());
        }
        let (Some(name), Some(version)) = (&record.name, &record.version) else {
            return Err(Broken::form("a package without a name or without a version"));
        };
        let file = format!("{name}-{version}.apk");
        if let Some(architecture) = &record.architecture
            && shape::is_elsewhere(self.at, architecture)
        {
            let shown = start(architecture.as_bytes());
            return Err(Broken::form(format!(
                "a package of {shown} in another architecture's directory"
            )));
        }
        self.census.packages += 1;
        if self.census.packages > MAX_PACKAGES {
            return Err(Over { limit: MAX_PACKAGES, unit: "packages" }.into());
        }
        let number = |text: &Option<String>, what: &str| match text {
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                Broken::form(format!("{what} of {} is no number", start(file.as_bytes())))
            }),
            None => Ok(None),
        };
        let size = number(&record.size, "the length")?;
        if let Some(seconds) = number(&record.built, "the time")? {
            let millis = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
            self.census.newest = self.census.newest.max(Time::from_millis(millis));
        }
        let said = record.checksum.as_deref().unwrap_or_default();
        let key = key_hash([file.as_bytes()]);
        let value = key_hash([said.as_bytes(), &size.unwrap_or(u64::MAX).to_be_bytes()]);
        match self.seen.insert(key, value) {
            None => {}
            Some(before) if before == value => return Ok(()),
            Some(_) => {
                let shown = start(file.as_bytes());
                return Err(Broken::form(format!("two different records of {shown}")));
            }
        }
        // A name or version that cannot be part of one path segment names no file that a client could request.
        if !shape::is_name(name) || !shape::is_version(version) {
            return Ok(());
        }
        let target = Target::new(self.root.origin.clone(), &format!("{}{file}", self.root.path));
        if let (Ok(target), Some(digest)) = (target, checksum(said)) {
            let topic = self.topic.clone();
            let claim = Claim { target, topic, digests: vec![digest], size };
            let many = Over { limit: crate::ecosystem::MAX_CLAIMS, unit: "claims" };
            self.out.claim(claim).map_err(|_| many)?;
        }
        Ok(())
    }
}

impl PackageRecord {
    /// Where to put the value of a field, if larder uses the field.
    fn place(&mut self, field: Option<u8>) -> Option<&mut Option<String>> {
        Some(match field? {
            b'P' => &mut self.name,
            b'V' => &mut self.version,
            b'A' => &mut self.architecture,
            b'S' => &mut self.size,
            b'C' => &mut self.checksum,
            b't' => &mut self.built,
            _ => return None,
        })
    }
}

impl Files for Records<'_> {
    fn begin(&mut self, name: &str, _: u64) -> Result<(), Broken> {
        self.inside = name == "APKINDEX";
        if self.inside && self.found {
            return Err(Broken::form("it has two files called APKINDEX"));
        }
        self.found |= self.inside;
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if !self.inside {
            return Ok(());
        }
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        if let Some(first) = pieces.next() {
            self.keep(first)?;
        }
        for piece in pieces {
            self.end_line()?;
            self.keep(piece)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        if !self.inside {
            return Ok(());
        }
        self.inside = false;
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.end_record()
    }
}

/// The digest of a control part from a `C:` field. The prefix `Q1` once meant SHA-1, but also precedes longer digests.
fn checksum(text: &str) -> Option<Digest> {
    let encoded = text.strip_prefix("Q1").or_else(|| text.strip_prefix("Q2"))?;
    let raw = base64::decode(encoded)?;
    let algorithm = [Algorithm::Apk2Sha1, Algorithm::Apk2Sha256]
        .into_iter()
        .find(|algorithm| algorithm.length() == raw.len())?;
    Digest::new(algorithm, &raw)
}

fn start(line: &[u8]) -> String {
    shown(&String::from_utf8_lossy(line))
}
