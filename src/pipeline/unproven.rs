//! Revokes what signatures proved, once no key that made them is trusted any more.
//!
//! A set of claims notes the keys that signed it. It goes when none of them is trusted, or not each that signed a single claim. A
//! set without a signature of its own goes when no signed index names its document any more. Of the stored entries, those are
//! lowered that no claim proves as signed afterwards, in the repositories for which a lost key signed.
//!
//! ```text
//! the key leaves the keyring ─▶ the claims go ─▶ the entries are lowered
//! ```
//!
//! Meanwhile requests go on, which checked a signature with the former keyring, or found a claim that was still there. So
//! whatever stores or raises something signed asks `lower_unsigned` afterwards: either the walk over the entries
//! finds it, or the keyring is already without the key.
//!
//! A limit: an entry does not note who signed it. One that only a version of an index proved whose claims are dropped is lowered
//! although another key may have signed that version; the next answer of its origin raises it again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;

use crate::claim::{IndexVersion, Topic};
use crate::digest::{BlobId, Digest};
use crate::ecosystem::{self, Kind, Shape};
use crate::entry::Entry;
use crate::keyring::Trusted;
use crate::proof::{Proof, Rank};
use crate::store::{IndexSet, Store};
use crate::target::{Partition, Root, Scheme, Target};

/// Deletes the claims that no key in `standing` signs any more, and adds their roots to `undone`. `roots`: the repositories for
/// which a lost key signed. The error tells what may still be on disk. Blocking.
pub fn retract(
    store: &Store,
    standing: &BTreeSet<Box<str>>,
    roots: &BTreeSet<Root>,
    undone: &mut BTreeSet<Root>,
) -> Result<(), String> {
    let is_lost = |set: &IndexSet| {
        let by = &set.generation;
        // Of claims from an earlier larder it is not known who signed them. They come again when their document is read again.
        by.signed_by.as_ref().map_or_else(
            || set.is_signed && roots.contains(&by.root),
            |_| {
                let below = roots.iter().any(|root| root.covers(&set.index));
                is_lost(
                    store,
                    standing,
                    by,
                    (&set.index, set.reader, &[by.document.digest()]),
                    below,
                )
            },
        )
    };
    let told = |error: io::Error| {
        format!(
            "not all files of the claims that it proved are deleted: {error}; larder ignores them now and tries again, and they \
             count again after a restart if that fails: then stop larder, delete the directory v1/claims in its data directory, \
             and start it"
        )
    };
    // Claims that cannot be read now may be some of them.
    let read = if roots.is_empty() { Ok(()) } else { store.withdraw_claims(&|_| false) };
    let mut done = read.map_err(told);
    // Whether a document is still named is known when the claims of those are deleted that named it.
    loop {
        let sets = store.indexes();
        let lost: HashMap<u64, Root> = sets
            .iter()
            .filter(|set| is_lost(set))
            .map(|set| (set.generation.number, set.generation.root.clone()))
            .collect();
        if lost.is_empty() {
            return done;
        }
        undone.extend(lost.values().cloned());
        let gone = |set: &IndexSet| lost.contains_key(&set.generation.number);
        let withdrawn = store.withdraw_claims(&gone).map_err(told);
        done = done.and(withdrawn);
    }
}

/// Whether the claims of a version of an index rest on a signature that does not count any more. With the index, who reads it, and
/// the known digests of its document. `below`: a lost key signed for its repository.
pub(super) fn is_lost(
    store: &Store,
    standing: &BTreeSet<Box<str>>,
    by: &IndexVersion,
    (index, reader, digests): (&Target, Partition, &[Digest]),
    below: bool,
) -> bool {
    let Some(signed_by) = &by.signed_by else { return false };
    let is_member = by.rank == Rank::Signed && signed_by.index.is_empty();
    !signed_by.stands(standing) || is_member && below && !is_named(store, index, reader, digests)
}

/// Whether a signed index names such a document of `index`, under any of the names under which it is fetched.
fn is_named(store: &Store, index: &Target, reader: Partition, digests: &[Digest]) -> bool {
    let promised = |target: &Target| is_promised(store, target, reader, digests);
    // The claims of a compressed file are those of the index itself.
    let others = || {
        let known = ecosystem::recognise(&Shape { target: index, accept: "*/*" })?;
        known.ecosystem.snapshots()?.renewal(index, digests.last()?)
    };
    promised(index) || others().is_some_and(|others| others.again.iter().any(promised))
}

/// Whether a signed index names such bytes of `target`.
fn is_promised(store: &Store, target: &Target, reader: Partition, digests: &[Digest]) -> bool {
    let topics = topics_of(target);
    !topics.is_empty() && store.signs(reader, target, &topics, digests)
}

/// The topics under which indexes may name `target`.
fn topics_of(target: &Target) -> Vec<Topic> {
    let Some(known) = ecosystem::recognise(&Shape { target, accept: "*/*" }) else {
        return Vec::new();
    };
    match known.resource.kind {
        Kind::Artifact(artifact) => artifact.topics,
        // A snapshot's root is a member of nothing.
        Kind::Index if known.ecosystem.is_snapshot_root(target) => Vec::new(),
        Kind::Index => known.ecosystem.topics(target),
    }
}

/// Lowers the stored entries of the repositories at `roots` that no claim proves as signed any more to the proof of their transport,
/// and adds their roots to `undone`. Entries that came over plain http are not kept without a signature. The error tells what may
/// still count. Blocking.
pub fn lower(
    store: &Store,
    roots: &BTreeSet<Root>,
    undone: &mut BTreeSet<Root>,
) -> Result<(), String> {
    if roots.is_empty() {
        return Ok(());
    }
    let vouchers = store.vouchers();
    // Of nested repositories the deepest one counts.
    let root_of = |target: &Target| {
        let covering = vouchers.keys().filter(|root| root.covers(target));
        covering.max_by_key(|root| root.path.len()).filter(|root| roots.contains(root))
    };
    let sets = store.indexes().into_iter().map(|set| set.generation);
    let documents: HashSet<(BlobId, Root)> = sets
        .filter(|by| by.rank == Rank::Signed)
        .map(|by| (by.document, by.root.clone()))
        .collect();
    // Collected first: the store must not be changed while it is walked.
    let mut unproven = Vec::new();
    let walked = store.for_every_entry(&mut |entry| {
        let target = (entry.proof.rank == Rank::Signed).then(|| Target::from_url(&entry.shown));
        if let Some(target) = target.flatten()
            && let Some(root) = root_of(&target)
            && !documents.contains(&(entry.blob, root.clone()))
            && !is_promised(store, &target, entry.partition, &digests_of(entry))
        {
            unproven.push((entry.clone(), root.clone()));
        }
        ControlFlow::Continue(())
    });
    let mut done = walked.map_err(|error| {
        format!(
            "not every entry can be read now, and some may still count as proven by it: {error}"
        )
    });
    for (entry, root) in unproven {
        let lowered = lower_entry(store, &entry)
            .map_err(|error| format!("{} still counts as proven by it: {error}", entry.shown));
        done = done.and(lowered);
        undone.insert(root);
    }
    done
}

/// The digests of an entry's body, its name in the store last.
pub(super) fn digests_of(entry: &Entry) -> Vec<Digest> {
    entry.digests.iter().copied().chain([entry.blob.digest()]).collect()
}

/// Lowers an entry, if it is signed, to the proof of its transport. Blocking.
fn lower_entry(store: &Store, entry: &Entry) -> io::Result<()> {
    let plain =
        Target::from_url(&entry.shown).is_none_or(|target| target.origin().scheme == Scheme::Http);
    let done =
        if plain { store.remove(entry) } else { store.update(entry, drop_signature).map(drop) };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // It was removed in the meantime.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The proof that is left of an entry that came over TLS.
fn drop_signature(entry: &mut Entry) {
    if entry.proof.rank != Rank::Signed {
        return;
    }
    let rank = if entry.index { Rank::Origin } else { Rank::Pinned };
    let Proof { stale, private, .. } = entry.proof;
    entry.proof = Proof { stale, private, ..Proof::of(rank) };
}

/// Lowers an entry that was just stored or raised as signed, if its signers are not trusted any more. `signers`: those of its own
/// signature, if it has one; otherwise those of its repository count, if they are known, and where one of them is lost, what its
/// indexes promise. Returns whether it was lowered. Blocking.
pub(super) fn lower_unsigned(
    store: &Store,
    keys: &Trusted,
    entry: &Entry,
    signers: Option<&[Box<str>]>,
) -> bool {
    if entry.proof.rank != Rank::Signed {
        return false;
    }
    let counts = signers.map_or_else(
        || is_member_signed(store, keys, entry),
        |signers| trust_one_of(keys, signers),
    );
    if counts {
        return false;
    }
    if let Err(error) = lower_entry(store, entry) {
        tracing::error!(
            url = entry.shown, %error,
            "this counts as signed by a key that is not trusted any more; `larder rm` with its URL removes it"
        );
    }
    true
}

/// Whether an entry without a signature of its own counts as signed.
fn is_member_signed(store: &Store, keys: &Trusted, entry: &Entry) -> bool {
    let Some(target) = Target::from_url(&entry.shown) else { return true };
    let keys = keys.get();
    let standing = keys.standing();
    !keys.is_whole()
        || store.vouchers_above(&target).iter().all(|signer| standing.contains(signer))
        || is_promised(store, &target, entry.partition, &digests_of(entry))
}

/// Whether one of `signers` is trusted, or may be: as long as a file of keys cannot be read, it is unknown whose key is lost. Quick.
pub(super) fn trust_one_of(keys: &Trusted, signers: &[Box<str>]) -> bool {
    let keys = keys.get();
    let standing = keys.standing();
    !keys.is_whole() || signers.iter().any(|signer| standing.contains(signer))
}
