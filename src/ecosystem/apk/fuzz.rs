//! Fuzz targets of apk: any bytes, and the properties that the results must have.

use super::broken::Broken;
use super::members::{Members, Sink};
use super::package::Package;
use super::tar::{Files, Tar};
use super::{index, shape};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::digest::Content;
use crate::target::{Root, Target};

/// Parses any bytes as a file of gzip members. However the bytes are split, the raw bytes of all members add up to the
/// input so far.
///
/// # Panics
///
/// If a byte is lost or reported twice, or if the split changes the result.
pub fn apk_members(bytes: &[u8]) {
    let split = |size: usize| {
        let (mut members, mut counted) = (Members::new(), Counted::default());
        let mut given = 0;
        for piece in bytes.chunks(size) {
            if members.update(piece, &mut counted).is_err() {
                return None;
            }
            given += piece.len();
            assert_eq!(counted.raw, given, "a byte is lost");
        }
        Some((members.finish().ok(), counted.ended))
    };
    assert_eq!(split(1 << 16), split(7), "pieces change the answer");
}

/// Parses any bytes as a tar archive. Each file yields as many bytes as its header says.
///
/// # Panics
///
/// If it yields more or fewer.
pub fn apk_tar(bytes: &[u8]) {
    for size in [1 << 16, 100] {
        let (mut tar, mut lengths) = (Tar::new(), Lengths::default());
        for piece in bytes.chunks(size) {
            if tar.update(piece, &mut lengths).is_err() {
                break;
            }
        }
    }
}

/// Parses any bytes as an index: as the file, and as the text in it. Every claim is within the index's directory,
/// unless the index is malformed.
///
/// # Panics
///
/// If a claim is outside the directory.
pub fn apk_index(bytes: &[u8]) {
    let Some(at) = Target::from_url("https://example.org/main/x86_64/APKINDEX.tar.gz") else {
        return;
    };
    let root = Root::directory_of(&at);
    let _front = index::front(bytes);
    for signed in [true, false] {
        // The result does not matter: both malformed and read are allowed.
        let _answer = index::read(bytes, &at, signed, &mut Within(&root));
    }
    let _answer = index::text(bytes, &at, &mut Within(&root));
}

/// Parses any bytes as a package. It yields content digests or an error.
pub fn apk_package(bytes: &[u8]) {
    let mut package = Box::new(Package::new());
    for piece in bytes.chunks(1000) {
        package.update(piece);
    }
    let _answer = package.finish();
}

#[derive(Default)]
struct Counted {
    raw: usize,
    ended: usize,
}

impl Sink for Counted {
    fn raw(&mut self, _: usize, bytes: &[u8]) {
        self.raw += bytes.len();
    }

    fn plain(&mut self, _: usize, _: &[u8]) -> Result<(), Broken> {
        Ok(())
    }

    fn end(&mut self, number: usize) -> Result<(), Broken> {
        assert_eq!(number, self.ended, "members out of order");
        self.ended += 1;
        Ok(())
    }
}

/// How many bytes of the current file are still to come.
#[derive(Default)]
struct Lengths(u64);

impl Files for Lengths {
    fn begin(&mut self, _: &str, size: u64) -> Result<(), Broken> {
        self.0 = size;
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let left = self.0.checked_sub(bytes.len() as u64);
        assert!(left.is_some(), "more than the header says");
        self.0 = left.unwrap_or_default();
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        assert_eq!(self.0, 0, "less than the header says");
        Ok(())
    }
}

/// Asserts that every claim is about a package within the directory.
struct Within<'a>(&'a Root);

impl ClaimSink for Within<'_> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        let target = &claim.target;
        assert_eq!(Root::directory_of(target), *self.0, "{target} is elsewhere");
        assert!(shape::is_package(target), "{target} is no package");
        assert_eq!(claim.digests.len(), 1);
        Ok(())
    }
}
