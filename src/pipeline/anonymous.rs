//! What is public: the origin's answer to larder's own anonymous request.
//!
//! A client's request with a credential does not show whether the credential was needed. So larder asks the origin itself,
//! without a credential; where a registry requires a token, larder uses one that the token service gives to anybody. What such a
//! request is given is public. larder asks in the background, and no client waits for the answer. It asks when a second
//! credential has just proved its right to a stored artifact, because before that no other client would gain by the answer. It
//! asks at once where clients bring a new token each time and would find nothing when the registry fails: for images, and for the
//! tags that point at them. If the answer is yes, larder makes a public entry with the same body and with the header fields of
//! that answer. The question is repeated after a day; while the origin cannot be reached, the public entry stays valid. larder
//! never downloads a body this way, so that an origin that counts downloads counts them for the client that made the request.

use std::sync::Arc;
use std::time::Duration;

use hyper::{StatusCode, header};

use super::Pipeline;
use super::answers::lasts;
use super::lookup::{Lookup, Stored};
use super::patience::WAIT_FOR_FAILING;
use super::rights::{RepresentationId, RightAnswer};
use super::task::Task;
use super::unproven::lower_unsigned;
use crate::entry::{Entry, Head};
use crate::freshness::Demand;
use crate::origin::Ask;
use crate::proof::Proof;
use crate::target::Partition;

/// How long a verdict is valid.
const VERDICT_HOLDS: Duration = Duration::from_hours(24);

/// The result of the anonymous request about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An anonymous client is given the same bytes, with this head.
    Public(Box<Head>),
    /// An anonymous client is not given the same bytes.
    Private,
    /// The origin could not be asked.
    Unknown,
}

impl Pipeline {
    /// Whether an anonymous client is given what `entry` holds. This is the only place where larder asks that.
    pub(super) async fn is_public(&self, task: &Task, entry: &Entry) -> Verdict {
        if task.bare().has_token() {
            return Verdict::Private;
        }
        // A redirect leads to another URL, but a digest in the name proves the bytes wherever they come from.
        let follow = task.named_by_protocol().is_some();
        let ask = Ask { credential: None, ..task.ask(None, follow) };
        let mark = RepresentationId::of_entry(task, entry);
        match self.answer_naming(task, ask, Partition::Public, &mark).await {
            Ok(head) => Verdict::Public(Box::new(head)),
            Err(RightAnswer::Nothing) => Verdict::Unknown,
            Err(RightAnswer::No | RightAnswer::Other | RightAnswer::Yes) => Verdict::Private,
        }
    }

    /// Asks in the background whether a private entry is public, if that was not asked within the last day. Only proven bytes and
    /// tags are asked about: of other entries larder could not tell whether the bytes are the same.
    pub(super) fn ask_in_public(self: &Arc<Self>, task: &Task, entry: &Arc<Entry>) {
        let (mark, now) = (RepresentationId::of_entry(task, entry), self.clock.now());
        let expected = self.expectation_of(&task.clone().of_anybody());
        let today = expected.proof_of(&entry.digests, entry.size);
        let Some(today) = today.filter(|today| today.rank.is_strong() || task.is_tag()) else {
            return;
        };
        if task.principal.is_in_url() || self.rights.is_closed(task, &mark, now) {
            return;
        }
        let public = self.store.entries(task.in_public().key).into_iter().next();
        let known = |public: Arc<Entry>| {
            public.blob == entry.blob && lasts(public.checked_at, VERDICT_HOLDS, now)
        };
        if public.is_some_and(known) {
            return;
        }
        // Noted before larder asks, so that concurrent requests cause one question.
        self.rights.note_closed(task, &mark, now);
        let (pipeline, task, entry) = (Arc::clone(self), task.clone(), Arc::clone(entry));
        tokio::spawn(async move {
            match pipeline.is_public(&task, &entry).await {
                Verdict::Public(head) => {
                    let proof = Proof { private: false, ..entry.proof.judged(today) };
                    pipeline.promote(&task, &entry, *head, proof).await;
                }
                Verdict::Private => {}
                Verdict::Unknown => pipeline.rights.forget_closed(&task),
            }
        });
    }

    /// Makes a public entry with the body of a private one.
    async fn promote(&self, task: &Task, entry: &Entry, head: Head, proof: Proof) {
        let now = self.clock.now();
        let mut head = Head { status: StatusCode::OK, ..head };
        for name in [header::CONTENT_LENGTH, header::CONTENT_RANGE] {
            head.headers.remove(name);
        }
        let public = Entry {
            key: task.in_public().key,
            partition: Partition::Public,
            head,
            proof,
            answered_by: None,
            checked_at: now,
            ..entry.clone()
        };
        let (store, from) = (Arc::clone(&self.store), entry.key);
        let keys = self.keys.clone();
        let link = move || {
            let entry = store.link_from(from, public)?;
            lower_unsigned(&store, &keys, &entry, None);
            std::io::Result::Ok(())
        };
        match tokio::task::spawn_blocking(link).await {
            Ok(Ok(())) => {
                self.note_service(&task.clone().of_anybody());
                tracing::debug!(url = %task.target, "this entry is public: the origin gives it without a credential");
            }
            Ok(Err(error)) => tracing::warn!(%error, "a public entry could not be made"),
            Err(_) => tracing::error!(url = %task.target, "making a public entry was broken off"),
        }
    }

    /// The public entry that answers a private request for an artifact. Its bytes must be proven, which the claims of the
    /// principal's own indexes may do, and larder must have asked within the last day whether the target is public.
    pub(super) async fn open_to_all(&self, task: &Task, demand: Demand) -> Option<Stored> {
        let public = task.in_public();
        let Lookup::Fresh(stored) = self.look_up_artifact(&public, demand).await else {
            return None;
        };
        if !stored.proof.rank.is_strong() {
            return None;
        }
        let (entry, now) = (&stored.entry, self.clock.now());
        let failing = self.origins.is_failing(task.target.origin(), task.class(), task.lane());
        if failing || lasts(entry.checked_at, VERDICT_HOLDS, now) {
            return Some(stored);
        }
        let asking = self.is_public(&public, entry);
        let verdict = tokio::time::timeout(WAIT_FOR_FAILING, asking).await;
        let store = Arc::clone(&self.store);
        let entry = Arc::clone(entry);
        let written = match verdict {
            Err(_) | Ok(Verdict::Unknown) => return Some(stored),
            Ok(Verdict::Public(_)) => {
                let renew = move |entry: &mut Entry| entry.checked_at = now;
                tokio::task::spawn_blocking(move || store.update(&entry, renew).map(|_| true)).await
            }
            Ok(Verdict::Private) => {
                tokio::task::spawn_blocking(move || store.remove(&entry).map(|()| false)).await
            }
        };
        match written {
            Ok(Ok(still)) => still.then_some(stored),
            Ok(Err(error)) => {
                tracing::warn!(%error, "whether this entry is public could not be stored");
                None
            }
            Err(_) => None,
        }
    }
}
