//! Bodies of fuzz tests: any bytes, and what must hold of the answer.

use super::broken::Broken;
use super::members::{Members, Sink};
use super::package::Package;
use super::tar::{Files, Tar};
use super::{index, shape};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::digest::Content;
use crate::target::{Root, Target};

/// Any bytes as a file of gzip members: however they come, the raw bytes of all members are the file so far.
///
/// # Panics
///
/// If a byte is lost or told twice, or if pieces change the answer.
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

/// Any bytes as a tar archive: what is given of a file is as long as its header says.
///
/// # Panics
///
/// If it is not.
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

/// Any bytes as an index: as the file, and as the text in it. Claims lie in the index's directory, or it is malformed.
///
/// # Panics
///
/// If a claim leaves the directory.
pub fn apk_index(bytes: &[u8]) {
    let Some(at) = Target::from_url("https://example.org/main/x86_64/APKINDEX.tar.gz") else {
        return;
    };
    let root = Root::directory_of(&at);
    let _front = index::front(bytes);
    for signed in [true, false] {
        // Malformed or read: both are answers.
        let _answer = index::read(bytes, &at, signed, &mut Within(&root));
    }
    let _answer = index::text(bytes, &at, &mut Within(&root));
}

/// Any bytes as a package: it has a content, or the reason why not.
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

/// How much of the file that comes is still to come.
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

/// Holds that nothing outside the directory is spoken of, and nothing but packages.
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
