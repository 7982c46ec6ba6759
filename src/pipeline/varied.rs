//! Which of several stored answers a request selects (RFC 9111 §4.1).
//!
//! Without `Vary` an answer serves whoever asks for its URL, whatever their `Accept`. With it, the fields that it names
//! decide and no others: their names and the request's values are the variant under which it is kept. Which names those
//! are is remembered for each URL, and after a start read from what is stored. A fill sends `Accept` and `Accept-Language`
//! always, and of the client's other fields those that an earlier answer of that URL named; what a fill sends and the
//! answer does not name joins the variant all the same, so that nobody decides what others are given (promise P1).
//!
//! Indexes that have several forms are kept apart by `Accept` whatever the origin says: many forget `Vary`. Each ecosystem
//! names its forms; a request that fits none of them exactly (a browser's) is kept apart by the header itself.

use std::sync::Arc;
use std::{fmt, iter};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Pipeline;
use super::task::Task;
use crate::ecosystem::Recognition;
use crate::entry::{Entry, Head};
use crate::freshness::vary;
use crate::policy;
use crate::received::Received;
use crate::target::{Target, is_field};

/// What clients send of themselves in every request, and a fill sends on where an answer varies by it.
const SENDABLE: [&str; 3] = ["user-agent", "sec-fetch-*", "x-zypp-*"];

/// The variant of what no ecosystem knows: when one does later, nothing is found under its key that was not judged as its own.
const UNKNOWN: &str = "unknown";

/// The fields by which answers of the unknown vary mostly: where they are looked for when nothing is remembered.
const GUESSES: [&[HeaderName]; 6] = [
    &[],
    &[header::ACCEPT],
    &[header::ACCEPT_LANGUAGE],
    &[header::ACCEPT, header::ACCEPT_LANGUAGE],
    &[header::USER_AGENT],
    &[header::ACCEPT, header::USER_AGENT],
];

/// What a client's request says that may select one of several answers. `Debug` shows no field: a login may be among them.
#[derive(Clone, Default)]
pub(super) struct Selection {
    request: Arc<HeaderMap>,
    /// The fields that keep answers apart here, besides those that are only sent.
    names: Arc<[HeaderName]>,
    /// Fields that are sent and keep nothing apart: `http.forwarded_headers`.
    forwarded: Arc<[HeaderName]>,
    /// What may be sent besides, by the operator's word.
    sendable: Arc<[String]>,
    /// The index of several forms that the target is, or may be.
    forms: Option<Arc<Recognition>>,
    /// Whether it is one.
    has_forms: bool,
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection").field("names", &self.names).finish_non_exhaustive()
    }
}

/// How an answer was selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    /// By these fields, as they were sent.
    By(Vec<HeaderName>),
    /// By these, of which one was not sent and can be.
    Unsent(Vec<HeaderName>),
    /// By one that no fill sends.
    Unsendable,
    /// By more than the request: no stored copy ever matches.
    Never,
}

impl Selection {
    /// Of a client's request.
    pub(super) fn of(request: &HeaderMap) -> Self {
        Self { request: Arc::new(request.clone()), ..Self::default() }
    }

    /// The request's header fields.
    pub(super) fn request(&self) -> Arc<HeaderMap> {
        Arc::clone(&self.request)
    }

    /// Whether nothing of it goes to the origin.
    pub(super) fn sends_nothing(&self) -> bool {
        self.fields().is_empty()
    }

    /// What goes to the origin, with its `Accept` and `Accept-Language`, as one text.
    pub(super) fn sent(&self, accept: &str, language: Option<&str>) -> String {
        let fields = self.fields();
        let lines = fields
            .iter()
            .map(|(name, value)| format!("\n{name}: {}", value.as_bytes().escape_ascii()));
        format!("{accept}\n{}{}", language.unwrap_or_default(), lines.collect::<String>())
    }

    /// The fields that a fill sends besides `Accept` and `Accept-Language`.
    pub(super) fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let own = [header::ACCEPT, header::ACCEPT_LANGUAGE];
        let all = self.names.iter().filter(|name| self.may_send(name)).chain(&*self.forwarded);
        let mut names: Vec<&HeaderName> = all.filter(|name| !own.contains(name)).collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let values = |name| {
            self.request
                .get_all(name)
                .iter()
                .map(move |value| (HeaderName::clone(name), value.clone()))
        };
        names.into_iter().flat_map(values).collect()
    }

    fn may_send(&self, name: &HeaderName) -> bool {
        let fits = |pattern: &str| policy::fits(name, pattern);
        let may = SENDABLE.iter().copied().any(fits)
            || self.sendable.iter().map(String::as_str).any(fits);
        may && !is_field(name, &[])
    }

    fn value(&self, name: &HeaderName) -> String {
        vary::value(&self.request, name)
    }

    /// The variant for these names: a field that is not there is as none.
    fn variant(&self, names: &[HeaderName]) -> String {
        let always = [header::ACCEPT, header::ACCEPT_LANGUAGE];
        let always = always.into_iter().filter(|_| self.has_forms);
        let mut names: Vec<HeaderName> = names.iter().cloned().chain(always).collect();
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        let lines = names.iter().filter_map(|name| {
            let value = self.value(name);
            (!value.is_empty()).then(|| format!("{name}: {value}"))
        });
        // A line end cannot stand in a field, so that no two lists give one variant.
        iter::once(UNKNOWN.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
    }
}

impl Task {
    /// Lets `forwarded` go on, and lets what the operator calls harmless select.
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
        if !self.asker.is_private() && names.iter().any(|name| is_field(name, logins)) {
            // It differs by who asks: who shows nothing today may be one of many tomorrow.
            return Selected::Unsendable;
        }
        names.retain(|name| !self.is_in_key(name));
        let request = &self.selection;
        let has = |name: &HeaderName| !request.value(name).is_empty();
        let sent = |name: &HeaderName| {
            let goes_on = request.names.contains(name) && request.may_send(name)
                || request.forwarded.contains(name)
                || [header::ACCEPT, header::ACCEPT_LANGUAGE].contains(name);
            // A fill of who says no name of its own has larder's.
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

    /// Whether a field is in the key by other means: as a credential, or as the form of an index that an ecosystem knows.
    fn is_in_key(&self, name: &HeaderName) -> bool {
        let form = [header::ACCEPT, header::ACCEPT_LANGUAGE].contains(name) && !self.is_unknown();
        let logins = self.known().map_or(&[][..], |known| known.ecosystem.profile().login_headers);
        form || is_field(name, logins)
    }

    /// Whether the request selects this stored answer.
    pub(super) fn selects(&self, entry: &Entry) -> bool {
        if entry.proof.rank.is_strong() {
            // Whoever asks gets these bytes, whatever the head says.
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

    /// Makes of the task the one for answers that these fields select.
    fn select_by(&mut self, names: &[HeaderName]) {
        let variant = self.selection.variant(names);
        self.selection.names = names.into();
        self.in_variant(&variant);
    }

    /// Where an answer is kept that nothing else tells what it is, and by which values: the fields that it names, and those
    /// that were sent for it.
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
        if selection
            .forms
            .as_ref()
            .is_some_and(|forms| super::settle::confirms(forms, self.bare(), received))
        {
            // One of several forms, in an old dress.
            names.push(header::ACCEPT);
        }
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        (self.bare().clone().with_variant(&selection.variant(&names)), values(&names))
    }
}

impl Pipeline {
    /// Finds by which fields answers of an unknown task's URL are selected, and makes of it the task for its own.
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

    /// The fields that the newest stored answer names which the request selects; or else the newest that is found.
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

    /// An answer was selected by what was not sent: the next request sends it, or is asked in its own words for a while.
    pub(super) fn note_unselected(&self, task: &Task, selected: Selected) {
        match selected {
            Selected::Unsent(names) => self.memory.varies.insert(task.url_key(), names.into()),
            Selected::By(_) | Selected::Unsendable | Selected::Never => self.note_unshared(task),
        }
    }
}
