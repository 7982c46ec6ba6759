//! Which credential has a right to a private entry: what larder remembers of rights, and how a right is proved.
//!
//! A credential has a right to a private entry if it received the entry, or if the target's own origin confirmed it: a GET of the
//! first byte with that credential was answered with 200 or 206 and named the stored representation. A sign-in page, a redirect
//! or another representation is a refusal (DESIGN §4, pitfall 37). One redirect is no refusal: a registry redirects a client that
//! has a right to a blob to the blob's storage. larder follows it for targets named by their digest. The answer at its end must
//! name the representation as well; a sign-in page has another length and type.
//!
//! A HEAD proves nothing by itself: some servers and sign-in proxies protect GET and not HEAD. larder sends a HEAD in place of
//! the GET only where a GET counts as a pull, and only under roots that were seen to refuse both without a credential (`head_tests.rs`).
//!
//! A confirmation is valid for five minutes. The last one is remembered for a day, and used only while the origin cannot be
//! asked. A refusal removes both at once. Each entry records which credential received it, so that a restart forgets neither.

use std::sync::Arc;
use std::time::Duration;

use hyper::{StatusCode, header};
use moka::sync::Cache;

use super::Pipeline;
use super::answers::{is_failure, lasts};
use super::head_tests::HeadTests;
use super::task::Task;
use crate::clock::Time;
use crate::digest::{BlobId, key_hash};
use crate::entry::{Entry, Head};
use crate::flight::Answered;
use crate::origin::{Ask, Fault};
use crate::target::{Key, Partition};

/// How long a confirmed right is valid.
pub(super) const YES_HOLDS: Duration = Duration::from_mins(5);

/// How long the last confirmation may be used while the origin fails: long enough for a registry's outage.
pub(super) const REMEMBERED: Duration = Duration::from_hours(24);

/// How long it is remembered that the origin refused the target to larder without a credential.
const VERDICT_HOLDS: Duration = Duration::from_hours(24);

/// How many rights are remembered. A right that was evicted is asked for again.
const MOST: u64 = 100_000;

/// A partition that belongs to no credential, for an entry whose receiver has lost its right.
const NOBODY: Partition = Partition::Private([0; 16]);

/// The properties by which an origin can name a representation of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RepresentationId {
    /// `Docker-Content-Digest`, as the answer has it or as the target's name has it.
    digest: Option<String>,
    /// A strong entity tag.
    tag: Option<String>,
    /// Length and type, if the target's name contains the digest. They tell the representation from a sign-in or error page.
    shape: Option<(u64, String)>,
    /// The stored body, if there is nothing else. No origin can name such a representation.
    body: Option<BlobId>,
}

/// A hash of a mark. Origins choose how long a mark is, and many are remembered.
type Print = [u8; 32];

/// What larder knows of rights.
#[derive(Debug)]
pub(super) struct Rights {
    /// By private key and credential: the representation that the credential has a right to, and since when.
    yes: Cache<(Key, Partition), (Print, Time)>,
    /// Targets that the origin refused to larder without a credential, by their public key, and when larder asked.
    closed: Cache<Key, (Print, Time)>,
    /// Roots where a HEAD may replace a GET.
    pub(super) heads: HeadTests,
}

/// The answer may refuse the method only; another method may succeed.
struct Refused;

/// The origin's answer about a credential's right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RightAnswer {
    /// The answer names the stored representation.
    Yes,
    /// The answer has a body, and does not say that it is the stored representation.
    Other,
    /// A refusal: anything else.
    No,
    /// The origin could not be asked: unreachable, 5xx, 429.
    Nothing,
}

/// What a credential may do with a stored copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// It may have the copy.
    Yes,
    /// It may have the copy if its origin says that the copy is current.
    Revalidate,
    /// It had a right within the last day, and the origin cannot be asked.
    Remembered,
    /// It may have what the origin gives it now, by a fill with its own credential.
    Own,
    /// It has no right.
    No,
}

impl Default for Rights {
    fn default() -> Self {
        // moka's clock is monotonic: entries expire also if the system clock is set back.
        let day = |holds| Cache::builder().max_capacity(MOST).time_to_live(holds).build();
        let closed = Cache::builder().max_capacity(MOST).time_to_live(VERDICT_HOLDS).build();
        Self { yes: day(REMEMBERED), closed, heads: HeadTests::default() }
    }
}

impl Rights {
    fn note(&self, task: &Task, mark: &RepresentationId, now: Time) {
        self.yes.insert((task.key, task.principal.reader()), (mark.print(), now));
    }

    /// Since when the principal's right to `mark` is known.
    fn since(&self, task: &Task, mark: &RepresentationId) -> Option<Time> {
        let (known, since) = self.yes.get(&(task.key, task.principal.reader()))?;
        (known == mark.print()).then_some(since)
    }

    fn holds(&self, task: &Task, mark: &RepresentationId, now: Time) -> bool {
        self.since(task, mark).is_some_and(|since| lasts(since, YES_HOLDS, now))
    }

    /// Whether the origin refused this to larder without a credential during the last day.
    pub(super) fn is_closed(&self, task: &Task, mark: &RepresentationId, now: Time) -> bool {
        let known = self.closed.get(&task.in_public().key);
        known.is_some_and(|(closed, at)| closed == mark.print() && lasts(at, VERDICT_HOLDS, now))
    }

    /// Notes that the origin refused this to larder without a credential, or that larder is about to ask.
    pub(super) fn note_closed(&self, task: &Task, mark: &RepresentationId, now: Time) {
        self.closed.insert(task.in_public().key, (mark.print(), now));
    }

    /// Forgets that note.
    pub(super) fn forget_closed(&self, task: &Task) {
        self.closed.invalidate(&task.in_public().key);
    }
}

impl RepresentationId {
    /// The mark of a stored answer.
    pub(super) fn of_entry(task: &Task, entry: &Entry) -> Self {
        let mark = Self::of(task, &entry.head, Some(entry.size));
        let nothing = mark == Self::default();
        Self { body: nothing.then_some(entry.blob), ..mark }
    }

    /// The mark of an answer of `length` bytes.
    fn of(task: &Task, head: &Head, length: Option<u64>) -> Self {
        let named = task.named_by_protocol();
        let length = length.filter(|_| named.is_some());
        // The host to which a registry sends its clients for a blob says nothing of digests.
        let named = named.map(|digest| digest.to_string());
        Self {
            digest: named.or_else(|| head.text(&DOCKER_CONTENT_DIGEST).map(str::to_owned)),
            tag: head.strong_validator().map(str::to_owned),
            shape: length.map(|length| (length, kind(head).to_owned())),
            body: None,
        }
    }

    /// The mark's hash. The `=` before a text tells an empty field from an absent one.
    fn print(&self) -> Print {
        let text =
            |of: &Option<String>| of.as_ref().map(|text| format!("={text}")).unwrap_or_default();
        let shape = self.shape.as_ref().map(|(length, kind)| format!("{length} {kind}"));
        let body = self.body.map(|body| body.to_hex()).unwrap_or_default();
        key_hash([
            text(&self.digest).as_bytes(),
            text(&self.tag).as_bytes(),
            text(&shape).as_bytes(),
            body.as_bytes(),
        ])
    }

    /// Whether an answer to a HEAD, or to a request for the first byte, names this representation.
    fn is_named_by(&self, answer: &Head) -> bool {
        if answer.status == StatusCode::PARTIAL_CONTENT && !self.begins(answer) {
            return false;
        }
        if let (Some(known), Some(said)) = (&self.digest, answer.text(&DOCKER_CONTENT_DIGEST)) {
            return known == said;
        }
        if self.tag.is_some() && self.tag.as_deref() == answer.strong_validator() {
            return true;
        }
        self.shape.as_ref().is_some_and(|(length, known)| {
            let total = match answer.text(&header::CONTENT_RANGE) {
                Some(range) => range.rsplit_once('/').map(|(_, total)| total),
                None => answer.text(&header::CONTENT_LENGTH),
            };
            total.and_then(|total| total.parse().ok()) == Some(*length) && kind(answer) == known
        })
    }

    /// Whether a 206 holds the first byte and has the known total length: some servers answer 206 to every request.
    fn begins(&self, answer: &Head) -> bool {
        let range = answer.text(&header::CONTENT_RANGE).unwrap_or_default();
        let Some(total) = range.strip_prefix("bytes 0-0/") else { return false };
        let known = self.shape.as_ref().map(|(length, _)| *length);
        known.is_none_or(|known| total == "*" || total.parse() == Ok(known))
    }
}

fn kind(head: &Head) -> &str {
    head.text(&header::CONTENT_TYPE).unwrap_or_default()
}

const DOCKER_CONTENT_DIGEST: header::HeaderName =
    header::HeaderName::from_static("docker-content-digest");

impl Pipeline {
    /// Notes that the principal received what is now stored, or that its origin confirmed it with a 304.
    pub(super) fn note_received(&self, task: &Task, entry: &Entry) {
        self.note_place(task, entry);
        if task.is_private_artifact() {
            self.rights.note(task, &RepresentationId::of_entry(task, entry), self.clock.now());
        }
    }

    /// Whether the principal may have a stored copy. Asks the origin if that is not known.
    pub(super) async fn right_to(self: &Arc<Self>, task: &Task, entry: &Arc<Entry>) -> Right {
        let (mark, now) = (RepresentationId::of_entry(task, entry), self.clock.now());
        if self.rights.holds(task, &mark, now) {
            return Right::Yes;
        }
        let received = (entry.partition == task.principal.reader()).then_some(entry.received_at);
        let known = self.rights.since(task, &mark).max(received);
        let remembered = known.is_some_and(|since| lasts(since, REMEMBERED, now));
        if mark.body.is_some() {
            // No origin can name this copy. A principal that had it revalidates it with a fill; others fetch their own.
            return if remembered { Right::Revalidate } else { Right::Own };
        }
        let word = if remembered {
            self.right_within_patience(task, mark).await
        } else {
            self.ask_right(task, &mark).await
        };
        match word {
            RightAnswer::Yes => {
                self.ask_in_public(task, entry);
                Right::Yes
            }
            RightAnswer::Nothing if remembered => Right::Remembered,
            RightAnswer::Other => Right::Own,
            RightAnswer::No | RightAnswer::Nothing => Right::No,
        }
    }

    /// The origin's answer about a right that is remembered, if it comes within the client's patience. The question continues in
    /// the background, and its answer is remembered.
    async fn right_within_patience(
        self: &Arc<Self>,
        task: &Task,
        mark: RepresentationId,
    ) -> RightAnswer {
        let Some(question) = self.question_about(task) else {
            return RightAnswer::Nothing;
        };
        let (was_down, patience) = (self.is_down_for(task), self.patience_for(task));
        let (pipeline, asked) = (Arc::clone(self), task.clone());
        let asking = tokio::spawn(async move {
            tokio::select! {
                word = pipeline.ask_right(&asked, &mark) => word,
                () = question.superseded() => RightAnswer::Nothing,
            }
        });
        if let Ok(word) = tokio::time::timeout(patience, asking).await {
            return word.unwrap_or(RightAnswer::Nothing);
        }
        if !was_down {
            self.note_silence(task);
        }
        RightAnswer::Nothing
    }

    /// Whether a right to a stored copy that was found a moment ago has not been withdrawn since.
    pub(super) fn still_has_right_to(&self, task: &Task, entry: &Entry) -> bool {
        let open = [task.principal.reader(), Partition::Public].contains(&entry.partition);
        !task.is_private_artifact()
            || open
            || self.rights.since(task, &RepresentationId::of_entry(task, entry)).is_some()
    }

    /// Whether the principal has a right to a stored copy, or had one within the last day if its origin cannot be asked.
    pub(super) async fn had_right_to(self: &Arc<Self>, task: &Task, entry: &Arc<Entry>) -> bool {
        matches!(self.right_to(task, entry).await, Right::Yes | Right::Remembered)
    }

    /// Whether a client that follows a flight may have the body that the flight brings.
    pub(super) async fn may_share(&self, task: &Task, answered: &Answered) -> bool {
        if !task.is_private_artifact() {
            return true;
        }
        let mark = RepresentationId::of(task, &answered.head, answered.length);
        mark != RepresentationId::default()
            && (self.rights.holds(task, &mark, self.clock.now())
                || self.ask_right(task, &mark).await == RightAnswer::Yes)
    }

    /// Asks the target's own origin whether the credential has a right, and remembers the answer.
    async fn ask_right(&self, task: &Task, mark: &RepresentationId) -> RightAnswer {
        let asked_at = self.clock.now();
        let follow = task.named_by_protocol().is_some();
        let answer = self.answer_naming(task, task.ask(None, follow), task.class(), mark).await;
        let word = answer.map_or_else(|word| word, |_| RightAnswer::Yes);
        match word {
            RightAnswer::Yes => self.rights.note(task, mark, asked_at),
            RightAnswer::No | RightAnswer::Other => self.forget_right(task).await,
            RightAnswer::Nothing => {}
        }
        word
    }

    /// Sends `ask` as a question about the task. Returns the head of an answer that names the representation, and otherwise the
    /// origin's answer. A request without a credential may use the anonymous token of a token service. `class`: the principal
    /// whose origin health the request counts for.
    pub(super) async fn answer_naming(
        &self,
        task: &Task,
        ask: Ask,
        class: Partition,
        mark: &RepresentationId,
    ) -> Result<Head, RightAnswer> {
        let byte = Ask { range: Some((0, Some(0))), patient: false, ..ask };
        if task.is_counted() && self.guards_head(task).await {
            let head = Ask { range: None, head_only: true, ..byte.clone() };
            // Some servers do not implement HEAD, or refuse it to everybody.
            if let Ok(answer) = self.answer_to(head, class, mark).await {
                return answer;
            }
        }
        self.answer_to(byte, class, mark).await.unwrap_or(Err(RightAnswer::No))
    }

    /// Like [`Self::answer_naming`], for one request.
    async fn answer_to(
        &self,
        ask: Ask,
        class: Partition,
        mark: &RepresentationId,
    ) -> Result<Result<Head, RightAnswer>, Refused> {
        let (origin, lane) = (ask.target.origin().clone(), ask.lane);
        // Where a token service issues anonymous tokens, a request with such a token still counts as anonymous.
        let fetched = if ask.credential.is_none() {
            Box::pin(self.origins.fetch_as_anybody(ask)).await.map(|(answer, _)| answer)
        } else {
            self.origins.fetch(ask).await
        };
        // The body is dropped unread: an origin without range support sends the whole body.
        let (head, by) = match fetched {
            Ok(answer) => (answer.head, answer.answered_by),
            Err(error) => {
                let redirects = matches!(error.fault(), Fault::Redirects(_));
                if !error.is_temporary() || redirects {
                    return Ok(Err(RightAnswer::No));
                }
                self.origins.note_failure(&origin, class, lane, None);
                return Ok(Err(RightAnswer::Nothing));
            }
        };
        if !is_failure(head.status) {
            self.origins.note_success(&origin, class, lane);
        }
        match head.status {
            StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED
            | StatusCode::FORBIDDEN => Err(Refused),
            status if is_failure(status) => {
                self.origins.note_failure(&origin, class, lane, None);
                Ok(Err(RightAnswer::Nothing))
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if mark.is_named_by(&head) => Ok(Ok(head)),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if *by.origin() == origin => {
                Ok(Err(RightAnswer::Other))
            }
            // A redirect led to a page on another host, perhaps a sign-in page.
            _ => Ok(Err(RightAnswer::No)),
        }
    }

    /// Withdraws the principal's right, if it had one: no stored copy is given to it any more, also if the origin fails later.
    pub(super) async fn forget_right(&self, task: &Task) {
        if !task.principal.is_private() {
            return;
        }
        let reader = task.principal.reader();
        self.rights.yes.invalidate(&(task.key, reader));
        let held: Vec<Arc<Entry>> =
            self.store.entries(task.key).into_iter().filter(|e| e.partition == reader).collect();
        if held.is_empty() {
            return;
        }
        let (store, guarded) = (Arc::clone(&self.store), task.is_private_artifact());
        let forgetting = tokio::task::spawn_blocking(move || {
            for entry in held {
                let forgotten = if guarded {
                    let forget = |now: &mut Entry| {
                        if now.partition == reader {
                            now.partition = NOBODY;
                        }
                    };
                    store.update(&entry, forget).map(drop)
                } else {
                    store.remove(&entry)
                };
                if let Err(error) = forgotten {
                    tracing::warn!(%error, "the end of a right could not be stored");
                }
            }
        });
        if forgetting.await.is_err() {
            tracing::error!(url = %task.target, "storing the end of a right was broken off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::HeaderMap;

    fn head(status: u16, fields: &[(&'static str, &str)]) -> Head {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        Head { status: StatusCode::from_u16(status).unwrap(), headers }
    }

    #[test]
    fn only_what_names_the_representation_is_a_yes() {
        let kind = ("content-type", "application/x-tar");
        let tag =
            || RepresentationId { tag: Some("\"a\"".to_owned()), ..RepresentationId::default() };
        let digest = || RepresentationId { digest: Some("sha256:aa".to_owned()), ..tag() };
        let shape = || RepresentationId { shape: Some((7, kind.1.to_owned())), ..tag() };
        let body =
            || RepresentationId { body: Some(BlobId::new([1; 32])), ..RepresentationId::default() };
        for (mark, fields, expected) in [
            (tag(), &[("etag", "\"a\"")][..], true),
            (tag(), &[("etag", "W/\"a\"")], false),
            (tag(), &[("etag", "\"b\"")], false),
            (tag(), &[kind, ("content-length", "7")], false),
            (digest(), &[("docker-content-digest", "sha256:aa")], true),
            (digest(), &[("docker-content-digest", "sha256:ab"), ("etag", "\"a\"")], false),
            (digest(), &[("etag", "\"a\"")], true),
            (shape(), &[kind, ("content-length", "7")], true),
            (shape(), &[kind, ("content-range", "bytes 0-0/7"), ("content-length", "1")], true),
            (shape(), &[kind, ("content-length", "8")], false),
            (shape(), &[("content-type", "text/html"), ("content-length", "7")], false),
            (shape(), &[kind], false),
            (body(), &[kind, ("content-length", "7")], false),
            (body(), &[], false),
        ] {
            let status =
                if fields.iter().any(|(name, _)| *name == "content-range") { 206 } else { 200 };
            assert_eq!(mark.is_named_by(&head(status, fields)), expected, "{mark:?} {fields:?}");
        }
    }

    /// Some servers answer 206 to anything.
    #[test]
    fn a_part_names_the_representation_only_if_it_is_the_part_that_was_asked_for() {
        let (tag, kind) = (("etag", "\"a\""), "application/x-tar");
        let mark =
            RepresentationId { tag: Some("\"a\"".to_owned()), ..RepresentationId::default() };
        let sized = RepresentationId { shape: Some((7, kind.to_owned())), ..mark.clone() };
        for (range, expected) in [
            ("bytes 0-0/7", (true, true)),
            ("bytes 0-0/*", (true, true)),
            ("bytes 0-0/8", (true, false)),
            ("bytes 0-6/7", (false, false)),
            ("bytes 1-1/7", (false, false)),
            ("", (false, false)),
        ] {
            let mut fields = vec![tag, ("content-type", kind), ("content-length", "7")];
            fields.extend((!range.is_empty()).then_some(("content-range", range)));
            let answer = head(206, &fields);
            assert_eq!(
                (mark.is_named_by(&answer), sized.is_named_by(&answer)),
                expected,
                "{range}"
            );
        }
    }

    /// Every remembered mark has the same size, and different marks have different hashes.
    #[test]
    fn marks_are_told_apart_by_their_prints() {
        let some = |text: &str| Some(text.to_owned());
        let marks = [
            RepresentationId::default(),
            RepresentationId { digest: some(""), ..RepresentationId::default() },
            RepresentationId { digest: some("a"), ..RepresentationId::default() },
            RepresentationId { tag: some("a"), ..RepresentationId::default() },
            RepresentationId { digest: some("a"), tag: some("a"), ..RepresentationId::default() },
            RepresentationId { shape: Some((1, "a".to_owned())), ..RepresentationId::default() },
            RepresentationId { shape: Some((1, "b".to_owned())), ..RepresentationId::default() },
            RepresentationId { body: Some(BlobId::new([1; 32])), ..RepresentationId::default() },
        ];
        for (number, one) in marks.iter().enumerate() {
            for (other_number, other) in marks.iter().enumerate() {
                assert_eq!(
                    one.print() == other.print(),
                    number == other_number,
                    "{one:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_back_ends_a_right() {
        let now = Time::from_millis(1_000_000_000);
        assert!(lasts(now, YES_HOLDS, now));
        assert!(!lasts(now.plus(Duration::from_secs(1)), YES_HOLDS, now));
        assert!(!lasts(now, YES_HOLDS, now.plus(YES_HOLDS)));
    }
}
