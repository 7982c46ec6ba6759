//! Manages trusted keys, and the bindings between repositories and the keys that signed for them: `larder keys`.
//!
//! ```text
//! add     files ─▶ all are parsed ─▶ one file for each key in DATA/state/keys        ─┐
//! rm      a key ─▶ removed from the files there ─▶ what it alone proved is revoked   ─┼─▶ the keyring is read again
//! rebind  a root ─▶ its signers are forgotten                                        ─┘
//! ```
//!
//! All or nothing: if one of the given files is invalid, no key is added. A copy that differs from an existing one is
//! stored beside it, because a revocation in any copy counts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::question::Answer;
use super::question::keys::{KeyFile, KeyQuestion, ListedKey, Rebound};
use super::{Admin, Running, state_dir};
use crate::digest::{hex, key_hash};
use crate::keyring::{
    Fingerprint, Key, KeyDescription, Keyring, Kind, NotKeys, Source, contents, load, openpgp,
};
use crate::store::write_durably;
use crate::target::{Origin, Root, Scheme, Target};

/// The most bytes that one question may add: twice the longest key file.
pub const MAX_ADDED: usize = 8 << 20;

/// Receives answers one by one; a break means that the client is gone.
type Listener<'a> = &'a mut dyn FnMut(Answer) -> ControlFlow<()>;

impl Admin {
    /// Reports keys that sign for a repository and expire soon, or have expired, in the log and in the metrics. After
    /// a key has expired, what it signs is no longer proven.
    pub fn warn_of_ending_keys(&self) {
        let Some(running) = &self.running else { return };
        let now = self.clock.now();
        let bindings = self.store.bindings();
        let signs =
            |signer: &Fingerprint| bindings.iter().any(|(_, signers)| signers.contains(&signer.0));
        // Checking when a certificate ends costs a signature verification, and most keys sign for no repository here.
        let listed = self.listed_of(&signs);
        let ending = listed.values().filter(|key| key.ends_soon(now) && !key.used_by.is_empty());
        let mut count = 0;
        for key in ending {
            count += 1;
            let when =
                if key.ends.is_some_and(|ends| ends < now) { "has ended" } else { "ends soon" };
            tracing::warn!(
                key = %key.fingerprint, user = key.user, ends = key.ends.map(tracing::field::display),
                used_by = key.used_by.join(" "),
                "a key that signs for a repository {when}; add the next one with `larder keys add FILE`, or the same one with a \
                 later end, as the repository's operator publishes it"
            );
        }
        running.metrics.keys_ending(count);
    }

    /// Answers a question about keys. Blocking.
    pub(super) fn answer_keys(&self, question: &KeyQuestion, listener: Listener<'_>) {
        let answered = match question {
            KeyQuestion::List => Ok(self.listed().into_values().map(key_answer).collect()),
            KeyQuestion::Add { files } => self.add_keys(files),
            KeyQuestion::Remove { fingerprint } => self.remove_key(fingerprint),
            KeyQuestion::Rebind { url } => self.rebind(url),
        };
        let answers: Vec<Answer> = answered.unwrap_or_else(|why| vec![Answer::Failed(why)]);
        for answer in answers {
            if listener(answer).is_break() {
                return;
            }
        }
    }

    /// The keys as they are on disk: a command that just changed them must see the result.
    pub(super) fn read_keys(&self) -> Keyring {
        let config = self.config.get();
        let before = self.store.keys_in_force();
        Keyring::trusted(&config.keys, &state_dir(&config.data), before.as_ref())
    }

    /// Every key once, by kind and fingerprint, also those that cannot be read now.
    fn listed(&self) -> BTreeMap<(Kind, Fingerprint), ListedKey> {
        let mut listed = self.listed_of(&|_| true);
        let bindings = self.store.bindings();
        for (signer, at) in self.keyring().missing() {
            let Some(kind) = Kind::of_signer(signer) else { continue };
            let fingerprint = Fingerprint(signer.clone());
            let bound = bindings.iter().filter(|(_, signers)| signers.contains(signer));
            listed.entry((kind, fingerprint.clone())).or_insert_with(|| ListedKey {
                kind,
                user: String::new(),
                ends: None,
                sources: Vec::new(),
                used_by: bound.map(|(root, _)| root.to_string()).collect(),
                now_signs: Vec::new(),
                undone: Vec::new(),
                missing: Some(at.clone()),
                fingerprint,
            });
        }
        listed
    }

    /// The keys in force, or those on disk if no larder serves.
    fn keyring(&self) -> Arc<Keyring> {
        match &self.running {
            Some(running) => running.keys.get(),
            None => Arc::new(self.read_keys()),
        }
    }

    /// Every key once, by kind and fingerprint, of those by which `of` accepts signatures.
    fn listed_of(
        &self,
        of: &dyn Fn(&Fingerprint) -> bool,
    ) -> BTreeMap<(Kind, Fingerprint), ListedKey> {
        let keyring = self.keyring();
        let bindings = self.store.bindings();
        let mut listed: BTreeMap<(Kind, Fingerprint), ListedKey> = BTreeMap::new();
        for KeyDescription { kind, fingerprint, signer, user, ends, source } in
            keyring.about_those(self.clock.now(), of)
        {
            let known = listed.entry((kind, fingerprint.clone())).or_insert_with(|| ListedKey {
                kind,
                user,
                ends,
                sources: Vec::new(),
                used_by: bindings
                    .iter()
                    .filter(|(_, signers)| signers.contains(&signer.0))
                    .map(|(root, _)| root.to_string())
                    .collect(),
                now_signs: Vec::new(),
                undone: Vec::new(),
                missing: None,
                fingerprint,
            });
            known.ends = kind.ends(known.ends, ends);
            if !known.sources.contains(&source) {
                known.sources.push(source);
            }
        }
        listed
    }

    fn directory(&self) -> PathBuf {
        load::operators(&state_dir(&self.config.get().data))
    }

    fn add_keys(&self, files: &[KeyFile]) -> Result<Vec<Answer>, String> {
        let mut added = Vec::new();
        let mut wrong = Vec::new();
        for file in files {
            match keys_of(file) {
                Ok(keys) => added.extend(keys),
                Err(why) => wrong.push(format!("{}: {why}", file.name)),
            }
        }
        if !wrong.is_empty() {
            wrong.push("nothing was added".to_owned());
            return Err(wrong.join("; "));
        }
        let directory = self.directory();
        let mut written = Vec::new();
        for key in &added {
            if let Err(error) = write(&directory, key, &mut written) {
                for path in written {
                    // Best effort: a file that stays contains a key that the operator wanted to add.
                    let _gone = std::fs::remove_file(path);
                }
                return Err(format!("{error}; nothing was added"));
            }
        }
        // An error concerns other keys, and was logged.
        let _revoked = self.reload_keys();
        let names: Vec<(Kind, Fingerprint)> =
            added.iter().map(|key| (key.kind(), key.fingerprint())).collect();
        let mut let_sign = self.let_sign(&names);
        let mut listed = self.listed();
        let known = names.into_iter().filter_map(|name| {
            let now_signs = let_sign.remove(&name).unwrap_or_default();
            listed.remove(&name).map(|key| key_answer(ListedKey { now_signs, ..key }))
        });
        Ok(known.collect())
    }

    /// Accepts the added keys as signers of those repositories whose newest index is signed with them and was not
    /// accepted without them. So `larder keys add` is all that is needed when an archive changes its key.
    fn let_sign(
        &self,
        added: &[(Kind, Fingerprint)],
    ) -> BTreeMap<(Kind, Fingerprint), Vec<String>> {
        let (keyring, now) = (self.read_keys(), self.clock.now());
        let mut let_sign: BTreeMap<_, Vec<String>> = BTreeMap::new();
        let waiting = self.store.waiting();
        for about in keyring.about(now) {
            let name = (about.kind, about.fingerprint);
            if !added.contains(&name) || let_sign.contains_key(&name) {
                continue;
            }
            let (fingerprint, signer) = (&*name.1.0, &*about.signer.0);
            let is_maker = |maker: &str| {
                maker == fingerprint
                    || keyring.names(maker, signer, now)
                    || maker.len() == openpgp::KEY_ID && signer.ends_with(maker)
            };
            let roots =
                waiting.iter().filter(|(_, makers)| makers.iter().any(|maker| is_maker(maker)));
            let mut signs = Vec::new();
            for (root, _) in roots {
                let twin = twin(root).filter(|twin| !self.store.signers(twin).is_empty());
                for root in [Some(root.clone()), twin].into_iter().flatten() {
                    self.store.let_sign(&root, signer);
                    signs.push(root.to_string());
                }
            }
            let_sign.insert(name, signs);
        }
        let_sign
    }

    fn remove_key(&self, named: &str) -> Result<Vec<Answer>, String> {
        let mut found: Vec<ListedKey> = self
            .listed()
            .into_values()
            .filter(|key| key.kind.is_named(&key.fingerprint, named))
            .collect();
        let (Some(key), None) = (found.pop(), found.pop()) else {
            return Err(format!(
                "{named} names no key, or more than one; `larder keys list` shows their fingerprints"
            ));
        };
        let operators = key.sources.iter().any(|source| matches!(source, Source::Operator(_)));
        if key.missing.is_none() && !operators {
            return Err(not_ours(&key));
        }
        let taken = take_out(&self.directory(), &key);
        // Files that cannot be read may hold it as well.
        let removed = taken.and_then(|()| self.give_up(&key.fingerprint));
        removed.map_err(|error| format!("{} could not be removed: {error}", key.fingerprint))?;
        let roots = match &self.running {
            Some(_) => self.reload_keys(),
            // The next larder that serves finds the key lost, and does it again: it knows all keys by its own configuration.
            None => self.revoke_at(&key.used_by),
        };
        let roots = roots.map_err(|why| format!("the key is removed, but {why}"))?;
        let name = (key.kind, key.fingerprint.clone());
        let mut left =
            self.listed().remove(&name).unwrap_or(ListedKey { sources: Vec::new(), ..key });
        let undone = roots.iter().map(ToString::to_string);
        left.undone = undone.filter(|root| left.used_by.contains(root)).collect();
        Ok(vec![key_answer(left)])
    }

    /// Notes that a key is gone from the files that cannot be read, and deletes those of the operator's that held no other key.
    fn give_up(&self, key: &Fingerprint) -> io::Result<()> {
        // Nobody else changes the note meanwhile.
        let _alone = self.running.as_ref().map(Running::settled);
        // If the keys in force are unknown, no key is missing.
        let Some(mut known) = self.store.keys_in_force() else { return Ok(()) };
        let is_it = |signer: &str| signer.split('.').next() == Some(&*key.0);
        let mut places = BTreeSet::new();
        for (_, at) in known.keys.iter_mut().filter(|(signer, _)| is_it(signer)) {
            places.extend(at.replace(BTreeSet::new()).into_iter().flatten());
        }
        self.store.note_keys_in_force(&known)?;
        let held: BTreeSet<&String> = known.keys.values().flatten().flatten().collect();
        let directory = self.directory();
        let own = places.iter().filter(|at| Path::new(at).parent() == Some(&*directory));
        for at in own.filter(|at| !held.contains(at)).map(Path::new) {
            let name = at.file_name().unwrap_or_default().to_string_lossy();
            let read = load::bytes_of(at).and_then(|bytes| contents::read(&bytes, &name));
            if read.is_ok() {
                // It may hold another key by now.
                continue;
            }
            match std::fs::remove_file(at) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn rebind(&self, url: &str) -> Result<Vec<Answer>, String> {
        let bindings = self.store.bindings();
        let named = Target::from_url(url).and_then(|target| named_root(&target, &bindings));
        let Some(root) = named else {
            let bound: Vec<String> = bindings.iter().map(|(root, _)| root.to_string()).collect();
            return Err(format!(
                "no signer of {url} is known; the repositories with known signers are: {}",
                if bound.is_empty() { "none".to_owned() } else { bound.join(" ") }
            ));
        };
        let rebound = [Some(root.clone()), twin(&root)].into_iter().flatten().filter_map(|root| {
            let forgotten: Vec<String> =
                self.store.unbind(&root).into_iter().map(String::from).collect();
            let bound = !forgotten.is_empty();
            bound.then(|| Answer::Rebound(Rebound { root: root.to_string(), forgotten }))
        });
        Ok(rebound.collect())
    }
}

fn key_answer(key: ListedKey) -> Answer {
    Answer::Key(Box::new(key))
}

/// The keys in a given file.
fn keys_of(file: &KeyFile) -> Result<Vec<Key>, String> {
    let bytes = STANDARD.decode(&file.base64).map_err(|error| error.to_string())?;
    let name = Path::new(&file.name).file_name().unwrap_or_default().to_string_lossy();
    let found = contents::read(&bytes, &name).map_err(|error| error.to_string())?;
    if found.damaged {
        return Err(NotKeys::Damaged.to_string());
    }
    Ok(found.keys)
}

/// Writes a key into a file of its own, and records the file if it is new. An existing file is not changed.
fn write(directory: &Path, key: &Key, written: &mut Vec<PathBuf>) -> io::Result<()> {
    let (name, bytes) = key.to_file().ok_or_else(|| {
        io::Error::other(format!("the key {} cannot be written", key.fingerprint()))
    })?;
    let mut path = directory.join(&name);
    match std::fs::read(&path) {
        Ok(known) if known == bytes => return Ok(()),
        Ok(_) => {
            let Some((stem, end)) = name.rsplit_once('.').filter(|_| key.kind().has_copies())
            else {
                return Err(io::Error::other(format!(
                    "another key of the name {name} is known; `larder keys rm {name}` removes it"
                )));
            };
            let digest = hex(&key_hash([&bytes]));
            let digest = digest.get(..16).unwrap_or_default();
            path = directory.join(format!("{stem}-{digest}.{end}"));
            if path.exists() {
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The file contains nothing secret, and other users may have to read it: larder itself, if root added the key.
    write_durably(&path, &bytes, 0o644)?;
    written.push(path);
    Ok(())
}

/// Removes a key from the files of a directory. The other keys of such a file are kept, in files of their own.
fn take_out(directory: &Path, key: &ListedKey) -> io::Result<()> {
    let files = match load::files(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        files => files.unwrap_or_default(),
    };
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(found) = load::bytes_of(&path).and_then(|bytes| contents::read(&bytes, &name))
        else {
            continue;
        };
        let is_it =
            |other: &Key| other.kind() == key.kind && other.fingerprint() == key.fingerprint;
        let (gone, rest): (Vec<Key>, Vec<Key>) = found.keys.into_iter().partition(is_it);
        if gone.is_empty() {
            continue;
        }
        let whole = rest.iter().filter_map(|key| key.to_file()).find(|(other, _)| *other == name);
        for other in rest {
            if other.to_file().is_none_or(|(other, _)| other != name) {
                write(directory, &other, &mut Vec::new())?;
            }
        }
        match whole {
            Some((_, bytes)) => write_durably(&path, &bytes, 0o644)?,
            None => std::fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// Why a key that was not added cannot be removed.
fn not_ours(key: &ListedKey) -> String {
    let reasons: Vec<String> = key
        .sources
        .iter()
        .map(|source| match source {
            Source::BuiltIn(whose) => format!(
                "it is built in, as one of {whose}'s; `keys.built_in = false` disables all built-in keys"
            ),
            Source::System(file) => {
                format!("it is the system's; remove {file}, or name other places in `keys.system`")
            }
            Source::Operator(file) => format!("it is in {file}"),
        })
        .collect();
    format!("{} cannot be removed: {}", key.fingerprint, reasons.join("; and "))
}

/// The bound root that a URL refers to: the deepest of those above the URL.
fn named_root(target: &Target, bindings: &[(Root, Vec<Box<str>>)]) -> Option<Root> {
    let path = format!("{}/", target.path().trim_end_matches('/'));
    let above = bindings
        .iter()
        .map(|(root, _)| root)
        .filter(|root| root.origin == *target.origin() && path.starts_with(&*root.path));
    above.max_by_key(|root| root.path.len()).cloned()
}

/// The same archive over TLS: its signers count for plain http as well.
fn twin(root: &Root) -> Option<Root> {
    let plain = root.origin.scheme == Scheme::Http && root.origin.port == 80;
    plain.then(|| Root {
        origin: Origin { scheme: Scheme::Https, port: 443, ..root.origin.clone() },
        path: root.path.clone(),
    })
}
