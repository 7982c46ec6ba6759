//! apt archives: the chain from a signature to the bytes of a package.
//!
//! ```text
//! key ─▶ InRelease, or Release with Release.gpg ─▶ digests of indexes ─▶ Packages, Sources ─▶ digests of files ─▶ .deb
//! ```
//!
//! `shape.rs` classifies URLs; `release.rs` reads the signed text, `expand.rs` and `stanzas.rs` the indexes that it
//! names. Each step passes on the rank proven by the step before: the claims of a Packages file are signed only if a
//! signed Release names the digest of that file. Without a known signer, the claims rest on TLS; over plain HTTP, there
//! are none.
//!
//! An index is fetched as `Packages.xz`, as `by-hash/SHA256/…` and so on. For their claims, all of these are one index:
//! `Packages` in the same directory. In a directory that may hold `Sources` too, the content of a by-hash file tells
//! which of the two it is. The Release that lists the digest would tell it too, but only while it is the newest.
//!
//! Sources: the Debian repository format (wiki), apt-secure(8), apt's `acquire-item.cc`.

mod date;
mod expand;
pub(super) mod fuzz;
mod patches;
mod places;
mod release;
mod shape;
mod stanzas;
mod wanted;

use std::io::{self, Read};

use super::facets::{NamedIndexes, Renewal, Signing, Snapshots};
use super::{Document, Ecosystem, Malformed, Profile, Recognised, Shape, Shelf, bounded};
use crate::claim::{Claim, ClaimSink, Snapshot, Standing, Topic};
use crate::digest::{Algorithm, Algorithms, Digest, Hashing};
use crate::entry::Head;
use crate::keyring::{Cleartext, Keyring, NotSigned, Signed};
use crate::proof::Rank;
use crate::target::{Root, Target};
use places::{
    bases, beside, by_hash_url, directory, is_head, is_stanzas, parents, proves_itself, suite,
};
use release::Release;
use stanzas::Places;

const NAME: &str = "apt";

/// The maximum length of a Release, in bytes. The largest known has less than 1 MiB.
const MAX_RELEASE: u64 = 16 << 20;

/// The maximum length of a detached signature file, in bytes.
const MAX_SIGNATURE: u64 = 256 << 10;

/// The name of the detached signature of a Release.
const SIGNATURE: &str = "Release.gpg";

/// apt archives.
#[derive(Debug)]
pub(super) struct Apt;

const PROFILE: Profile =
    Profile { name: NAME, harmless_headers: &[], login_headers: &[], files_are_immutable: false };

impl Ecosystem for Apt {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        shape::recognise(request)
    }

    /// Only the Release documents can be recognised by content. The other indexes may be compressed, or have any
    /// format.
    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        head.status == hyper::StatusCode::OK
            && match at.file_name().as_str() {
                "InRelease" => start.starts_with(b"-----BEGIN PGP SIGNED MESSAGE-----"),
                "Release" => shape::is_release(start),
                _ => false,
            }
    }

    /// A Release needs its detached signature; a package needs the indexes that may name it.
    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        if shape::is_file(at) {
            return wanted::of_file(at, have);
        }
        if at.file_name() != "Release" || !is_head(at) {
            return Vec::new();
        }
        let signature = beside(at, SIGNATURE);
        signature.filter(|signature| have.open(signature).is_none()).into_iter().collect()
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        keys: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        // For a flat archive's by-hash file, the root is the directory of the index, not the by-hash directory.
        let indexes = self.indexes_of(doc.at);
        let index = indexes.first().unwrap_or(doc.at);
        let root = shape::dists(doc.at).unwrap_or_else(|| Root::directory_of(index));
        let nothing = Standing { rank: Rank::None, root: root.clone() };
        if doc.head.status != hyper::StatusCode::OK {
            return Ok(nothing);
        }
        let rank = match doc.at.file_name().as_str() {
            "InRelease" => {
                doc.expect_identity()?;
                let cleartext = clear_signed(doc)?;
                let signed = keys.verify_cleartext(&cleartext, doc.now);
                of_release(doc, &root, cleartext.text(), signed, out)?
            }
            "Release" => {
                doc.expect_identity()?;
                let text = read(&mut (doc.open)()?, MAX_RELEASE)?;
                let signature = signature(doc)?;
                let signed = keys_of(&signature, &text, keys, doc);
                let text = String::from_utf8_lossy(&text);
                let rank = of_release(doc, &root, &text, signed, out)?;
                if rank == Rank::Signed {
                    name_signature(doc.at, &signature, out)?;
                }
                rank
            }
            SIGNATURE => Rank::None,
            _ if patches::is_list(index) => of_patches(doc, index, out)?,
            _ if !indexes.is_empty() || is_stanzas(doc.at) => of_stanzas(doc, &root, out)?,
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

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
}

impl Signing for Apt {
    fn may_be_signed(&self, at: &Target) -> bool {
        is_head(at)
    }

    fn depends_on_keys(&self, at: &Target) -> bool {
        matches!(at.file_name().as_ref(), "InRelease" | "Release")
    }
}

impl NamedIndexes for Apt {
    fn topics(&self, index: &Target) -> Vec<Topic> {
        vec![shape::topic(index)]
    }

    /// `Packages` or `Sources` in the same directory, or the list of patches.
    fn indexes_of(&self, at: &Target) -> Vec<Target> {
        if let Some((directory, _)) = shape::by_hash(at.path()) {
            let index =
                |file: &&str| Target::new(at.origin().clone(), &format!("{directory}/{file}")).ok();
            return shape::indexes_in(directory).iter().filter_map(index).collect();
        }
        let file = at.file_name();
        let stem = ["Packages.", "Sources."].into_iter().find(|start| file.starts_with(start));
        stem.and_then(|stem| beside(at, stem.trim_end_matches('.'))).into_iter().collect()
    }

    fn which(&self, doc: &Document<'_>, among: Vec<Target>) -> Result<Option<Target>, Malformed> {
        if among.len() < 2 {
            return Ok(among.into_iter().next());
        }
        if rank_of(doc) == Rank::None {
            return Ok(None);
        }
        let index = expand::expand((doc.open)()?).map_err(bounded::malformed)?;
        let name = stanzas::name(index)?;
        Ok(among.into_iter().find(|index| Some(&*index.file_name()) == name))
    }
}

impl Snapshots for Apt {
    fn is_snapshot_root(&self, at: &Target) -> bool {
        is_head(at)
    }

    /// apt requests InRelease first; if there is none, it requests Release and its detached signature.
    fn stand_in(&self, at: &Target) -> Option<Target> {
        beside(at, "Release").filter(|_| at.file_name() == "InRelease")
    }

    fn named_by(&self, index: &Target, digest: &Digest) -> Option<Target> {
        by_hash_url(&directory(index), digest)
    }

    fn renewal(&self, index: &Target, document: &Digest) -> Option<Renewal> {
        if !is_stanzas(index) {
            return None;
        }
        let named = by_hash_url(&directory(index), document)?;
        let file = index.file_name();
        let again = wanted::ENDS.iter().filter_map(|end| beside(index, &format!("{file}{end}")));
        Some(Renewal { parents: parents(index), named, again: again.collect() })
    }
}

/// Reads the claims of a Release; `text` is its signed text.
fn of_release(
    doc: &Document<'_>,
    root: &Root,
    text: &str,
    signed: Result<Signed, NotSigned>,
    out: &mut dyn ClaimSink,
) -> Result<Rank, Malformed> {
    let expired_key = signed.as_ref().is_err_and(NotSigned::is_expired);
    let unknown = signed.as_ref().err().map_or_else(Vec::new, NotSigned::unknown);
    let nobody = (Vec::new(), Vec::new());
    let (rank, (signers, makers), unsigned) = match signed {
        Ok(signed) => (Rank::Signed, (signed.signers, signed.makers), None),
        Err(why) if why.is_forged() => return Err(Malformed::Forged(why.to_string())),
        Err(why) if doc.may_claim() => (Rank::Indexed, nobody, Some(why.to_string())),
        Err(why) => (Rank::None, nobody, Some(why.to_string())),
    };
    let release = Release::read(text)?;
    if let Some(suite) = suite(doc.at)
        && !release.is_of(suite)
    {
        return Err(Malformed::Shape {
            expected: "Release of the suite that its URL names",
            found: format!(
                "Suite {}, Codename {}",
                release.suite.as_deref().unwrap_or("-"),
                release.codename.as_deref().unwrap_or("-")
            ),
        });
    }
    out.edition(Snapshot {
        signers: signers.into_iter().map(|signer| signer.0).collect(),
        makers: makers.into_iter().map(|maker| maker.0).collect(),
        unsigned,
        unknown,
        date: release.date,
        valid_until: release.valid_until,
        expired_key,
        // Unchanged: larder may learn later which key a fingerprint belongs to.
        successors: release.signed_by.iter().map(|named| named.as_str().into()).collect(),
        ..Snapshot::default()
    });
    if rank != Rank::None {
        name_members(doc.at, root, &release, out)?;
    }
    Ok(rank)
}

/// Claims every index of a suite, under its name and, if the archive supports by-hash, under its digests.
fn name_members(
    at: &Target,
    root: &Root,
    release: &Release,
    out: &mut dyn ClaimSink,
) -> Result<(), Malformed> {
    let own = Root::directory_of(at);
    let topic = shape::topic(at);
    for (path, member) in &release.members {
        // Tools that run inside an archive list the Release that they are writing, and the one before it. A document
        // that carries its own signature is not a member of any Release.
        let member_at = stanzas::under(&own, path);
        let Some(target) = member_at.filter(|at| root.covers(at) && !proves_itself(at)) else {
            continue;
        };
        let by_hash = release.by_hash.then(|| {
            let parent = directory(&target);
            let urls = member.digests.iter();
            urls.filter_map(move |digest| by_hash_url(&parent, digest))
        });
        for target in by_hash.into_iter().flatten().collect::<Vec<_>>().into_iter().chain([target])
        {
            out.claim(Claim {
                target,
                topic: topic.clone(),
                digests: member.digests.clone(),
                size: Some(member.size),
            })?;
        }
    }
    Ok(())
}

/// Reads the claims of a list of patches. `list` is the URL of the list's `Index` file, also when it was fetched
/// by-hash.
fn of_patches(
    doc: &Document<'_>,
    list: &Target,
    out: &mut dyn ClaimSink,
) -> Result<Rank, Malformed> {
    let rank = rank_of(doc);
    if rank != Rank::None {
        doc.expect_identity()?;
        let text = read(&mut (doc.open)()?, MAX_RELEASE)?;
        patches::read(list, &String::from_utf8_lossy(&text), out)?;
    }
    Ok(rank)
}

/// The rank of the claims of an index that has no signature of its own.
fn rank_of(doc: &Document<'_>) -> Rank {
    match doc.proven {
        Rank::Signed => Rank::Signed,
        Rank::None | Rank::Origin | Rank::Pinned | Rank::IndexedWeak | Rank::Indexed
            if doc.may_claim() =>
        {
            Rank::Indexed
        }
        Rank::None
        | Rank::Origin
        | Rank::Pinned
        | Rank::IndexedWeak
        | Rank::Indexed
        | Rank::SelfCertified => Rank::None,
    }
}

/// Reads the claims of a Packages or Sources file. The rank is [`Rank::None`] if the document is neither.
fn of_stanzas(doc: &Document<'_>, root: &Root, out: &mut dyn ClaimSink) -> Result<Rank, Malformed> {
    let rank = rank_of(doc);
    if rank == Rank::None {
        return Ok(Rank::None);
    }
    doc.expect_identity()?;
    let places = Places { bases: bases(doc.at, root), topic: shape::topic(doc.at) };
    let known = shape::by_hash(doc.at.path()).is_none();
    let index = expand::expand((doc.open)()?).map_err(bounded::malformed)?;
    let any = stanzas::read(index, &places, known, out)?;
    Ok(if any { rank } else { Rank::None })
}

fn clear_signed(doc: &Document<'_>) -> Result<Cleartext, Malformed> {
    let bytes = read(&mut (doc.open)()?, MAX_RELEASE)?;
    Cleartext::parse(&bytes).map_err(|error| Malformed::Shape {
        expected: "clear-signed Release",
        found: error.to_string(),
    })
}

/// The detached signature of a Release; empty if there is none.
fn signature(doc: &Document<'_>) -> Result<Vec<u8>, Malformed> {
    let stored = beside(doc.at, SIGNATURE).and_then(|at| doc.shelf.open(&at));
    stored.map_or(Ok(Vec::new()), |mut stored| read(&mut stored, MAX_SIGNATURE))
}

/// Verifies the detached signature of a Release. Without a signature, the Release is unsigned.
fn keys_of(
    signature: &[u8],
    text: &[u8],
    keys: &Keyring,
    doc: &Document<'_>,
) -> Result<Signed, NotSigned> {
    if signature.is_empty() {
        return Err(NotSigned { faults: Vec::new() });
    }
    keys.verify_detached(text, signature, doc.now)
}

/// Claims the valid detached signature: it and the Release are one snapshot, and usable only together.
fn name_signature(
    release: &Target,
    signature: &[u8],
    out: &mut dyn ClaimSink,
) -> Result<(), Malformed> {
    let mut hashing = Hashing::new(Algorithms::NONE.with(Algorithm::Sha256));
    hashing.update(signature);
    let digests: Vec<Digest> = hashing.finish().iter().copied().collect();
    if let Some(target) = beside(release, SIGNATURE) {
        let size = Some(signature.len() as u64);
        out.claim(Claim { target, topic: shape::topic(release), digests, size })?;
    }
    Ok(())
}

fn read(from: &mut dyn Read, limit: u64) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    from.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error: io::Error| bounded::malformed(error))?;
    if bytes.len() as u64 > limit {
        return Err(Malformed::Limit { limit, unit: "bytes" });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
