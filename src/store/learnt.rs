//! The store's interface to what larder has learnt and must keep even if the cache is deleted (`state.rs`).

use std::collections::HashMap;

use super::{Convention, Store};
use crate::claim::PackageCount;
use crate::clock::Time;
use crate::digest::Digest;
use crate::target::{Origin, Root, Target};

impl Store {
    /// What is known about the name of `file`, whose convention `ecosystem` counts below `root`. Quick.
    pub fn convention(&self, ecosystem: &str, root: &Root, file: &Target) -> Convention {
        self.state.conventions.of(ecosystem, root, file)
    }

    /// A number that is higher after each observation about a naming convention that is news, and after each root that an answer
    /// confirmed for the first time. As with [`Store::generation`], a caller that
    /// remembers a judgement must read it before it judges. Quick.
    pub fn convention_changes(&self) -> u64 {
        self.state.conventions.changes()
    }

    /// Notes that `file` matches the digest in its name. Blocking if it was known not to match.
    pub fn note_convention(&self, ecosystem: &str, root: &Root, file: &Target, named: &Digest) {
        self.state.conventions.matched(ecosystem, root, file, named);
    }

    /// Notes that `file` does not match the digest in its name, unless the convention is believed there. Blocking when
    /// it is news.
    pub fn note_unconventional(&self, ecosystem: &str, root: &Root, file: &Target) {
        self.state.conventions.missed(ecosystem, root, file);
    }

    /// Whether an answer confirmed that `root` is a root of `ecosystem`. Quick.
    pub fn is_confirmed(&self, ecosystem: &str, root: &Root) -> bool {
        self.state.is_confirmed(ecosystem, root)
    }

    /// Notes that an answer confirmed `root`. Quick.
    pub fn confirm_root(&self, ecosystem: &str, root: &Root) {
        self.state.confirm_root(ecosystem, root);
    }

    /// The keys that signed for `root` so far, by the fingerprints of primary keys. Quick.
    pub fn signers(&self, root: &Root) -> Vec<Box<str>> {
        self.state.signers(root)
    }

    /// Notes that signatures by `signers` prove something below `root`. Unlike a binding, this admits no later signature; it tells
    /// what to revoke when a key is lost. Blocking when it is news.
    pub fn note_vouchers(&self, root: &Root, signers: &[Box<str>]) {
        self.state.note_vouchers(root, signers);
    }

    /// Every root below which signatures prove something, with the keys that signed, bound or not. Quick.
    pub fn vouchers(&self) -> HashMap<Root, Vec<Box<str>>> {
        self.state.vouchers()
    }

    /// The keys with which something below `root` was proven, bound or not. Quick.
    pub fn vouchers_of(&self, root: &Root) -> Vec<Box<str>> {
        self.state.vouchers_of(root)
    }

    /// Those of the repository of `target`: of the nested roots above it, the deepest counts. Empty if none is known. Quick.
    pub fn vouchers_above(&self, target: &Target) -> Vec<Box<str>> {
        self.state.vouchers_above(target)
    }

    /// Notes which keys signed for `root`. Blocking when it is news.
    pub fn bind_signers(&self, root: &Root, signers: &[Box<str>]) {
        self.state.bind_signers(root, signers);
    }

    /// Every root for which a signature was seen, with the keys that signed. Quick.
    pub fn bindings(&self) -> Vec<(Root, Vec<Box<str>>)> {
        self.state.bindings()
    }

    /// Forgets the keys that signed for `root`, and the newest dates below it, as if it had never been seen. Returns
    /// the forgotten keys. Blocking.
    pub fn unbind(&self, root: &Root) -> Vec<Box<str>> {
        self.state.unbind(root)
    }

    /// The roots with an index that did not count because none of its signing keys may sign for the root, and the names
    /// of those keys. Quick.
    pub fn waiting(&self) -> Vec<(Root, Vec<Box<str>>)> {
        self.state.waiting()
    }

    /// Notes the keys that `root` waits for; an empty list when an index counts again. Blocking when it is news.
    pub fn note_waiting(&self, root: &Root, makers: &[Box<str>]) {
        self.state.note_waiting(root, makers);
    }

    /// From now on the key `signer` may sign for `root`, too. Blocking.
    pub fn let_sign(&self, root: &Root, signer: &str) {
        self.state.let_sign(root, signer);
    }

    /// The newest date of the signed index in `directory`. Quick.
    pub fn newest_date(&self, directory: &Root) -> Option<Time> {
        self.state.newest_date(directory)
    }

    /// Notes the date of the signed index in `directory`. Blocking when it is news.
    pub fn note_date(&self, directory: &Root, date: Time) {
        self.state.note_date(directory, date);
    }

    /// The directories on `origin` in which dated, signed indexes were seen, most recent first. Quick.
    pub fn snapshot_directories(&self, origin: &Origin) -> Vec<Root> {
        self.state.snapshot_directories(origin)
    }

    /// The time until which the newest signed index in `directory` is valid; `None` if it does not expire. Quick.
    pub fn valid_until(&self, directory: &Root) -> Option<Time> {
        self.state.valid_until(directory)
    }

    /// The only keys that may sign the next index in `directory`; no restriction if empty. Quick.
    pub fn successors(&self, directory: &Root) -> Vec<Box<str>> {
        self.state.successors(directory)
    }

    /// Notes the only keys that may sign the next index in `directory`. Blocking when it is news.
    pub fn note_successors(&self, directory: &Root, successors: &[Box<str>]) {
        self.state.note_successors(directory, successors);
    }

    /// Notes until when the newest signed index in `directory` is valid. Quick.
    pub fn note_valid_until(&self, directory: &Root, until: Option<Time>) {
        self.state.note_valid_until(directory, until);
    }

    /// The package count of the index in `directory` when it was last read, and the newest build date that it ever
    /// listed. Quick.
    pub fn census(&self, directory: &Root) -> Option<PackageCount> {
        self.state.census(directory)
    }

    /// Notes the package count of the index in `directory`. Blocking when it is news.
    pub fn note_package_count(&self, directory: &Root, census: PackageCount) {
        self.state.note_package_count(directory, census);
    }

    /// The secret for credential partitions.
    pub fn secret(&self) -> [u8; 32] {
        self.state.secret()
    }
}
