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

use std::sync::Arc;

use hyper::header::{self, HeaderName};

use super::Pipeline;
use super::answers::confirms;
use super::task::Task;
use crate::entry::{Entry, Head};
use crate::freshness::vary;
use crate::policy;
use crate::received::Received;
use crate::target::{Target, is_field};

/// The fields by which answers of unrecognised targets mostly vary. Stored answers are looked for under these if nothing is
/// remembered.
const GUESSES: [&[HeaderName]; 6] = [
    &[],
    &[header::ACCEPT],
    &[header::ACCEPT_LANGUAGE],
    &[header::ACCEPT, header::ACCEPT_LANGUAGE],
    &[header::USER_AGENT],
    &[header::ACCEPT, header::USER_AGENT],
];

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
        let names = match self.memory.varies.get(&task.url_key()) {
            Some(names) => names,
            None => match self.stored_names(task) {
                Some(names) => {
                    let names: Arc<[HeaderName]> = names.into();
                    self.memory.varies.insert(task.url_key(), Arc::clone(&names));
                    names
                }
                None => Arc::default(),
            },
        };
        task.select_by(&names);
    }

    /// The fields named by the newest stored answer that the request selects; if it selects none, by the newest answer found.
    fn stored_names(&self, task: &Task) -> Option<Vec<HeaderName>> {
        let mut found: Vec<Arc<Entry>> = Vec::new();
        let mut seen = Vec::new();
        for names in GUESSES {
            let mut guess = task.clone();
            guess.select_by(names);
            if !seen.contains(&guess.key) {
                found.extend(self.store.entries(guess.key));
                seen.push(guess.key);
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
            self.memory.varies.insert(task.url_key(), names);
        }
    }

    /// Notes that an answer was selected by a field that was not sent. The next request sends it; if no fill can send it,
    /// requests are passed for a while.
    pub(super) fn note_unselected(&self, task: &Task, selected: Selected) {
        match selected {
            Selected::Unsent(names) => self.memory.varies.insert(task.url_key(), names.into()),
            Selected::By(_) | Selected::Unsendable | Selected::Never => self.note_unshared(task),
        }
    }
}
