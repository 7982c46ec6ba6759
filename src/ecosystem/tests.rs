//! What the tests of several ecosystems ask alike, and with what at hand.

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

/// What `ecosystem` says of a request, in a line.
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

/// Has documents by URL and class, and knows who named files of one origin.
#[derive(Default)]
pub(super) struct Known {
    pub(super) stored: Vec<(Target, &'static str)>,
    origin: String,
    speakers: Vec<Root>,
}

impl Known {
    /// These documents are at hand.
    pub(super) fn holding(stored: Vec<(Target, &'static str)>) -> Self {
        Self { stored, ..Self::default() }
    }

    /// The indexes in the directories of `urls` have named files on the origin `authority`.
    pub(super) fn speakers(authority: &str, urls: &[&str]) -> Self {
        let speakers = urls.iter().map(|url| Root::directory_of(&target(url))).collect();
        Self { stored: Vec::new(), origin: authority.to_owned(), speakers }
    }

    /// The same of eight indexes on `example.org`: as many as are ever named.
    pub(super) fn eight_speakers(authority: &str) -> Self {
        let urls: Vec<String> = (0..8).map(|n| format!("https://example.org/{n}/")).collect();
        Self::speakers(authority, &urls.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `documents` arrived.
    pub(super) fn store(&mut self, documents: &[Target]) {
        self.stored.extend(documents.iter().map(|document| (document.clone(), "")));
    }
}

impl Shelf for Known {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        let (_, body) = self.stored.iter().find(|(known, _)| known == at)?;
        Some(Box::new(body.as_bytes()))
    }

    fn speakers(&self, origin: &Origin) -> Vec<Root> {
        if origin.authority() == self.origin { self.speakers.clone() } else { Vec::new() }
    }
}

/// What a document said: its claims, and whose files it spoke of besides.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) claims: Vec<Claim>,
    pub(super) spoken_of: Vec<String>,
}

impl ClaimSink for Heard {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        self.claims.claim(claim)
    }

    fn speaks(&mut self, origin: &Origin) {
        self.spoken_of.push(origin.authority());
    }
}

/// An answer that an ecosystem is asked to read.
pub(super) struct Answer<'a> {
    pub(super) at: &'a str,
    pub(super) base: &'a str,
    pub(super) proven: Rank,
    pub(super) head: &'a Head,
    pub(super) body: &'a [u8],
}

/// Lets `ecosystem` read an answer.
pub(super) fn read(
    ecosystem: &dyn Ecosystem,
    answer: &Answer<'_>,
    companions: &Known,
) -> Result<(Heard, Standing), Malformed> {
    let body = answer.body.to_vec();
    let document = Document {
        at: &target(answer.at),
        base: &target(answer.base),
        head: answer.head,
        proven: answer.proven,
        now: Time::from_millis(0),
        open: &|| Ok(Box::new(Cursor::new(body.clone()))),
        companions,
    };
    let mut heard = Heard::default();
    let standing = ecosystem.claims(&document, &Keyring::new(), &mut heard)?;
    Ok((heard, standing))
}
