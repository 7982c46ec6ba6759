//! Bytes and paths that nobody wrote by hand: no target is certain for two ecosystems, and none of their parsers breaks.

use std::time::Duration;

use proptest::prelude::*;

use larder::accept::mirror::fuzz as mirror;
use larder::clock::Stopwatch;
use larder::ecosystem::{ALL, fuzz};
use larder::target::Target;

use super::{Case, File, Index};

/// Segments of every ecosystem's paths, from which paths that may mean two things are made.
fn segment() -> impl Strategy<Value = String> {
    let hex = "0123456789abcdef".repeat(4);
    let known = [
        "simple",
        "+simple",
        "pypi",
        "json",
        "packages",
        "dists",
        "pool",
        "by-hash",
        "SHA256",
        "Release",
        "InRelease",
        "Packages.gz",
        "Packages.diff",
        "Index",
        "dep11",
        "icons-64x64.tar.gz",
        "Translation-1.tar.gz",
        "ab",
        "idna",
        "a-1.0.tar.gz",
        "a-1.0-py3-none-any.whl",
        "a_1.0_all.deb",
        "a_1.0.orig.tar.gz",
        "-",
        "@a",
        "@a%2fb",
        "a-1.0.0.tgz",
        "latest",
        "1.0.0",
        "crates",
        "download",
        "a-1.0.0.crate",
        "config.json",
        "dist",
        "2026-11-20",
        "channel-rust-stable.toml",
        "x86_64",
        "APKINDEX.tar.gz",
        "Packages.adb",
        "a-1.0-r0.apk",
        "a-1_1.0.orig.tar.xz",
        "v2",
        "manifests",
        "blobs",
        "tags",
        "list",
        "_catalog",
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "1",
        "a",
        "",
    ];
    let mut all: Vec<String> = known.map(str::to_owned).to_vec();
    all.extend([hex.get(..60).unwrap().to_owned(), hex]);
    prop_oneof![
        9 => proptest::sample::select(all),
        1 => "[ -~]{0,8}",
    ]
}

proptest! {
    #[test]
    fn no_target_is_certain_for_two(
        path in proptest::collection::vec(segment(), 0..8),
        accept in proptest::sample::select(vec![
            "",
            "*/*",
            "text/html",
            "text/plain",
            "application/json",
            "application/vnd.npm.install-v1+json",
            "application/vnd.oci.image.index.v1+json, */*",
        ]),
    ) {
        fuzz::requests(format!("/{}\n{accept}", path.join("/")).as_bytes());
    }
}

/// Every file of every ecosystem, alone, as the answer of its URL, and as its request.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for case in ALL.iter().copied().map(Case::of) {
        for Index { name, url, accept, .. } in &case.manifest.document {
            let target = Target::from_url(url).unwrap();
            let body = case.read(name);
            corpus.push([target.path().as_bytes(), b"\n", &body].concat());
            corpus.push(format!("{}\n{accept}", target.path()).into_bytes());
            corpus.push(body);
        }
        for File { name, url, .. } in &case.manifest.file {
            corpus.push(Target::from_url(url).unwrap().path().into());
            corpus.push(name.clone().into_bytes());
        }
    }
    corpus
}

/// What formats give a meaning to.
const WORDS: [&str; 28] = [
    "<a href=\"",
    "<base href=",
    "<script>",
    "</script>",
    "<!--",
    "&amp;",
    "#sha256=",
    "\"files\":[",
    "{\"url\":\"",
    "\"hashes\":{",
    "\\u0000",
    "../",
    "//",
    "%2f",
    ";q=0.",
    "\u{feff}",
    "\"versions\":{",
    "\"dist\":{",
    "\"integrity\":\"sha512-",
    "\"tarball\":\"/-/",
    "@gears%2fbox",
    "{\"dl\":\"https://",
    "{crate}",
    "\"cksum\":\"",
    "[pkg.a.target.b]\nurl = \"",
    "/dist/2026-11-20/",
    "C:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\nP:a\nV:1\n\n",
    ".SIGN.RSA256.",
];

/// Numbers that look random and are the same in every run (Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end.max(1)
    }

    /// An input with some bytes changed, cut out, doubled, or mixed in from another.
    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let pick = |random: &mut Self| corpus[random.below(corpus.len())].clone();
        let mut input = pick(self);
        for _ in 0..=self.below(6) {
            let (one, two) = (self.below(input.len() + 1), self.below(input.len() + 1));
            let (from, to) = (one.min(two), one.max(two));
            match self.below(5) {
                0 => {
                    let bit = 1 << self.below(8);
                    input.iter_mut().skip(from).take(1).for_each(|byte| *byte ^= bit);
                }
                1 => drop(input.drain(from..to)),
                2 if input.len() < 64 * 1024 => {
                    let again: Vec<u8> = input.iter().skip(from).take(to - from).copied().collect();
                    input.splice(to..to, again);
                }
                3 => {
                    let word = WORDS.get(self.below(WORDS.len())).unwrap();
                    input.splice(from..from, word.bytes());
                }
                _ => {
                    let other = pick(self);
                    let tail = other.into_iter().skip(from);
                    input.truncate(from);
                    input.extend(tail);
                }
            }
        }
        input
    }
}

/// `LARDER_FUZZ_SECONDS` says for how long each body runs; the check gives it more than the one second of every day.
#[test]
fn no_bytes_break_a_parser() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long to test is no part of larder's configuration"
    )]
    let seconds = std::env::var("LARDER_FUZZ_SECONDS");
    let budget = Duration::from_secs(seconds.map_or(1, |text| text.parse().unwrap()));
    let corpus = corpus();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for fuzz::Body { name, run } in fuzz::BODIES.iter().chain(mirror::BODIES) {
        for input in &corpus {
            run(input);
        }
        let watch = Stopwatch::start();
        while watch.elapsed() < budget {
            let input = random.mutate(&corpus);
            assert!(
                std::panic::catch_unwind(|| run(&input)).is_ok(),
                "{name} breaks on {:?}",
                String::from_utf8_lossy(&input)
            );
        }
    }
}
