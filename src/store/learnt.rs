//! What larder learnt and must not forget when the cache is deleted, as the rest of larder asks for it (`state.rs`).

use super::{Convention, Store};
use crate::claim::Census;
use crate::clock::Time;
use crate::digest::Digest;
use crate::target::{Origin, Root, Target};

impl Store {
    /// What is known of the name of `file`, whose convention `ecosystem` counts below `root`. Quick.
    pub fn convention(&self, ecosystem: &str, root: &Root, file: &Target) -> Convention {
        self.state.conventions.of(ecosystem, root, file)
    }

    /// Notes that `file` has the digest in its name. Blocking where it was known as one that has not.
    pub fn note_convention(&self, ecosystem: &str, root: &Root, file: &Target, named: &Digest) {
        self.state.conventions.matched(ecosystem, root, file, named);
    }

    /// Notes that `file` has not the digest in its name, where names are not believed. Blocking when it is news.
    pub fn note_unconventional(&self, ecosystem: &str, root: &Root, file: &Target) {
        self.state.conventions.missed(ecosystem, root, file);
    }

    /// Whether an answer confirmed that `root` is one of `ecosystem`. Quick.
    pub fn is_confirmed(&self, ecosystem: &str, root: &Root) -> bool {
        self.state.is_confirmed(ecosystem, root)
    }

    /// Notes that an answer confirmed `root`. Quick.
    pub fn confirm_root(&self, ecosystem: &str, root: &Root) {
        self.state.confirm_root(ecosystem, root);
    }

    /// Who signed for `root` so far, by the fingerprints of primary keys. Quick.
    pub fn signers(&self, root: &Root) -> Vec<Box<str>> {
        self.state.signers(root)
    }

    /// Notes who signed for `root`. Blocking when it is news.
    pub fn bind_signers(&self, root: &Root, signers: &[Box<str>]) {
        self.state.bind_signers(root, signers);
    }

    /// Every root that somebody signed for, and who did. Quick.
    pub fn bindings(&self) -> Vec<(Root, Vec<Box<str>>)> {
        self.state.bindings()
    }

    /// Forgets who signed for `root`, and the newest dates below it: it is as if it had never been seen. Gives back who
    /// had signed. Blocking.
    pub fn unbind(&self, root: &Root) -> Vec<Box<str>> {
        self.state.unbind(root)
    }

    /// What the makers are called of indexes that did not count because none of these may sign for that root. Quick.
    pub fn waiting(&self) -> Vec<(Root, Vec<Box<str>>)> {
        self.state.waiting()
    }

    /// Notes them; none, when an index counts again. Blocking when it is news.
    pub fn note_waiting(&self, root: &Root, makers: &[Box<str>]) {
        self.state.note_waiting(root, makers);
    }

    /// From now on `signer` signs for `root`, too. Blocking.
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
    pub fn editions(&self, origin: &Origin) -> Vec<Root> {
        self.state.editions(origin)
    }

    /// Until when the newest signed index in `directory` may be believed; `None` for ever. Quick.
    pub fn valid_until(&self, directory: &Root) -> Option<Time> {
        self.state.valid_until(directory)
    }

    /// Who alone may sign the next index in `directory`; nobody in particular if empty. Quick.
    pub fn successors(&self, directory: &Root) -> Vec<Box<str>> {
        self.state.successors(directory)
    }

    /// Notes who alone may sign the next index in `directory`. Blocking when it is news.
    pub fn note_successors(&self, directory: &Root, successors: &[Box<str>]) {
        self.state.note_successors(directory, successors);
    }

    /// Notes until when the newest signed index in `directory` may be believed. Quick.
    pub fn note_valid_until(&self, directory: &Root, until: Option<Time>) {
        self.state.note_valid_until(directory, until);
    }

    /// What the index in `directory` listed when it was last read, and the newest that it ever did. Quick.
    pub fn census(&self, directory: &Root) -> Option<Census> {
        self.state.census(directory)
    }

    /// Notes what the index in `directory` lists. Blocking when it is news.
    pub fn note_census(&self, directory: &Root, census: Census) {
        self.state.note_census(directory, census);
    }

    /// The secret for credential partitions.
    pub fn secret(&self) -> [u8; 32] {
        self.state.secret()
    }
}
