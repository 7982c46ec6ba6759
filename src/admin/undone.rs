//! Revokes what a key proved, once it is no longer trusted.
//!
//! If none of a repository's signers is trusted any more, the repository proves nothing: its claims are deleted, so
//! that its files are judged again, and its stored entries keep only the proof of their transport. Entries that came
//! over plain http are not kept without a signature. What another trusted key proves, now or at the next
//! revalidation, is raised again automatically; a file whose URL names its digest needs no signer.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;

use super::Admin;
use crate::entry::Entry;
use crate::proof::{Proof, Rank};
use crate::target::{Root, Scheme, Target};

/// Revokes what was proven in those repositories at `roots` of which no signer is trusted any more, and returns
/// these. Blocking.
pub(super) fn without(admin: &Admin, roots: &[String]) -> Result<Vec<String>, String> {
    let now = admin.clock.now();
    let trusted: HashSet<Box<str>> =
        admin.read_keys().about(now).map(|about| about.signer.0).collect();
    let bindings = admin.store.bindings();
    let undone: Vec<&Root> = bindings
        .iter()
        .filter(|(_, signers)| !signers.iter().any(|signer| trusted.contains(signer)))
        .map(|(root, _)| root)
        .filter(|root| roots.contains(&root.to_string()))
        .collect();
    if undone.is_empty() {
        return Ok(Vec::new());
    }
    let mut retracted = Ok(());
    for root in &undone {
        let failed = |error| {
            format!(
                "the key is removed, but not all files of the claims that it proved below {root}: {error}; those count again after a restart. \
                 Stop larder, delete the directory v1/claims in its data directory, and start it"
            )
        };
        let done = admin.store.retract_signed_claims(root).map_err(failed);
        retracted = retracted.and(done);
    }
    // Of nested repositories the deepest one counts.
    let is_undone = |target: &Target| {
        let roots = bindings.iter().map(|(root, _)| root).filter(|root| root.covers(target));
        roots.max_by_key(|root| root.path.len()).is_some_and(|root| undone.contains(&root))
    };
    // Collected first: the store must not be changed while it is walked.
    let mut lowered = Vec::new();
    admin.store.for_each_entry(&mut |entry| {
        let target = (entry.proof.rank == Rank::Signed).then(|| Target::from_url(&entry.shown));
        if let Some(target) = target.flatten().filter(|target| is_undone(target)) {
            lowered.push((target.origin().scheme, entry.clone()));
        }
        ControlFlow::Continue(())
    });
    for (scheme, entry) in lowered {
        let shown = entry.shown.clone();
        let done = match scheme {
            Scheme::Http => admin.store.remove(&entry),
            Scheme::Https => admin.store.update(&entry, drop_signature).map(|_| ()),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!(
                    "the key is removed, but {shown} still counts as proven by it: {error}"
                ));
            }
            // It was removed in the meantime.
            Ok(()) | Err(_) => {}
        }
    }
    retracted?;
    Ok(undone.into_iter().map(ToString::to_string).collect())
}

/// The proof that is left of an entry that came over TLS.
fn drop_signature(entry: &mut Entry) {
    let rank = if entry.index { Rank::Origin } else { Rank::Pinned };
    let Proof { stale, private, .. } = entry.proof;
    entry.proof = Proof { stale, private, ..Proof::of(rank) };
}
