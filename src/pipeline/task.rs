//! What a fill needs to know: the target in its variant, its recognition, and the principal.

use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request};

use super::principal::Principal;
use super::selection::Selection;
use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Algorithms, Digest, Wanted};
use crate::ecosystem::facets::Tags;
use crate::ecosystem::{Artifact, Kind, Recognition};
use crate::entry::Entry;
use crate::origin::{Ask, Lane, Reach};
use crate::target::{Key, Partition, Scheme, Target};

/// How long validators are used that came over plain HTTP with a signed document. The signature covers the bytes and not the
/// header fields. An attacker on the path could have sent an earlier snapshot with the validators of today's, which the origin
/// would then confirm with a 304 until it publishes again. Such a document has about 200 KiB.
const VALIDATORS_HOLD: Duration = Duration::from_hours(6);

/// A target to be answered from the cache, or filled.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// The target, in the variant that its ecosystem declares or, for an unrecognised target, that selects its stored answers.
    pub(super) target: Target,
    /// Its key.
    pub(super) key: Key,
    /// What an ecosystem recognised the target as.
    pub(super) recognition: Option<Recognition>,
    /// What the target may be, if the answer confirms it.
    pub(super) likely: Option<Recognition>,
    /// Which addresses larder may connect to for it.
    pub(super) reach: Reach,
    /// When the request arrived.
    pub(super) asked: Time,
    /// What the snapshot that the client has read promises about the target. If set, no other promise counts.
    pub(super) promised: Option<Promise>,
    /// The principal of the request.
    pub(super) principal: Principal,
    /// The partition in `key`.
    partition: Partition,
    bare: Target,
    accept: String,
    language: Option<String>,
    /// The header fields of the client's request that may select one of several answers.
    pub(super) selection: Selection,
}

impl Task {
    /// The task of a client's request.
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
            principal: Principal::default(),
            partition: Partition::Public,
            accept: if accept.is_empty() { "*/*".to_owned() } else { accept },
            language: Some(language).filter(|language| !language.is_empty()),
        }
    }

    /// The task for a target that an ecosystem recognises.
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
            principal: Principal::default(),
            partition: Partition::Public,
        }
    }

    /// The keys that signed the snapshot that alone counts for this task, if it is a signed one.
    pub(super) fn member_signers(&self) -> Option<Vec<Box<str>>> {
        let by = self.promised.as_ref()?.by.signed_by.as_ref()?;
        (!by.index.is_empty()).then(|| by.index.clone())
    }

    /// The key of the flight that the task may share. Clients that have read different snapshots request different bytes from the
    /// same URL. Until the answer is there, it is not known which of the sent fields selected it, so all of them are in the key.
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
        // A declared variant cannot contain a line end.
        let variant = format!("{}\n{}", self.target.variant(), digests.join(" "));
        self.target.clone().with_variant(&variant).key(self.partition)
    }

    /// The key under which an error is remembered. A field that was sent may have caused it although `Vary` does not say so. The
    /// fields of `http.forwarded_headers` are left out.
    pub(super) fn key_as_asked(&self) -> Key {
        let language = self.language.as_deref().unwrap_or_default();
        let variant = format!("{}\n\n{}\n{language}", self.target.variant(), self.accept);
        self.target.clone().with_variant(&variant).key(self.partition)
    }

    /// Whether it is a snapshot's root, or will be when its recognition is confirmed.
    pub(super) fn is_snapshot_root(&self) -> bool {
        self.known().is_some_and(|known| known.ecosystem.is_snapshot_root(&self.bare))
            && self.artifact().is_none()
    }

    /// Whether an index may promise its body, now or later.
    pub(super) fn may_be_promised(&self) -> bool {
        self.known().is_some_and(|known| match known.resource.kind {
            Kind::Artifact(_) => true,
            Kind::Index => !self.is_snapshot_root(),
        })
    }

    /// What it is, or may be.
    pub(super) fn known(&self) -> Option<&Recognition> {
        self.recognition.as_ref().or(self.likely.as_ref())
    }

    /// The same task for `principal`. For a principal with a credential, entries are looked up and kept where only principals with a
    /// right find them (see [`Partition`]): an artifact in the single private partition of its target, everything else in the
    /// principal's own.
    #[must_use]
    pub(super) fn of(self, principal: Principal, secret: &[u8; 32]) -> Self {
        let partition = match (principal.is_private(), self.artifact()) {
            (false, _) => Partition::Public,
            (true, Some(_)) => Partition::guarded(&self.target, secret),
            (true, None) => principal.reader(),
        };
        Self { principal, ..self }.within(partition)
    }

    /// The same task with the public partition, still for the same principal: the claims of its own indexes count.
    pub(super) fn in_public(&self) -> Self {
        self.clone().within(Partition::Public)
    }

    /// The same task for the anonymous principal: no private index counts.
    pub(super) fn of_anybody(self) -> Self {
        Self { principal: Principal::ANYBODY, ..self }.within(Partition::Public)
    }

    fn within(self, partition: Partition) -> Self {
        Self { key: self.target.key(partition), partition, ..self }
    }

    /// Changes the task to another variant.
    pub(super) fn in_variant(&mut self, variant: &str) {
        self.target = self.bare.clone().with_variant(variant);
        self.key = self.target.key(self.partition);
    }

    /// The key of what larder remembers of the URL, whatever selects the answer.
    pub(super) fn url_key(&self) -> Key {
        self.bare.key(self.partition)
    }

    /// The key under which an answer to this task is kept, if it turns out to be of another variant.
    pub(super) fn key_of(&self, target: &Target) -> Key {
        target.key(self.partition)
    }

    /// Whether everybody may request it and see its URL.
    pub(super) fn is_public(&self) -> bool {
        !self.principal.is_private() && !self.target.has_token()
    }

    /// Whether it is private and shared by right: the stored entry, and a body on its way, are given only to principals that
    /// prove a right.
    pub(super) fn is_private_artifact(&self) -> bool {
        self.partition != Partition::Public && self.artifact().is_some()
    }

    /// Whether it is looked up in the partition of one credential.
    pub(super) fn is_private_index(&self) -> bool {
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

    /// The digest in its name, if the protocol binds every server to it: the bytes are then the same wherever they come from.
    pub(super) fn named_by_protocol(&self) -> Option<Digest> {
        let named = self.artifact()?.named.as_ref()?;
        named.is_by_protocol().then_some(named.digest)
    }

    /// Whether it belongs to a service with an API version check, which may refer its clients to a token service.
    pub(super) fn is_of_a_service(&self) -> bool {
        let service = |known: &Recognition| known.ecosystem.api()?.service(&self.bare);
        self.recognition.as_ref().and_then(service).is_some()
    }

    /// Whether the registry counts each GET of it as a pull: manifests, by tag or by digest.
    pub(super) fn is_counted(&self) -> bool {
        self.is_of_a_service() && self.lane() == Lane::Metadata
    }

    /// What must be computed of its body; this includes `algorithms`. The digest of an artifact's content is computed even if
    /// nothing is promised yet, because a later index may promise it.
    pub(super) fn wanted(&self, algorithms: Algorithms) -> Wanted {
        let known = self.known().filter(|known| matches!(known.resource.kind, Kind::Artifact(_)));
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

    /// Whether it is a tag: an index that only names a document under its digest.
    pub(super) fn is_tag(&self) -> bool {
        self.is_index() && self.tags().is_some_and(|tags| tags.is_tag(&self.bare))
    }

    /// The tags of its ecosystem, if it has such.
    pub(super) fn tags(&self) -> Option<&'static dyn Tags> {
        self.recognition.as_ref()?.ecosystem.tags()
    }

    /// Whether a request with `method` is an existence check.
    pub(super) fn is_existence_check(&self, method: &Method) -> bool {
        self.recognition
            .as_ref()
            .and_then(|known| known.ecosystem.api())
            .is_some_and(|api| api.is_existence_check(method, &self.bare))
    }

    /// Whether bytes that came for another URL can answer it only with header fields from its own origin.
    pub(super) fn needs_own_header(&self) -> bool {
        self.tags().is_some_and(|tags| tags.needs_own_header(&self.bare))
    }

    /// Whether no ecosystem recognises it.
    pub(super) fn is_unknown(&self) -> bool {
        self.recognition.is_none()
    }

    /// The principal whose credential is sent: the one whose quota is used and whose failures count.
    pub(super) fn class(&self) -> Partition {
        self.principal.reader()
    }

    /// The lane of its upstream requests: indexes must not wait behind artifacts, under whatever name they are requested.
    pub(super) fn lane(&self) -> Lane {
        let indexes = |known: &Recognition| !known.ecosystem.indexes_of(&self.bare).is_empty();
        let is_index = self.artifact().is_none() || self.recognition.as_ref().is_some_and(indexes);
        if is_index { Lane::Metadata } else { Lane::Bulk }
    }

    /// The name of the ecosystem; empty if none recognises it.
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

    /// The canonical request, built from the task alone; a revalidation if there is a stored answer with a validator.
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
            // A target that no ecosystem recognises may be a long poll or an event stream.
            patient: self.is_unknown() && is_new,
            lane: self.lane(),
            reach: self.reach,
            token: None,
            credential: self.principal.credential().cloned(),
        }
    }
}

/// All values of a list field as one (RFC 9110 §5.3).
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).map(str::trim).collect();
    texts.join(", ")
}
