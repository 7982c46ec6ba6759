//! Rust distributions: a manifest for each channel, which names component archives with their SHA-256.
//!
//! ```text
//! <prefix>/dist/channel-rust-<channel>.toml          a channel's manifest; it changes with every release
//! <prefix>/dist/<date>/channel-rust-<channel>.toml   the manifest of that day
//! <prefix>/dist/<date>/<component>-….tar.{gz,xz}     an archive
//! ```
//!
//! `<prefix>` may be anything. A manifest has authority over the part of the origin below it. Each archive is claimed
//! at the URL in the manifest, and at the same path below the manifest's own prefix: mirrors serve the manifest
//! unchanged, and rustup replaces the URL in it by the mirror's.
//!
//! Not supported: the checksum files of the manifests (`….toml.sha256`), signatures, installers, the self-update.
//!
//! Sources: rustup's manifest reader (version 2 of the format), the manifests themselves.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;

use super::{Artifact, Document, Ecosystem, Kind, Malformed, Profile, Recognised};
use super::{Resource, Shape, Shelf, Variant};
use crate::claim::{Claim, ClaimSink, Standing, Topic};
use crate::digest::{Algorithm, Digest};
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Scheme, Target};

const NAME: &str = "rustup";

/// The maximum length of a manifest, in bytes. TOML is parsed as a whole; real manifests have less than 1 MB.
const MAX_MANIFEST: u64 = 8 * 1024 * 1024;

/// The maximum number of TOML delimiter bytes. For each, the parser allocates up to three values of 24 bytes and more.
/// Real manifests have a tenth of this.
const MAX_MARKS: usize = 500_000;

/// Rust distributions.
#[derive(Debug)]
pub(super) struct Rustup;

const PROFILE: Profile =
    Profile { name: NAME, harmless_headers: &[], login_headers: &[], files_are_immutable: false };

impl Ecosystem for Rustup {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        let Some(DistPath { root, what }) = DistPath::at(request.target) else {
            return Recognised::No;
        };
        let kind = match what {
            What::Channel => Kind::Index,
            What::Archive { date, .. } => {
                Kind::Artifact(Artifact { named: None, topics: vec![topic(date)] })
            }
        };
        Recognised::Certain(Resource { kind, root, variant: Variant::ONLY })
    }

    /// The manifest of the archive's date, because the channel's current manifest may be newer.
    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        let Some(DistPath { root, what: What::Archive { date, file } }) = DistPath::at(at) else {
            return Vec::new();
        };
        let channel = ["nightly", "beta"]
            .into_iter()
            .find(|channel| file.split('-').any(|part| part == *channel))
            .unwrap_or("stable");
        let path = format!("{}dist/{date}/channel-rust-{channel}.toml", root.path);
        Target::new(root.origin, &path)
            .ok()
            .filter(|manifest| manifest.origin().scheme == Scheme::Https)
            .filter(|manifest| have.open(manifest).is_none())
            .into_iter()
            .collect()
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        _: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let root = match DistPath::at(doc.at) {
            Some(DistPath { root, what: What::Channel }) if doc.may_claim() => root,
            place => {
                return Ok(Standing {
                    rank: Rank::None,
                    root: place.map_or_else(|| Root::directory_of(doc.at), |place| place.root),
                });
            }
        };
        doc.expect_identity()?;
        let manifest = Manifest::read((doc.open)()?)?;
        for archive in manifest.archives() {
            for claim in claims_of(&archive, doc.base, &root) {
                out.claim(claim)?;
            }
        }
        Ok(Standing { rank: Rank::Indexed, root })
    }
}

/// A URL of a distribution, recognised by its path.
struct DistPath<'a> {
    /// The part of the origin over which a manifest there has authority.
    root: Root,
    what: What<'a>,
}

enum What<'a> {
    Channel,
    Archive { date: &'a str, file: &'a str },
}

impl<'a> DistPath<'a> {
    fn at(at: &'a Target) -> Option<Self> {
        let (prefix, rest) = at.path().rsplit_once("/dist/")?;
        let (date, file) = match rest.split_once('/') {
            Some((date, file)) => (Some(date).filter(|date| is_date(date))?, file),
            None => ("", rest),
        };
        let channel =
            file.strip_prefix("channel-rust-").and_then(|rest| rest.strip_suffix(".toml"));
        let what = match channel {
            Some(channel) if is_word(channel) => What::Channel,
            None if !date.is_empty() && is_archive(file) => What::Archive { date, file },
            Some(_) | None => return None,
        };
        // A source package in a Debian pool may have such a name.
        let foreign = prefix.split('/').any(|segment| segment == "pool");
        (at.query().is_none() && !foreign).then(|| Self { root: Root::at(at, prefix.len()), what })
    }
}

/// The topic of a day's files: that day's manifests name them, and other days' manifests seldom do.
fn topic(date: &str) -> Topic {
    Topic::new(NAME, date)
}

fn is_date(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

fn is_archive(file: &str) -> bool {
    [".tar.gz", ".tar.xz"]
        .iter()
        .find_map(|end| file.strip_suffix(end))
        .is_some_and(|stem| stem.contains('-') && is_word(stem))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The members of a manifest that larder reads. The TOML parser refuses a repeated key.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Manifest {
    manifest_version: String,
    pkg: BTreeMap<String, Package>,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    target: BTreeMap<String, Archives>,
}

/// One component for one platform.
#[derive(Deserialize)]
struct Archives {
    url: Option<String>,
    hash: Option<String>,
    xz_url: Option<String>,
    xz_hash: Option<String>,
}

/// The URL of an archive, and its SHA-256 in hexadecimal.
struct Archive<'a> {
    url: &'a str,
    hash: &'a str,
}

impl Manifest {
    fn read(document: impl Read) -> Result<Self, Malformed> {
        let shape = |found| Malformed::Shape { expected: "manifest of a Rust channel", found };
        let mut bytes = Vec::new();
        document.take(MAX_MANIFEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(Malformed::Limit { limit: MAX_MANIFEST, unit: "bytes" });
        }
        let marks =
            bytes.iter().filter(|byte| !byte.is_ascii_alphanumeric() && !b"-_/".contains(byte));
        if marks.count() > MAX_MARKS {
            return Err(Malformed::Limit { limit: MAX_MARKS as u64, unit: "words" });
        }
        let manifest: Self = toml::from_slice(&bytes).map_err(|error| shape(error.to_string()))?;
        if manifest.manifest_version != "2" {
            return Err(shape(format!("version {:?}", manifest.manifest_version)));
        }
        Ok(manifest)
    }

    fn archives(&self) -> impl Iterator<Item = Archive<'_>> {
        let platforms = self.pkg.values().flat_map(|package| package.target.values());
        platforms.flat_map(|archives| {
            let pairs = [(&archives.url, &archives.hash), (&archives.xz_url, &archives.xz_hash)];
            pairs.into_iter().filter_map(|(url, hash)| {
                let (url, hash) = (url.as_deref()?, hash.as_deref()?);
                Some(Archive { url, hash })
            })
        })
    }
}

/// The claims for an archive: at its URL, and at the same path below `root`.
fn claims_of(archive: &Archive<'_>, base: &Target, root: &Root) -> Vec<Claim> {
    let digest = Digest::from_hex(Algorithm::Sha256, archive.hash);
    let (Some(digest), Some(target)) = (digest, base.join(archive.url)) else {
        return Vec::new();
    };
    let Some(DistPath { what: What::Archive { date, file }, .. }) = DistPath::at(&target) else {
        return Vec::new();
    };
    let topic = topic(date);
    let own = Target::new(root.origin.clone(), &format!("{}dist/{date}/{file}", root.path));
    let own = own.ok().filter(|own| *own != target);
    [Some(target), own]
        .into_iter()
        .flatten()
        .filter(|target| target.origin().scheme == Scheme::Https)
        .map(|target| Claim { target, topic: topic.clone(), digests: vec![digest], size: None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecosystem::fuzz::Nowhere;
    use crate::entry::Head;
    use hyper::{HeaderMap, StatusCode};
    use std::io::Cursor;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const MANIFEST: &str = "https://example.org/rust/dist/channel-rust-stable.toml";

    fn target(url: &str) -> Target {
        Target::from_url(url).unwrap_or_else(|| panic!("{url}"))
    }

    fn said(path: &str) -> String {
        let target = target(&format!("https://example.org{path}"));
        match Rustup.recognise(&Shape { target: &target, accept: "*/*" }) {
            Recognised::Certain(Resource { kind: Kind::Index, root, .. }) => {
                format!("index {}", root.path)
            }
            Recognised::Certain(Resource { kind: Kind::Artifact(artifact), root, .. }) => {
                format!("{} {}", artifact.topics[0].0, root.path)
            }
            Recognised::No => "no".into(),
            other @ Recognised::Likely(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn manifests_and_archives_are_recognised_under_any_prefix() {
        for (path, expected) in [
            ("/dist/channel-rust-stable.toml", "index /"),
            ("/t/dist/channel-rust-1.95.0.toml", "index /t/"),
            ("/dist/2026-11-20/channel-rust-nightly.toml", "index /"),
            (
                "/t/dist/2026-11-20/rustc-nightly-x86_64-unknown-linux-gnu.tar.xz",
                "rustup:2026-11-20 /t/",
            ),
            ("/dist/2026-11-20/rust-std-1.95.0-wasm32-wasip1.tar.gz", "rustup:2026-11-20 /"),
            ("/dist/channel-rust-stable.toml.sha256", "no"),
            ("/dist/channel-rust-stable.toml?x", "no"),
            ("/dist/2026-11-20/channel-rust-stable.toml.asc", "no"),
            ("/channel-rust-stable.toml", "no"),
            ("/dist/rustc-1.95.0-x86_64-unknown-linux-gnu.tar.xz", "no"),
            ("/dist/latest/rustc-1.95.0.tar.xz", "no"),
            ("/dist/2026-11-20/rustc.tar.xz", "no"),
            ("/dist/2026-11-20/x/rustc-1.95.0.tar.xz", "no"),
            ("/pool/dist/2026-11-20/a-1_1.0.orig.tar.xz", "no"),
        ] {
            assert_eq!(said(path), expected, "{path}");
        }
    }

    fn claims(at: &str, manifest: &str) -> Result<Vec<String>, Malformed> {
        let (at, body) = (target(at), manifest.to_owned());
        let mut out = Vec::new();
        Rustup.claims(
            &Document {
                at: &at,
                base: &at,
                head: &Head { status: StatusCode::OK, headers: HeaderMap::new() },
                proven: Rank::Origin,
                now: crate::clock::Time::from_millis(0),
                open: &|| Ok(Box::new(Cursor::new(body.clone()))),
                shelf: &Nowhere,
            },
            &Keyring::new(),
            &mut out,
        )?;
        Ok(out.iter().map(|claim| claim.target.url()).collect())
    }

    fn manifest(url: &str) -> String {
        format!(
            "manifest-version = \"2\"\ndate = \"2026-11-20\"\n[pkg.rustc]\nversion = \"1\"\n\
             [pkg.rustc.target.none]\navailable = false\n[pkg.rustc.target.x86_64-unknown-linux-gnu]\navailable = true\n\
             url = \"{url}/dist/2026-11-20/rustc-1.tar.gz\"\nhash = \"{ONE}\"\n\
             xz_url = \"{url}/dist/2026-11-20/rustc-1.tar.xz\"\nxz_hash = \"1234\"\n[rename.a]\nto = \"b\"\n"
        )
    }

    #[test]
    fn a_manifest_of_many_words_is_not_parsed() {
        let of = |count: usize| {
            Manifest::read(
                format!("manifest-version = \"2\"\nx = [{}]\n[pkg]\n", "1,".repeat(count))
                    .as_bytes(),
            )
            .map(|_| ())
            .map_err(|error| error.to_string())
        };
        assert_eq!(of(1000), Ok(()));
        assert!(of(MAX_MARKS).unwrap_err().contains("words"));
    }

    #[test]
    fn an_archive_is_claimed_where_the_manifest_says_and_where_a_mirror_has_it() {
        let said = |url: &str| claims(MANIFEST, &manifest(url)).unwrap();
        let own = "https://example.org/rust/dist/2026-11-20/rustc-1.tar.gz";
        let there = "https://files.example.org/dist/2026-11-20/rustc-1.tar.gz";
        assert_eq!(said("https://files.example.org"), [there, own]);
        assert_eq!(said("https://example.org/rust"), [own]);
        assert_eq!(said("http://files.example.org"), [own]);
        for hostile in [
            "https://user:secret@example.org",
            "file:///etc",
            "https://[::1",
            "https://example.org/pool",
        ] {
            assert_eq!(said(hostile), Vec::<String>::new(), "{hostile}");
        }
        let plain = MANIFEST.replace("https:", "http:");
        let none = claims(&plain, &manifest("https://files.example.org")).unwrap();
        assert_eq!(none, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_manifest_is_malformed() {
        let good = manifest("https://files.example.org");
        for document in [
            good.replace("\"2\"", "\"3\""),
            good.replace("manifest-version", "version"),
            good.replace("[rename.a]", "[pkg.rustc]"),
            good.replace("[rename.a]", "hash = \"\""),
            good.replace("xz_hash", "hash"),
            good.replace("[pkg.rustc", "[package.rustc"),
            good.replace("[rename.a]", &format!("x = {}", "[".repeat(100_000))),
            "<html>".into(),
            "\u{0}".into(),
            String::new(),
        ] {
            let read = claims(MANIFEST, &document);
            assert!(
                matches!(read, Err(Malformed::Shape { .. })),
                "{}",
                document.get(..200).unwrap_or(&document)
            );
        }
        let long = format!("{good}#{}", "x".repeat(1 << 23));
        let read = claims(MANIFEST, &long);
        assert!(matches!(read, Err(Malformed::Limit { .. })));
    }

    #[test]
    fn an_archive_wants_the_manifest_of_its_day() {
        for (file, channel) in [
            ("rustc-1.95.0-x86_64-unknown-linux-gnu.tar.xz", "stable"),
            ("rust-std-nightly-x86_64-unknown-linux-gnu.tar.xz", "nightly"),
            ("cargo-beta-aarch64-apple-darwin.tar.gz", "beta"),
        ] {
            let at = target(&format!("https://example.org/t/dist/2026-11-20/{file}"));
            let expected =
                format!("https://example.org/t/dist/2026-11-20/channel-rust-{channel}.toml");
            assert_eq!(Rustup.wants(&at, &Nowhere), [target(&expected)]);
        }
        assert_eq!(Rustup.wants(&target(MANIFEST), &Nowhere), []);
    }
}
