//! apk repositories (Alpine's format): the chain from a signature to the content of a package.
//!
//! ```text
//! key ─▶ APKINDEX.tar.gz ─▶ digest of a package's control part, length ─▶ control part ─▶ digest of its data ─▶ .apk
//! ```
//!
//! `shape.rs` classifies URLs; `members.rs` finds the gzip members of a file, `tar.rs` the files in them;
//! `signature.rs` reads the signatures, `index.rs` the index, `package.rs` checks that a package's parts belong
//! together.
//!
//! An index promises a package's content and not its bytes, because it does not cover the signature in front of the
//! package. So package digests have algorithms of their own, which never name a stored body. While repositories name
//! control parts by SHA-1, the proof is marked `weak-hash`.
//!
//! The format of apk-tools 3 (ADB) is recognised but makes no claims: its indexes are revalidated, and its packages are
//! pinned to what their origin first served.
//!
//! Sources: apk-v2(5), apk-package(5), apk-keys(5), and apk-tools' `extract_v2.c`, `sign.c`, `database.c`.

mod broken;
pub(super) mod fuzz;
mod index;
mod members;
mod package;
mod shape;
mod signature;
mod tar;

use std::io::{self, Read};

use super::facets::{ContentDigests, NamedIndexes, Signing};
use super::{Document, Ecosystem, Malformed, Profile, Recognised, Shape, Shelf};
use crate::claim::{ClaimSink, Snapshot, Standing, Topic};
use crate::digest::NewContent;
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Target};
use package::{Package, Whole};

const NAME: &str = "apk";

/// How much of a file to read at once, in bytes.
const PIECE: usize = 64 << 10;

/// apk repositories.
#[derive(Debug)]
pub(super) struct Apk;

const PROFILE: Profile =
    Profile { name: NAME, harmless_headers: &[], login_headers: &[], files_are_immutable: false };

impl Ecosystem for Apk {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        shape::recognise(request)
    }

    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        let file = at.file_name();
        head.status == hyper::StatusCode::OK
            && (file == shape::INDEX && start.starts_with(&[0x1f, 0x8b])
                || file.ends_with(".adb") && shape::is_adb(start))
    }

    /// A package is judged by the index in its directory.
    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        let index = shape::index_of(at).filter(|_| shape::is_package(at));
        index.filter(|index| have.open(index).is_none()).into_iter().collect()
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        keys: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let root = Root::directory_of(doc.at);
        let rank = match doc.at.file_name().as_str() {
            _ if doc.head.status != hyper::StatusCode::OK => Rank::None,
            shape::INDEX => of_index(doc, keys, out)?,
            _ if shape::is_package(doc.at) => of_package(doc, keys, out)?,
            _ => Rank::None,
        };
        Ok(Standing { rank, root })
    }

    fn signing(&self) -> Option<&dyn Signing> {
        Some(self)
    }

    fn named_indexes(&self) -> Option<&dyn NamedIndexes> {
        Some(self)
    }

    fn content_digests(&self) -> Option<&dyn ContentDigests> {
        Some(self)
    }
}

impl Signing for Apk {
    fn may_be_signed(&self, at: &Target) -> bool {
        at.file_name() == shape::INDEX || shape::is_package(at)
    }
}

impl NamedIndexes for Apk {
    fn topics(&self, index: &Target) -> Vec<Topic> {
        vec![shape::topic(index)]
    }
}

impl ContentDigests for Apk {
    fn content(&self, at: &Target) -> Option<NewContent> {
        shape::is_package(at).then_some(|| Box::new(Package::new()))
    }
}

/// Reads the claims of an index. Some servers label a `.gz` file with a content coding although they send it unchanged,
/// so no content coding is refused here. This is safe: the signature is over the file itself, and anything else does
/// not parse as an index.
fn of_index(
    doc: &Document<'_>,
    keys: &Keyring,
    out: &mut dyn ClaimSink,
) -> Result<Rank, Malformed> {
    let front = index::front((doc.open)()?)?;
    let mut edition = Snapshot::default();
    let rank = match front.signatures.judge(&front.hashed, keys) {
        Ok(signed) => {
            edition.signers = signed.signers.into_iter().map(|signer| signer.0).collect();
            edition.makers.clone_from(&edition.signers);
            edition.weak_hash = signed.weak_hash;
            Rank::Signed
        }
        Err(why) if why.is_forged() => return Err(Malformed::Forged(why.to_string())),
        Err(why) => {
            edition.unknown = why.unknown();
            edition.unsigned = Some(why.to_string());
            if doc.may_claim() { Rank::Indexed } else { Rank::None }
        }
    };
    if rank != Rank::None {
        let signed = front.signatures.lead();
        edition.census = Some(index::read((doc.open)()?, doc.at, signed, out)?);
    }
    out.edition(edition);
    Ok(rank)
}

/// Reads a package's own signature. The signature counts only at a URL with the package's own name and in the directory
/// of its architecture: anywhere else, it may be a replay.
fn of_package(
    doc: &Document<'_>,
    keys: &Keyring,
    out: &mut dyn ClaimSink,
) -> Result<Rank, Malformed> {
    let mut package = Package::new();
    pieces((doc.open)()?, |bytes| {
        package.take(bytes);
        Ok(())
    })?;
    let expected = "v2 apk package";
    let whole = package.whole().map_err(|broken| broken.malformed(expected))?;
    let Whole { signatures, control, info } = whole;
    let named = format!("{}-{}.apk", info.name, info.version);
    if named != doc.at.file_name() || shape::is_elsewhere(doc.at, &info.architecture) {
        return Err(Malformed::Shape {
            expected: "package of this name and architecture",
            found: shown(&format!("{named} of {}", info.architecture)),
        });
    }
    let mut edition = Snapshot::default();
    let rank = match signatures.judge(&control, keys) {
        Ok(signed) => {
            edition.signers = signed.signers.into_iter().map(|signer| signer.0).collect();
            edition.makers.clone_from(&edition.signers);
            edition.weak_hash = signed.weak_hash;
            Rank::Signed
        }
        Err(why) if why.is_forged() => return Err(Malformed::Forged(why.to_string())),
        Err(why) => {
            edition.unknown = why.unknown();
            edition.unsigned = Some(why.to_string());
            Rank::None
        }
    };
    out.edition(edition);
    Ok(rank)
}

/// Reads a file in pieces.
fn pieces(
    mut file: impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = match file.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        match piece.get(..read) {
            Some(bytes) if !bytes.is_empty() => take(bytes)?,
            Some(_) | None => return Ok(()),
        }
    }
}

/// An untrusted text, shortened and without control characters, for messages.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests;
