//! The parts of a request by which an origin may select one of several answers.

use std::sync::Arc;
use std::{fmt, iter};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::ecosystem::Recognition;
use crate::freshness::vary;
use crate::policy;
use crate::target::is_field;

/// The first line of the variant of unrecognised targets. If an ecosystem later recognises such a target, its key is another one,
/// so that it finds no entry that was not judged as its own kind.
const UNKNOWN: &str = "unknown";

/// Fields that describe the client and are in each of its requests. A fill forwards them if an answer varies by them.
const SENDABLE: [&str; 3] = ["user-agent", "sec-fetch-*", "x-zypp-*"];

/// The header fields of a client's request that may select one of several answers. `Debug` shows no field value, because one may
/// be a login.
#[derive(Clone, Default)]
pub(super) struct Selection {
    pub(super) request: Arc<HeaderMap>,
    /// The fields that keep the answers of this URL apart.
    pub(super) names: Arc<[HeaderName]>,
    /// Fields that a fill forwards and that keep no answers apart: `http.forwarded_headers`.
    pub(super) forwarded: Arc<[HeaderName]>,
    /// Further fields that a fill may forward, as the operator allows: `http.harmless_headers`.
    pub(super) sendable: Arc<[String]>,
    /// The index of several forms that the target is, or may be.
    pub(super) forms: Option<Arc<Recognition>>,
    /// Whether the target is such an index.
    pub(super) has_forms: bool,
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Selection {
    /// The selection of a client's request.
    pub(super) fn of(request: &HeaderMap) -> Self {
        Self { request: Arc::new(request.clone()), ..Self::default() }
    }

    /// The request's header fields.
    pub(super) fn request(&self) -> Arc<HeaderMap> {
        Arc::clone(&self.request)
    }

    /// Whether no field besides `Accept` and `Accept-Language` is sent to the origin.
    pub(super) fn sends_nothing(&self) -> bool {
        self.fields().is_empty()
    }

    /// What is sent to the origin, with its `Accept` and `Accept-Language`, as one text.
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

    pub(super) fn may_send(&self, name: &HeaderName) -> bool {
        let fits = |pattern: &str| policy::fits(name, pattern);
        let may = SENDABLE.iter().copied().any(fits)
            || self.sendable.iter().map(String::as_str).any(fits);
        may && !is_field(name, &[])
    }

    pub(super) fn value(&self, name: &HeaderName) -> String {
        vary::value(&self.request, name)
    }

    /// The variant for these names. An absent field counts as an empty one.
    pub(super) fn variant(&self, names: &[HeaderName]) -> String {
        let always = [header::ACCEPT, header::ACCEPT_LANGUAGE];
        let always = always.into_iter().filter(|_| self.has_forms);
        let mut names: Vec<HeaderName> = names.iter().cloned().chain(always).collect();
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        let lines = names.iter().filter_map(|name| {
            let value = self.value(name);
            (!value.is_empty()).then(|| format!("{name}: {value}"))
        });
        // A field value cannot contain a line end, so two different lists never give the same variant.
        iter::once(UNKNOWN.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
    }
}
