//! What a fill needs to know: the target in its variant, what it was recognised as, and for whom it is.

use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request};

use super::asker::Asker;
use super::varied::Selection;
use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Algorithms, Digest, Wanted};
use crate::ecosystem::facets::Tags;
use crate::ecosystem::{Artifact, Kind, Recognition};
use crate::entry::Entry;
use crate::origin::{Ask, Lane, Reach};
use crate::target::{Key, Partition, Scheme, Target};

/// How long validators are believed that came over plain http with a document that vouches for itself. Its signature covers
/// its bytes, and not them: whoever sat on the line could have given an earlier edition with today's, which its origin would
/// confirm until it publishes again. Such a document has some 200 KiB.
const VALIDATORS_HOLD: Duration = Duration::from_hours(6);

/// A target to be answered from the cache, or filled.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// The target, in the variant that its ecosystem declares, or by which stored answers of an unknown one are selected.
    pub(super) target: Target,
    /// Its key.
    pub(super) key: Key,
    /// What it is, if an ecosystem knows it.
    pub(super) recognition: Option<Recognition>,
    /// What it may be, if the answer bears it out.
    pub(super) likely: Option<Recognition>,
    /// Which addresses are open to it.
    pub(super) reach: Reach,
    /// When the request came.
    pub(super) asked: Time,
    /// What the generation that its client has read says of it: then nothing else counts.
    pub(super) promised: Option<Promise>,
    /// For whom it is.
    pub(super) asker: Asker,
    /// The partition in `key`.
    partition: Partition,
    bare: Target,
    accept: String,
    language: Option<String>,
    /// What its client's request says that may select one of several answers.
    pub(super) selection: Selection,
}

impl Task {
    /// For a client's request.
    pub(super) fn of_request<B>(
        request: &Request<B>,
        target: &Target,
        recognition: Option<Recognition>,
        likely: Option<Recognition>,
        reach: Reach,
        asked: Time,
    ) -> Self {
        if let Some(recognition) = recognition {
            let selection = Selection::of(request.headers());
            return Self { selection, ..Self::of_resource(target, recognition, reach, asked) };
        }
        let accept = joined(request.headers(), &header::ACCEPT);
        let language = joined(request.headers(), &header::ACCEPT_LANGUAGE);
        Self {
            key: target.key(Partition::Public),
            target: target.clone(),
            bare: target.clone(),
            selection: Selection::of(request.headers()),
            recognition: None,
            likely,
            reach,
            asked,
            promised: None,
            asker: Asker::default(),
            partition: Partition::Public,
            accept: if accept.is_empty() { "*/*".to_owned() } else { accept },
            language: Some(language).filter(|language| !language.is_empty()),
        }
    }

    /// For something that an ecosystem knows.
    pub(super) fn of_resource(
        target: &Target,
        recognition: Recognition,
        reach: Reach,
        asked: Time,
    ) -> Self {
        let variant = recognition.resource.variant;
        let keyed = target.clone().with_variant(variant.name);
        Self {
            key: keyed.key(Partition::Public),
            target: keyed,
            bare: target.clone().with_variant(""),
            accept: variant.accept.to_owned(),
            language: None,
            selection: Selection::default(),
            recognition: Some(recognition),
            likely: None,
            reach,
            asked,
            promised: None,
            asker: Asker::default(),
            partition: Partition::Public,
        }
    }

    /// Who may share a flight with it: clients of different generations ask the same URL for different bytes; and until the
    /// answer is there, nobody knows by which of the fields that are sent it was selected.
    pub(super) fn flight(&self) -> Key {
        let Some(promised) = &self.promised else {
            if self.recognition.is_some() && self.selection.sends_nothing() {
                return self.key;
            }
            let sent = self.selection.sent(&self.accept, self.language.as_deref());
            let variant = format!("{}\n\n{sent}", self.target.variant());
            return self.target.clone().with_variant(&variant).key(self.partition);
        };
        let digests: Vec<String> = promised.digests.iter().map(ToString::to_string).collect();
        // A line end cannot stand in a declared variant.
        let variant = format!("{}\n{}", self.target.variant(), digests.join(" "));
        self.target.clone().with_variant(&variant).key(self.partition)
    }

    /// Under which an error is remembered: of what was sent with the URL, some may be why it came, although the answer does not
    /// say so. What `http.forwarded_headers` sends is left out.
    pub(super) fn key_as_asked(&self) -> Key {
        let language = self.language.as_deref().unwrap_or_default();
        let variant = format!("{}\n\n{}\n{language}", self.target.variant(), self.accept);
        self.target.clone().with_variant(&variant).key(self.partition)
    }

    /// Whether it heads other indexes, or will when its shape is confirmed.
    pub(super) fn heads(&self) -> bool {
        self.known().is_some_and(|known| known.ecosystem.is_snapshot_root(&self.bare))
            && self.artifact().is_none()
    }

    /// What it is, or may be.
    pub(super) fn known(&self) -> Option<&Recognition> {
        self.recognition.as_ref().or(self.likely.as_ref())
    }

    /// The same for `asker`. What a private one asks for is looked up, and kept, where only who has a right finds it (see
    /// [`Partition`]): an artifact in the one guarded place of its target, everything else in the asker's own.
    #[must_use]
    pub(super) fn of(self, asker: Asker, secret: &[u8; 32]) -> Self {
        let partition = match (asker.is_private(), self.artifact()) {
            (false, _) => Partition::Public,
            (true, Some(_)) => Partition::guarded(&self.target, secret),
            (true, None) => asker.reader(),
        };
        Self { asker, ..self }.within(partition)
    }

    /// The same as anybody finds it, still for who asks: its own claims are heard.
    pub(super) fn in_public(&self) -> Self {
        self.clone().within(Partition::Public)
    }

    /// The same for anybody: no private index is heard.
    pub(super) fn of_anybody(self) -> Self {
        Self { asker: Asker::ANYBODY, ..self }.within(Partition::Public)
    }

    fn within(self, partition: Partition) -> Self {
        Self { key: self.target.key(partition), partition, ..self }
    }

    /// The same in another variant.
    pub(super) fn in_variant(&mut self, variant: &str) {
        self.target = self.bare.clone().with_variant(variant);
        self.key = self.target.key(self.partition);
    }

    /// Under which everything is found that larder remembers of its URL, whatever selects the answer.
    pub(super) fn url_key(&self) -> Key {
        self.bare.key(self.partition)
    }

    /// Where an answer to this task is kept, if it turns out to be of another variant.
    pub(super) fn key_of(&self, target: &Target) -> Key {
        target.key(self.partition)
    }

    /// Whether everybody may ask for it, and be told of it.
    pub(super) fn is_public(&self) -> bool {
        !self.asker.is_private() && !self.target.has_token()
    }

    /// Whether what is stored for it, and what is on its way, is given only to who proves a right to it.
    pub(super) fn is_guarded(&self) -> bool {
        self.partition != Partition::Public && self.artifact().is_some()
    }

    /// Whether it is looked up where only one credential finds it.
    pub(super) fn is_of_one(&self) -> bool {
        self.partition != Partition::Public && self.artifact().is_none()
    }

    /// The target without its variant.
    pub(super) fn bare(&self) -> &Target {
        &self.bare
    }

    /// The artifact, if it is one.
    pub(super) fn artifact(&self) -> Option<&Artifact> {
        match &self.recognition.as_ref()?.resource.kind {
            Kind::Artifact(artifact) => Some(artifact),
            Kind::Index => None,
        }
    }

    /// The digest in its name, where whoever gives it is bound to it by the protocol: wherever it comes from, it is the same.
    pub(super) fn named_by_protocol(&self) -> Option<Digest> {
        let named = self.artifact()?.named.as_ref()?;
        named.is_by_protocol().then_some(named.digest)
    }

    /// Whether it lies in a service that its clients greet, and that may send them for a token.
    pub(super) fn is_of_a_service(&self) -> bool {
        let service = |known: &Recognition| known.ecosystem.api()?.service(&self.bare);
        self.recognition.as_ref().and_then(service).is_some()
    }

    /// Whether the registry counts each GET of it as a pull: manifests, under whatever name.
    pub(super) fn is_counted(&self) -> bool {
        self.is_of_a_service() && self.lane() == Lane::Metadata
    }

    /// What is to be computed of its body, `algorithms` among it. An artifact's content is read even when nothing is
    /// promised of it yet, because a later index may.
    pub(super) fn wanted(&self, algorithms: Algorithms) -> Wanted {
        let known = self.recognition.as_ref().filter(|_| self.artifact().is_some());
        let content =
            known.and_then(|known| known.ecosystem.content_digests()?.content(&self.bare));
        Wanted { algorithms, content }
    }

    /// Whether an ecosystem says that it is an index.
    pub(super) fn is_index(&self) -> bool {
        self.recognition
            .as_ref()
            .is_some_and(|recognition| recognition.resource.kind == Kind::Index)
    }

    /// Whether it is an index that only points at a document under its digest.
    pub(super) fn is_pointer(&self) -> bool {
        self.is_index() && self.tags().is_some_and(|tags| tags.is_tag(&self.bare))
    }

    /// The tags of its ecosystem, if it has such.
    pub(super) fn tags(&self) -> Option<&'static dyn Tags> {
        self.recognition.as_ref()?.ecosystem.tags()
    }

    /// Whether a request with `method` asks if the origin has it.
    pub(super) fn asks_for_presence(&self, method: &Method) -> bool {
        self.recognition
            .as_ref()
            .and_then(|known| known.ecosystem.api())
            .is_some_and(|api| api.is_existence_check(method, &self.bare))
    }

    /// Whether only its own origin's header can make an answer of bytes that came for another URL.
    pub(super) fn needs_own_header(&self) -> bool {
        self.tags().is_some_and(|tags| tags.needs_own_header(&self.bare))
    }

    /// Whether no ecosystem knows it.
    pub(super) fn is_unknown(&self) -> bool {
        self.recognition.is_none()
    }

    /// With whose credential it is asked: whose quota it uses, and whose failures it shares.
    pub(super) fn class(&self) -> Partition {
        self.asker.reader()
    }

    /// Indexes must not wait behind artifacts, under whatever name they are asked for.
    pub(super) fn lane(&self) -> Lane {
        let indexes = |known: &Recognition| !known.ecosystem.indexes_of(&self.bare).is_empty();
        let is_index = self.artifact().is_none() || self.recognition.as_ref().is_some_and(indexes);
        if is_index { Lane::Metadata } else { Lane::Bulk }
    }

    /// The name of the ecosystem; empty for the unknown.
    pub(super) fn ecosystem(&self) -> &'static str {
        self.recognition.as_ref().map_or("", |recognition| recognition.ecosystem.name())
    }

    /// Whether the validators of a stored answer may be sent to its origin.
    fn believes_validators_of(&self, entry: &Entry) -> bool {
        let vouches = |known: &Recognition| known.ecosystem.may_be_signed(&self.bare);
        self.target.origin().scheme == Scheme::Https
            || self.artifact().is_some()
            || !self.known().is_some_and(vouches)
            || self.asked.since(entry.received_at) < VALIDATORS_HOLD
    }

    /// The canonical request, built from the key alone; a revalidation if there is a stored answer with a validator.
    pub(super) fn ask(&self, stored: Option<&Entry>, follow: bool) -> Ask {
        let is_new = stored.is_none();
        let stored = stored.filter(|entry| self.believes_validators_of(entry));
        let validator = |name| stored.and_then(|entry| entry.head.text(name)).map(str::to_owned);
        Ask {
            target: self.bare.clone(),
            accept: self.accept.clone(),
            accept_language: self.language.clone(),
            fields: self.selection.fields(),
            if_none_match: validator(&header::ETAG),
            if_modified_since: validator(&header::LAST_MODIFIED),
            range: None,
            if_range: None,
            head_only: false,
            follow,
            fresh_connection: false,
            // What larder does not know may be a long poll or an event stream.
            patient: self.is_unknown() && is_new,
            lane: self.lane(),
            reach: self.reach,
            token: None,
            credential: self.asker.credential().cloned(),
        }
    }
}

/// All values of a list field as one (RFC 9110 §5.3).
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).map(str::trim).collect();
    texts.join(", ")
}
