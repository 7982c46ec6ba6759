//! Helpers that the tests of several ecosystems share.

use std::io::{Cursor, Read};

use hyper::{HeaderMap, StatusCode};

use super::*;
use crate::claim::Claim;
use crate::clock::Time;

pub(super) fn target(url: &str) -> Target {
    Target::from_url(url).unwrap_or_else(|| panic!("{url}"))
}

pub(super) fn head(status: StatusCode, headers: &[(&'static str, &str)]) -> Head {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    Head { status, headers: map }
}

/// How `ecosystem` recognises a request, in one line.
pub(super) fn said(ecosystem: &dyn Ecosystem, path: &str, accept: &str) -> String {
    let target = target(&format!("https://example.org{path}"));
    let (sure, resource) = match ecosystem.recognise(&Shape { target: &target, accept }) {
        Recognised::No => return "no".into(),
        Recognised::Likely(resource) => ("likely", resource),
        Recognised::Certain(resource) => ("certain", resource),
    };
    let root = resource.root.path;
    match resource.kind {
        Kind::Index => format!("{sure} index {root} {}", resource.variant.name),
        Kind::Artifact(artifact) => {
            let named = if artifact.named.is_some() { " named" } else { "" };
            let topics: Vec<String> = artifact.topics.into_iter().map(|t| t.0.into()).collect();
            format!("{sure} artifact{named} {root} {}", topics.join(" "))
        }
    }
}

/// A shelf with documents by URL and class, and with the claiming roots of one origin.
#[derive(Default)]
pub(super) struct Known {
    pub(super) stored: Vec<(Target, &'static str)>,
    origin: String,
    claiming_roots: Vec<Root>,
}

impl Known {
    /// A shelf with these documents.
    pub(super) fn holding(stored: Vec<(Target, &'static str)>) -> Self {
        Self { stored, ..Self::default() }
    }

    /// A shelf whose claiming roots of the origin `authority` are the directories of `urls`.
    pub(super) fn claiming_roots(authority: &str, urls: &[&str]) -> Self {
        let claiming_roots = urls.iter().map(|url| Root::directory_of(&target(url))).collect();
        Self { stored: Vec::new(), origin: authority.to_owned(), claiming_roots }
    }

    /// The same with eight roots on `example.org`, which is the maximum of [`Shelf::claiming_roots`].
    pub(super) fn eight_claiming_roots(authority: &str) -> Self {
        let urls: Vec<String> = (0..8).map(|n| format!("https://example.org/{n}/")).collect();
        Self::claiming_roots(authority, &urls.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Stores `documents`, with empty bodies.
    pub(super) fn store(&mut self, documents: &[Target]) {
        self.stored.extend(documents.iter().map(|document| (document.clone(), "")));
    }
}

impl Shelf for Known {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        let (_, body) = self.stored.iter().find(|(known, _)| known == at)?;
        Some(Box::new(body.as_bytes()))
    }

    fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
        if origin.authority() == self.origin { self.claiming_roots.clone() } else { Vec::new() }
    }
}

/// The result of reading a document: its claims, and the origins that it named.
#[derive(Debug, Default)]
pub(super) struct ForeignClaimAlarms {
    pub(super) claims: Vec<Claim>,
    pub(super) spoken_of: Vec<String>,
}

impl ClaimSink for ForeignClaimAlarms {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        self.claims.claim(claim)
    }

    fn speaks(&mut self, origin: &Origin) {
        self.spoken_of.push(origin.authority());
    }
}

/// A response for an ecosystem to read.
pub(super) struct Answer<'a> {
    pub(super) at: &'a str,
    pub(super) base: &'a str,
    pub(super) proven: Rank,
    pub(super) head: &'a Head,
    pub(super) body: &'a [u8],
}

/// Reads a response with `ecosystem`.
pub(super) fn read(
    ecosystem: &dyn Ecosystem,
    answer: &Answer<'_>,
    shelf: &Known,
) -> Result<(ForeignClaimAlarms, Standing), Malformed> {
    let body = answer.body.to_vec();
    let document = Document {
        at: &target(answer.at),
        base: &target(answer.base),
        head: answer.head,
        proven: answer.proven,
        now: Time::from_millis(0),
        open: &|| Ok(Box::new(Cursor::new(body.clone()))),
        shelf,
    };
    let mut heard = ForeignClaimAlarms::default();
    let standing = ecosystem.claims(&document, &Keyring::new(), &mut heard)?;
    Ok((heard, standing))
}
