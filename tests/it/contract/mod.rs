//! The rules for every ecosystem, checked over `ecosystem::ALL` with the documents and files of `tests/fixtures`: its claims
//! match its files, each tampered copy is refused, and no input makes it panic. A new ecosystem needs only one more folder.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod bytes;

use std::fmt;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::{HeaderMap, StatusCode};

use larder::claim::{Claim, IndexVersion, Promise, Relation, Standing};
use larder::clock::Time;
use larder::digest::{Algorithms, Digests, Hashing, Wanted};
use larder::ecosystem::{
    ALL, Artifact, Document, Ecosystem, Kind, Recognised, Resource, Shape, Shelf,
};
use larder::entry::Head;
use larder::keyring::Keyring;
use larder::proof::Rank;
use larder::received::{Received, Spooled};
use larder::target::{Origin, Root, Target};
use larder::verify::{Expectation, Verdict, judge};

/// When the request came, and a later time at which its indexes were confirmed, so that their claims may refuse.
const ASKED: Time = Time::from_millis(1_000);
const CONFIRMED: Time = Time::from_millis(2_000);

/// A folder of fixtures, as its manifest describes it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    document: Vec<Index>,
    file: Vec<File>,
}

/// An index.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    #[serde(rename = "file")]
    name: String,
    url: String,
    accept: String,
    /// Whether the URL alone suffices to recognise it.
    certain: bool,
    /// How many claims it makes.
    claims: usize,
}

/// A file that indexes may name.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "file")]
    name: String,
    url: String,
    certain: bool,
    /// The proof with which it is kept once every index was read.
    proof: String,
}

/// An ecosystem, its folder and its manifest.
struct Case {
    ecosystem: &'static dyn Ecosystem,
    folder: PathBuf,
    manifest: Manifest,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ecosystem.name())
    }
}

impl Case {
    fn of(ecosystem: &'static dyn Ecosystem) -> Self {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(ecosystem.name());
        let text = std::fs::read_to_string(folder.join("manifest.toml"));
        let text = text.unwrap_or_else(|error| {
            panic!("{} has no manifest in {}: {error}", ecosystem.name(), folder.display())
        });
        Self { ecosystem, manifest: toml::from_str(&text).unwrap(), folder }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(file)).unwrap()
    }

    fn recognise(&self, url: &str, accept: &str, certain: bool) -> Resource {
        let target = Target::from_url(url).unwrap();
        let request = Shape { target: &target, accept };
        match self.ecosystem.recognise(&request) {
            Recognised::Certain(resource) if certain => resource,
            Recognised::Likely(resource) if !certain => resource,
            other => panic!("{self:?} says of {url}: {other:?}"),
        }
    }

    fn claims(&self, index: &Index) -> (Standing, Vec<Claim>) {
        let body = self.read(&index.name);
        let at = Target::from_url(&index.url).unwrap();
        let mut claims = Vec::new();
        let document = Document {
            at: &at,
            base: &at,
            head: &head(),
            proven: Rank::Origin,
            now: CONFIRMED,
            open: &|| Ok(Box::new(Cursor::new(body.clone()))),
            shelf: self,
        };
        let standing = self.ecosystem.claims(&document, &Keyring::new(), &mut claims).unwrap();
        (standing, claims)
    }

    /// Everything that is promised about `target`, found as the store finds it: by topic and match key.
    fn expectation(&self, target: &Target, artifact: &Artifact) -> Expectation {
        let mut expected = Expectation::nothing(Rank::Pinned);
        expected.named = artifact.named.as_ref().map(|named| (named.digest, true));
        for (number, index) in (1..).zip(&self.manifest.document) {
            let (standing, claims) = self.claims(index);
            let by = Arc::new(IndexVersion {
                number,
                shown: index.url.clone(),
                document: hashed(&self.read(&index.name), Algorithms::NONE).blob(),
                confirmed: CONFIRMED,
                superseded: None,
                rank: standing.rank,
                root: standing.root.clone(),
                expired_key: false,
                signed_by: None,
            });
            expected.promises.extend(
                claims
                    .into_iter()
                    .filter(|claim| {
                        artifact.topics.contains(&claim.topic)
                            && claim.target.match_key() == target.match_key()
                    })
                    .map(|claim| Promise {
                        by: Arc::clone(&by),
                        index: Arc::new(Target::from_url(&index.url).unwrap()),
                        relation: if standing.root.covers(target) {
                            Relation::InRoot
                        } else {
                            Relation::Declared
                        },
                        digests: claim.digests,
                        size: claim.size,
                        signed: false,
                    }),
            );
        }
        expected
    }
}

/// Finds every document of the folder, in the variant that its request has.
impl Shelf for Case {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        let stored = self.manifest.document.iter().find(|index| {
            let variant = self.recognise(&index.url, &index.accept, index.certain).variant;
            index.url == at.url() && variant.name == at.variant()
        })?;
        Some(Box::new(Cursor::new(self.read(&stored.name))))
    }

    fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

fn head() -> Head {
    Head { status: StatusCode::OK, headers: HeaderMap::new() }
}

fn hashed(bytes: &[u8], wanted: impl Into<Wanted>) -> Digests {
    let mut hashing = Hashing::new(wanted);
    hashing.update(bytes);
    hashing.finish()
}

fn received(bytes: &[u8], wanted: Wanted) -> Received {
    let mut spool = tempfile::NamedTempFile::new().unwrap();
    spool.write_all(bytes).unwrap();
    let (file, path) = spool.keep().unwrap();
    Received {
        body: Spooled {
            file: Arc::new(file),
            path,
            size: bytes.len() as u64,
            digests: hashed(bytes, wanted),
            chunks: Vec::new(),
            room: Box::new(()),
        },
        head: head(),
        plain: false,
        answered_by: None,
        resumed: false,
        requested_at: ASKED,
        received_at: CONFIRMED,
    }
}

/// Copies of the file: with one bit flipped at each end and in the middle, one byte short, and one byte long.
fn tampered(bytes: &[u8]) -> Vec<Vec<u8>> {
    let flipped = [0, bytes.len() / 2, bytes.len() - 1].map(|at| {
        let mut twin = bytes.to_vec();
        twin[at] ^= 1;
        twin
    });
    let mut twins = flipped.to_vec();
    twins.push(bytes.split_last().unwrap().1.to_vec());
    twins.push([bytes, b"\0"].concat());
    twins
}

#[test]
fn indexes_are_recognised_confirmed_and_read() {
    for case in ALL.iter().copied().map(Case::of) {
        assert!(!case.manifest.document.is_empty(), "{case:?}");
        for index in &case.manifest.document {
            let resource = case.recognise(&index.url, &index.accept, index.certain);
            assert_eq!(resource.kind, Kind::Index, "{}", index.url);
            let body = case.read(&index.name);
            let start = body.get(..1024).unwrap_or(&body);
            let at = Target::from_url(&index.url).unwrap();
            assert!(
                index.certain || case.ecosystem.confirm(&at, &head(), start),
                "{} does not confirm",
                index.url
            );
            let (standing, claims) = case.claims(index);
            assert_eq!(claims.len(), index.claims, "{} {claims:#?}", index.url);
            // The recognition and the claims have authority over the same part of the origin.
            assert_eq!(standing.root, resource.root, "{}", index.url);
            // larder's own request must use the same entry.
            let accept = case.ecosystem.accept(resource.variant.name);
            assert_eq!(accept, resource.variant.accept);
            let again = case.recognise(&index.url, accept, index.certain);
            assert_eq!(again.variant, resource.variant);
        }
    }
}

#[test]
fn files_are_proven_by_their_indexes_and_their_tampered_twins_refused() {
    for case in ALL.iter().copied().map(Case::of) {
        let mut refused = 0;
        for file in &case.manifest.file {
            let resource = case.recognise(&file.url, "*/*", file.certain);
            let Kind::Artifact(artifact) = resource.kind else {
                panic!("{} is no artifact", file.url);
            };
            let target = Target::from_url(&file.url).unwrap();
            let expected = case.expectation(&target, &artifact);
            let wanted = Wanted {
                algorithms: expected.algorithms(),
                content: case.ecosystem.content_digests().and_then(|facet| facet.content(&target)),
            };
            let bytes = case.read(&file.name);
            match judge(received(&bytes, wanted), &expected, ASKED) {
                Verdict::Keep(verified, None) => {
                    assert_eq!(verified.proof().rank.as_str(), file.proof, "{}", file.url);
                }
                other => panic!("{} {other:?}", file.url),
            }
            for twin in tampered(&bytes) {
                match judge(received(&twin, wanted), &expected, ASKED) {
                    Verdict::Refuse(..) => refused += 1,
                    // A weak digest refuses nothing, but a file that does not match it is not kept.
                    Verdict::Give(_, Some(_)) if file.proof == "indexed-weak" => {}
                    // The control: without a promise a tampered file cannot be found out.
                    Verdict::Keep(..) if file.proof == "pinned" => {}
                    other => panic!("a twin of {}: {other:?}", file.url),
                }
            }
        }
        assert!(refused > 0, "{case:?} refuses nothing");
    }
}

#[test]
fn a_claim_is_found_by_a_request_for_its_file() {
    for case in ALL.iter().copied().map(Case::of) {
        for claim in case.manifest.document.iter().flat_map(|index| case.claims(index).1) {
            let request = Shape { target: &claim.target, accept: "*/*" };
            let (Recognised::Certain(resource) | Recognised::Likely(resource)) =
                case.ecosystem.recognise(&request)
            else {
                panic!("{} is claimed and not recognised", claim.target);
            };
            // An index that another one names is found by its ecosystem's topics.
            let topics = match resource.kind {
                Kind::Artifact(artifact) => artifact.topics,
                Kind::Index => case.ecosystem.topics(&claim.target),
            };
            assert!(topics.contains(&claim.topic), "{}", claim.target);
        }
    }
}
