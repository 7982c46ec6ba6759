//! What a key proved, when it is trusted no more.
//!
//! A repository of which nobody who signed is trusted any more proves nothing: its claims are taken back, so that its files
//! are judged anew, and what is stored of it is worth what its way here is worth. What came over plain http is not kept
//! without a signature. What somebody else proves, today or at the next look, rises again by itself; a file that its own
//! request names by a digest needs nobody.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;

use super::Admin;
use crate::entry::Entry;
use crate::proof::{Proof, Rank};
use crate::target::{Root, Scheme, Target};

/// Undoes what was proven in those of the repositories at `roots` of which nobody who signed is trusted; says which they
/// are. Blocking.
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
    for root in &undone {
        admin.store.retract_signed_claims(root, now);
    }
    // Of nested repositories the deepest speaks.
    let is_undone = |target: &Target| {
        let roots = bindings.iter().map(|(root, _)| root).filter(|root| root.covers(target));
        roots.max_by_key(|root| root.path.len()).is_some_and(|root| undone.contains(&root))
    };
    // Collected first: the store is not to be changed while it is walked.
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
                    "the key is removed, and {shown} is still kept as what it proved: {error}"
                ));
            }
            // It went meanwhile.
            Ok(()) | Err(_) => {}
        }
    }
    Ok(undone.into_iter().map(ToString::to_string).collect())
}

/// What is left of an entry that came over TLS.
fn drop_signature(entry: &mut Entry) {
    let rank = if entry.index { Rank::Origin } else { Rank::Pinned };
    let Proof { stale, private, .. } = entry.proof;
    entry.proof = Proof { stale, private, ..Proof::of(rank) };
}
