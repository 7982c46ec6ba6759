//! Which of several stored answers a request selects (RFC 9111 §4.1).
//!
//! An answer without `Vary` serves every request for its URL, whatever its `Accept`. With `Vary`, only the fields that it names
//! decide: their names and the request's values are the variant under which the answer is kept. larder remembers these names for
//! each URL, and reads them from the stored answers after a start. A fill always sends `Accept` and `Accept-Language`, and of the
//! client's other fields those that an earlier answer of the URL named. A field that a fill sends and its answer does not name is
//! still part of the variant, so that no client determines what others are given (promise P1).
//!
//! Indexes that have several forms are kept apart by `Accept` whatever the origin says, because many origins forget `Vary`. Each
//! ecosystem names its forms. A request that matches none of them exactly (a browser's) is kept apart by the `Accept` header
//! itself.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::header::{self, HeaderName};
use moka::sync::Cache;

use super::Pipeline;
use super::answers::confirms;
use super::in_use::in_use;
use super::task::Task;
use crate::entry::{Entry, Head};
use crate::freshness::vary;
use crate::policy;
use crate::received::Received;
use crate::target::{Key, Target, is_field};

/// The most fields of a request under which stored answers are looked for if nothing is remembered of their URL.
const MOST_FIELDS: usize = 7;

/// The most combinations of these fields that are tried, small ones first: all of six fields, and of seven those of at most three.
const MOST_GUESSES: usize = 64;

/// Fields with longer values, in bytes, are not guessed: a client may send 128 KiB, and a value is computed for each combination.
const MOST_VALUE: usize = 1024;

/// The most URLs of which the fields are remembered while no client requests them. Each takes some 300 bytes, and few URLs have
/// any.
const MOST_VARYING: u64 = 1 << 14;

/// The request fields by which answers of each URL are selected, according to its last answer.
#[derive(Debug)]
pub(super) struct VaryingFields {
    in_use: Cache<Key, Arc<[HeaderName]>>,
    /// The URLs with such fields, for longer. The store alone gives the fields only to requests that select a stored answer, and
    /// not if there are very many.
    varying: Cache<Key, Arc<[HeaderName]>>,
}

impl Default for VaryingFields {
    fn default() -> Self {
        Self { in_use: in_use(), varying: Cache::new(MOST_VARYING) }
    }
}

impl VaryingFields {
    /// The fields of a URL, if they are remembered.
    fn of(&self, url: Key) -> Option<Arc<[HeaderName]>> {
        self.in_use.get(&url).or_else(|| {
            let names = self.varying.get(&url)?;
            self.in_use.insert(url, Arc::clone(&names));
            Some(names)
        })
    }

    fn note(&self, url: Key, names: &Arc<[HeaderName]>) {
        if names.is_empty() {
            self.varying.invalidate(&url);
        } else {
            self.varying.insert(url, Arc::clone(names));
        }
        self.in_use.insert(url, Arc::clone(names));
    }

    /// Frees the memory of expired entries.
    pub(super) fn tidy(&self) {
        self.in_use.run_pending_tasks();
        self.varying.run_pending_tasks();
    }
}

/// How an answer was selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    /// By these fields, which were sent.
    By(Vec<HeaderName>),
    /// By these fields, one of which was not sent but can be.
    Unsent(Vec<HeaderName>),
    /// By a field that no fill sends.
    Unsendable,
    /// By more than the request (`Vary: *`): a stored copy never matches.
    Never,
}

impl Task {
    /// Lets fills forward the fields in `forwarded`, and lets those in `harmless` select answers.
    #[must_use]
    pub(super) fn forwarding(mut self, forwarded: &[String], harmless: &[String]) -> Self {
        if !forwarded.is_empty() {
            let named =
                |name: &&HeaderName| forwarded.iter().any(|pattern| policy::fits(name, pattern));
            self.selection.forwarded =
                self.selection.request.keys().filter(named).cloned().collect();
        }
        self.selection.sendable = harmless.into();
        self
    }

    /// The fields by which this answer to a fill of the task was selected.
    pub(super) fn selected(&self, head: &Head) -> Selected {
        let Some(mut names) = vary::names(head) else {
            return Selected::Never;
        };
        let logins = self.known().map_or(&[][..], |known| known.ecosystem.profile().login_headers);
        if !self.principal.is_private() && names.iter().any(|name| is_field(name, logins)) {
            // The answer depends on the principal: another anonymous client may be given another answer.
            return Selected::Unsendable;
        }
        names.retain(|name| !self.is_in_key(name));
        let request = &self.selection;
        let has = |name: &HeaderName| !request.value(name).is_empty();
        let sent = |name: &HeaderName| {
            let goes_on = request.names.contains(name) && request.may_send(name)
                || request.forwarded.contains(name)
                || [header::ACCEPT, header::ACCEPT_LANGUAGE].contains(name);
            // A fill for a client without a `User-Agent` has larder's own.
            if has(name) { goes_on } else { *name != header::USER_AGENT }
        };
        if names.iter().all(sent) {
            return Selected::By(names);
        }
        let sendable = |name: &HeaderName| sent(name) || has(name) && request.may_send(name);
        if self.is_unknown() && names.iter().all(sendable) {
            Selected::Unsent(names)
        } else {
            Selected::Unsendable
        }
    }

    /// Whether a field is part of the key in another way: as a credential, or as the form of an index that an ecosystem
    /// recognises.
    fn is_in_key(&self, name: &HeaderName) -> bool {
        let form = [header::ACCEPT, header::ACCEPT_LANGUAGE].contains(name) && !self.is_unknown();
        let logins = self.known().map_or(&[][..], |known| known.ecosystem.profile().login_headers);
        form || is_field(name, logins)
    }

    /// Whether the request selects this stored answer.
    pub(super) fn selects(&self, entry: &Entry) -> bool {
        if entry.proof.rank.is_strong() {
            // These bytes are the same for every client, whatever `Vary` says.
            return true;
        }
        let Some(names) = vary::names(&entry.head) else {
            return false;
        };
        names.iter().filter(|name| !self.is_in_key(name)).all(|name| {
            let kept = entry.varied.iter().find(|(known, _)| known == name.as_str());
            kept.map_or("", |(_, value)| value) == self.selection.value(name)
        })
    }

    /// The values of the request's fields by which an answer to it was selected.
    pub(super) fn selected_by(&self, head: &Head) -> Vec<(String, String)> {
        let names = vary::names(head).unwrap_or_default();
        let names = names.iter().filter(|name| !self.is_in_key(name));
        names.map(|name| (name.as_str().to_owned(), self.selection.value(name))).collect()
    }

    /// Whether the request has these values in these fields.
    pub(super) fn says(&self, values: &[(String, String)]) -> bool {
        values.iter().all(|(name, value)| {
            name.parse().is_ok_and(|name: HeaderName| self.selection.value(&name) == *value)
        })
    }

    /// The sets of fields under which an answer that this request selects may be stored: all combinations of those of its fields
    /// that a fill sends, as far as the limits allow. A field without a value does not change the variant.
    fn guesses(&self) -> Vec<Vec<HeaderName>> {
        let request = &self.selection;
        let is_long = |name: &HeaderName| request.value(name).len() > MOST_VALUE;
        if is_long(&header::ACCEPT) || is_long(&header::ACCEPT_LANGUAGE) {
            return vec![Vec::new()];
        }
        let usual = [header::ACCEPT, header::ACCEPT_LANGUAGE, header::USER_AGENT];
        let mut others: Vec<&HeaderName> = request.request.keys().collect();
        others.retain(|name| !usual.contains(name) && request.may_send(name));
        others.sort_unstable_by_key(|name| name.as_str());
        let fields: Vec<&HeaderName> = usual
            .iter()
            .chain(others)
            .filter(|name| (1..=MOST_VALUE).contains(&request.value(name).len()))
            .take(MOST_FIELDS)
            .collect();
        let mut sets: Vec<u32> = (0..1 << fields.len()).collect();
        sets.sort_by_key(|set| set.count_ones());
        sets.truncate(MOST_GUESSES);
        let chosen = |set: u32| {
            let all = fields.iter().enumerate();
            let chosen = all.filter(|(place, _)| set & (1 << place) != 0);
            chosen.map(|(_, name)| HeaderName::clone(name)).collect()
        };
        sets.into_iter().map(chosen).collect()
    }

    /// Makes this the task for answers that these fields select.
    fn select_by(&mut self, names: &[HeaderName]) {
        let variant = self.selection.variant(names);
        self.selection.names = names.into();
        self.in_variant(&variant);
    }

    /// Where an answer to an unrecognised task is kept, and the field values that select it: those of the fields that `Vary`
    /// names and of those that were sent.
    pub(super) fn place(&self, received: &Received) -> (Target, Vec<(String, String)>) {
        let selection = &self.selection;
        let mut names = match self.selected(&received.head) {
            Selected::By(names) => names,
            Selected::Unsent(_) | Selected::Unsendable | Selected::Never => Vec::new(),
        };
        let values = |names: &[HeaderName]| {
            let value = |name: &HeaderName| (name.as_str().to_owned(), selection.value(name));
            names.iter().map(value).collect()
        };
        if !self.is_unknown() {
            return (self.target.clone(), values(&names));
        }
        let own = [header::ACCEPT, header::ACCEPT_LANGUAGE];
        names.extend(selection.names.iter().filter(|name| !own.contains(name)).cloned());
        if selection.forms.as_ref().is_some_and(|forms| confirms(forms, self.bare(), received)) {
            // One of several forms, from an origin that does not say so in `Vary`.
            names.push(header::ACCEPT);
        }
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        (self.bare().clone().with_variant(&selection.variant(&names)), values(&names))
    }
}

impl Pipeline {
    /// Finds by which fields answers of an unrecognised task's URL are selected, and makes this the task for its variant.
    pub(super) fn choose(&self, task: &mut Task) {
        if !task.is_unknown() {
            return;
        }
        let forms = task.likely.clone().filter(|likely| !likely.resource.variant.name.is_empty());
        let forms = forms.or_else(|| crate::ecosystem::of_several_forms(task.bare()));
        task.selection.has_forms = task.likely.is_none()
            && forms.as_ref().is_some_and(|forms| {
                forms.certain
                    || self.store.is_confirmed(forms.ecosystem.name(), &forms.resource.root)
            });
        task.selection.forms = forms.map(Arc::new);
        let url = task.url_key();
        let names = self.memory.varies.of(url).or_else(|| {
            let names = self.stored_names(task)?.into();
            self.memory.varies.note(url, &names);
            Some(names)
        });
        task.select_by(&names.unwrap_or_default());
    }

    /// The fields named by the newest stored answer that the request selects; if it selects none, by the newest answer found.
    fn stored_names(&self, task: &Task) -> Option<Vec<HeaderName>> {
        let mut found: Vec<Arc<Entry>> = Vec::new();
        let mut seen = HashSet::new();
        for names in task.guesses() {
            let variant = task.selection.variant(&names);
            let key = task.key_of(&task.bare().clone().with_variant(&variant));
            if seen.insert(key) {
                found.extend(self.store.entries(key));
            }
        }
        let newest = found.iter().max_by_key(|entry| (task.selects(entry), entry.received_at))?;
        let mut names = vary::names(&newest.head)?;
        names.retain(|name| !task.is_in_key(name));
        let others = newest.varied.iter().filter_map(|(name, _)| name.parse().ok());
        names.extend(others);
        names.sort_unstable_by(|one: &HeaderName, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        Some(names)
    }

    /// Notes by which fields the answer that was just kept is selected.
    pub(super) fn note_place(&self, task: &Task, entry: &Entry) {
        if task.is_unknown() && entry.ecosystem.is_empty() {
            let names = entry.varied.iter().filter_map(|(name, _)| name.parse().ok()).collect();
            self.memory.varies.note(task.url_key(), &names);
        }
    }

    /// Notes that an answer was selected by a field that was not sent. The next request sends it; if no fill can send it,
    /// requests are passed for a while.
    pub(super) fn note_unselected(&self, task: &Task, selected: Selected) {
        match selected {
            Selected::Unsent(names) => self.memory.varies.note(task.url_key(), &names.into()),
            Selected::By(_) | Selected::Unsendable | Selected::Never => self.note_unshared(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// After a build only the URLs whose answers vary are remembered, and not too many of them.
    #[test]
    fn the_fields_that_select_an_answer_are_not_forgotten_after_a_build() {
        let fields = VaryingFields::default();
        let url = |number: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            Key(key)
        };
        let agent: Arc<[HeaderName]> = Arc::new([header::USER_AGENT]);
        fields.note(url(0), &Arc::default());
        fields.note(url(1), &agent);
        fields.note(url(2), &agent);
        fields.note(url(2), &Arc::default());
        while (0..3).any(|number| fields.in_use.contains_key(&url(number))) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fields.of(url(0)), None, "the control: the store shows that there are none");
        assert_eq!(fields.of(url(1)), Some(Arc::clone(&agent)));
        assert!(fields.in_use.contains_key(&url(1)), "the next hit finds it at once");
        assert_eq!(fields.of(url(2)), None, "its answers do not vary any more");
        for number in 0..2 * MOST_VARYING {
            fields.note(url(number), &agent);
        }
        fields.tidy();
        assert!((1..=MOST_VARYING).contains(&fields.varying.entry_count()));
    }
}
