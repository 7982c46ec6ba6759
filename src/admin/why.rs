//! Explains a URL for `larder why`: how larder classifies it, what larder would do, which indexes claim what, what is
//! stored and what was refused.

use std::ops::ControlFlow;

use hyper::Request;
use serde::{Deserialize, Serialize};

use super::named::is_of;
use super::question::entry::Listed;
use crate::claim::{Promise, Relation};
use crate::clock::Time;
use crate::ecosystem::{Artifact, Kind, Recognition, Shape, recognise};
use crate::outcome::recent::Event;
use crate::pipeline;
use crate::policy::{self, PassReason, Plan};
use crate::store::Store;
use crate::target::Target;

/// Everything known of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The URL, secrets replaced.
    pub url: String,
    /// How larder classifies it.
    pub resource: Described,
    /// What larder does with a request for it: `keep`, `revalidate` or `pass(REASON)`.
    pub plan: String,
    /// The meaning of that here, in a sentence.
    pub meaning: String,
    /// The claims of indexes, newest first.
    pub promises: Vec<Promised>,
    /// The stored entries, in every variant, newest first.
    pub entries: Vec<Listed>,
    /// Bodies that were refused, newest first.
    pub refusals: Vec<Refused>,
    /// Requests for it that were refused, failed or passed on since the larder started, newest first.
    #[serde(default)]
    pub recent: Vec<Event>,
}

/// How larder classifies a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// The ecosystem's name; empty if unknown.
    pub ecosystem: String,
    /// `index`, `artifact` or `unknown`.
    pub kind: String,
    /// Whether the URL's form alone is conclusive, or an answer has confirmed it.
    pub certain: bool,
    /// The digest that the URL names.
    pub named: Option<String>,
    /// If that naming is only a convention: the root below which it applies, how many files matched there, and
    /// whether this file once did not match.
    pub convention: Option<(String, usize, bool)>,
    /// The part of the origin to which it belongs.
    pub root: String,
}

/// An index's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The index, secrets replaced.
    pub index: String,
    /// The digests, as `algorithm:hex`.
    pub digests: Vec<String>,
    /// The length.
    pub size: Option<u64>,
    /// The rank that the index can prove.
    pub rank: String,
    /// `in-root`, `declared` or `elsewhere`.
    pub relation: String,
    /// Whether a body that differs is refused.
    pub binds: bool,
    /// Whether it is among the newest claims.
    pub current: bool,
    /// When the index's origin last confirmed it.
    pub confirmed: Time,
}

/// A body that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When.
    pub at: Time,
    /// Which index claimed what, and which bytes were received.
    pub why: String,
}

/// Gathers what is known of `target`. Blocking: it walks the entries to find other variants.
pub fn explain(store: &Store, target: &Target, now: Time) -> Explanation {
    let recognition = recognise(&Shape { target, accept: "*/*" });
    let shown = target.to_string();
    let topics = match recognition.as_ref().map(|found| &found.resource.kind) {
        Some(Kind::Artifact(artifact)) => artifact.topics.as_slice(),
        Some(Kind::Index) | None => &[],
    };
    let of_index = recognition
        .as_ref()
        .filter(|found| found.resource.kind == Kind::Index)
        .map(|found| found.ecosystem.topics(target));
    let promises = store.promises(target, of_index.as_deref().unwrap_or(topics), now);
    let (plan, meaning) = planned(target, recognition.as_ref(), &promises);
    let (mut entries, secret) = (Vec::new(), store.secret());
    store.for_each_entry(&mut |entry| {
        if is_of(entry, target, &secret) {
            entries.push(Listed::from(entry));
        }
        ControlFlow::Continue(())
    });
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.received_at));
    let refusals = store.rejections(target).into_iter();
    Explanation {
        resource: describe(store, target, recognition.as_ref()),
        plan,
        meaning: meaning.to_owned(),
        promises: promises.iter().map(Promised::from).collect(),
        entries,
        refusals: refusals.map(|refused| Refused { at: refused.at, why: refused.text }).collect(),
        recent: Vec::new(),
        url: shown,
    }
}

fn describe(store: &Store, target: &Target, recognition: Option<&Recognition>) -> Described {
    let Some(Recognition { ecosystem, resource, certain }) = recognition else {
        return Described {
            ecosystem: String::new(),
            kind: "unknown".to_owned(),
            certain: false,
            named: None,
            convention: None,
            root: String::new(),
        };
    };
    let (kind, named) = match &resource.kind {
        Kind::Index => ("index", None),
        Kind::Artifact(Artifact { named, topics: _ }) => ("artifact", named.as_ref()),
    };
    let convention = named.and_then(|named| named.convention.as_ref()).map(|root| {
        let known = store.convention(ecosystem.name(), root, target);
        (root.to_string(), known.matched, known.missed)
    });
    Described {
        ecosystem: ecosystem.name().to_owned(),
        kind: kind.to_owned(),
        certain: *certain || store.is_confirmed(ecosystem.name(), &resource.root),
        named: named.map(|named| named.digest.to_string()),
        convention,
        root: resource.root.to_string(),
    }
}

/// The policy's decision for a GET of `target` without further headers, and what it means here.
fn planned(
    target: &Target,
    recognition: Option<&Recognition>,
    promises: &[Promise],
) -> (String, &'static str) {
    let bare = Request::new(());
    let vouched = pipeline::may_be_vouched(target, recognition, promises);
    let plan = policy::plan(&bare, false, target, recognition, vouched, &[]);
    let artifact = match recognition.map(|found| &found.resource.kind) {
        Some(Kind::Artifact(artifact)) => Some(artifact),
        Some(Kind::Index) | None => None,
    };
    let bound = || promises.iter().any(|promise| promise.relation.binds());
    let meaning = match plan {
        Plan::Pass(PassReason::Plain) => {
            "passed on and never kept: plain http, and neither a digest in its URL nor a signed index vouches for it"
        }
        Plan::Pass(_) => "the client's own request, passed on and never kept",
        Plan::Keep if artifact.is_some_and(|artifact| artifact.named.is_some()) => {
            "kept for ever once its bytes match the digest in its URL; then served without asking"
        }
        Plan::Keep if bound() => {
            "kept once its bytes are what the index promises; served without asking while the newest index claims the same"
        }
        Plan::Keep => {
            "fetched after the index that should name it; without one, kept as what its origin first served"
        }
        Plan::Revalidate if recognition.is_some() => {
            "kept, and asked for again when a client wants it current; its claims are read"
        }
        Plan::Revalidate => "kept as its origin's caching headers allow (RFC 9111)",
    };
    let name = match plan {
        Plan::Pass(reason) => format!("pass({})", reason.as_str()),
        Plan::Revalidate => "revalidate".to_owned(),
        Plan::Keep => "keep".to_owned(),
    };
    (name, meaning)
}

impl From<&Promise> for Promised {
    fn from(promise: &Promise) -> Self {
        let relation = match promise.relation {
            Relation::InRoot => "in-root",
            Relation::Declared => "declared",
            Relation::Elsewhere => "elsewhere",
        };
        Self {
            index: promise.by.shown.clone(),
            digests: promise.digests.iter().map(ToString::to_string).collect(),
            size: promise.size,
            rank: promise.rank().as_str().to_owned(),
            relation: relation.to_owned(),
            binds: promise.relation.binds(),
            current: promise.is_current(),
            confirmed: promise.by.confirmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Live};

    #[test]
    fn an_unknown_url_is_explained_too() {
        let data = tempfile::tempdir().unwrap();
        let config = Config { data: data.path().to_owned(), ..Config::default() };
        let store = Store::open(Live::new(config), Clock::system()).unwrap();
        let target = Target::from_url("https://example.org/a?page=hunter2").unwrap();
        let explained = explain(&store, &target, Clock::system().now());
        assert_eq!(explained.resource.kind, "unknown");
        assert_eq!(explained.url, "https://example.org/a?page=…");
        assert_eq!(explained.plan, "revalidate");
        assert!(explained.meaning.contains("RFC 9111") && explained.entries.is_empty());
    }

    #[test]
    fn plain_http_is_never_kept_without_a_digest() {
        let plain = Target::from_url("http://example.org/a").unwrap();
        let tls = Target::from_url("https://example.org/a").unwrap();
        assert_eq!(planned(&plain, None, &[]).0, "pass(plain)");
        assert_eq!(planned(&tls, None, &[]).0, "revalidate");
    }
}
