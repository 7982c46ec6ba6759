//! Revokes what signatures proved below the roots of repositories, once none of their signers is trusted any more.
//!
//! ```text
//! the key leaves the keyring ─▶ the claims go ─▶ the entries are lowered
//! ```
//!
//! Meanwhile requests go on, which checked a signature with the former keyring, or found a claim that was still there. So
//! whatever stores or raises something signed asks `lower_unsigned` afterwards: either the walk over the entries
//! finds it, or the keyring is already without the key.

use std::io;
use std::ops::ControlFlow;

use crate::entry::Entry;
use crate::keyring::Trusted;
use crate::proof::{Proof, Rank};
use crate::store::Store;
use crate::target::{Root, Scheme, Target};

/// Deletes the claims that signatures prove below `roots`. The error tells what may still be on disk. Blocking.
pub fn retract(store: &Store, roots: &[Root]) -> Result<(), String> {
    let mut retracted = Ok(());
    for root in roots {
        let done = store.retract_signed_claims(root).map_err(|error| {
            format!(
                "not all files of the claims that it proved below {root} are deleted: {error}; larder ignores them now and tries \
                 again, and they count again after a restart if that fails: then stop larder, delete the directory v1/claims in its \
                 data directory, and start it"
            )
        });
        retracted = retracted.and(done);
    }
    retracted
}

/// Lowers the stored entries that signatures prove below `roots` to the proof of their transport. Entries that came over plain
/// http are not kept without a signature. The error tells what may still count. Blocking.
pub fn lower(store: &Store, roots: &[Root]) -> Result<(), String> {
    if roots.is_empty() {
        return Ok(());
    }
    let vouchers = store.vouchers();
    // Of nested repositories the deepest one counts.
    let is_below = |target: &Target| {
        let covering = vouchers.keys().filter(|root| root.covers(target));
        covering.max_by_key(|root| root.path.len()).is_some_and(|root| roots.contains(root))
    };
    // Collected first: the store must not be changed while it is walked.
    let mut proven = Vec::new();
    let walked = store.for_every_entry(&mut |entry| {
        let target = (entry.proof.rank == Rank::Signed).then(|| Target::from_url(&entry.shown));
        if target.flatten().is_some_and(|target| is_below(&target)) {
            proven.push(entry.clone());
        }
        ControlFlow::Continue(())
    });
    let mut done = walked.map_err(|error| {
        format!(
            "not every entry can be read now, and some may still count as proven by it: {error}"
        )
    });
    for entry in proven {
        let lowered = lower_entry(store, &entry)
            .map_err(|error| format!("{} still counts as proven by it: {error}", entry.shown));
        done = done.and(lowered);
    }
    done
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
/// signature, if it has one; otherwise those of its repository count, if they are known. Returns whether it was lowered. Blocking.
pub(super) fn lower_unsigned(
    store: &Store,
    keys: &Trusted,
    entry: &Entry,
    signers: Option<&[Box<str>]>,
) -> bool {
    if entry.proof.rank != Rank::Signed {
        return false;
    }
    let bound = || Target::from_url(&entry.shown).map(|target| store.vouchers_above(&target));
    let signers = signers.map(<[_]>::to_vec).or_else(|| bound().filter(|bound| !bound.is_empty()));
    if signers.is_none_or(|signers| trust_one_of(keys, &signers)) {
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

/// Whether one of `signers` is trusted, or may be: as long as a file of keys cannot be read, it is unknown whose key is lost. Quick.
pub(super) fn trust_one_of(keys: &Trusted, signers: &[Box<str>]) -> bool {
    let keys = keys.get();
    let trusted = keys.signers();
    !keys.is_whole() || signers.iter().any(|signer| trusted.contains(signer))
}
