//! What reading a distribution's index costs, and what finding a promise in it costs afterwards.
//!
//! ```text
//! cargo bench --bench claims                       a made-up index of the size of the largest in use
//! cargo bench --bench claims -- Packages.xz        a real one
//! ```
//!
//! Times are compared within one run: larder reads, sorts and writes the claims of an index while `xz -dc FILE | sha256sum`
//! does nothing but expand and hash the same file. Each reading is a process of its own, so that its memory can be told
//! from everybody else's. The figures come with their limits, and a figure over its limit fails the run.
#![expect(clippy::print_stdout, reason = "a benchmark's results are what it prints")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use larder::claim::{Claim, ClaimSink, TooMany, Topic};
use larder::clock::{Clock, Stopwatch};
use larder::config::{Config, Live};
use larder::digest::BlobId;
use larder::ecosystem::{self, Document, Recognition, Shape, Shelf};
use larder::entry::Head;
use larder::keyring::Keyring;
use larder::proof::Rank;
use larder::store::Store;
use larder::target::{Origin, Root, Target};
use sha2::{Digest as _, Sha256};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Stanzas of the made-up index: as many as Debian 12's main has for one architecture.
const STANZAS: u64 = 63_440;

/// Indexes that name the same file at the same time: suites, components, architectures of one archive.
const INDEXES: usize = 20;

/// Readings of each kind; the quickest of them counts, because everything else is what the machine did besides.
const ROUNDS: usize = 5;

const READING_RATIO: f64 = 1.5;
const READING_MEMORY: u64 = 32 << 20;
const SEGMENT_BYTES: u64 = 8 << 20;
const LOOKUP: Duration = Duration::from_micros(20);

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [word, index, data] if word == "read" => {
            return read_once(Path::new(index), Path::new(data));
        }
        // `cargo test --all-targets` runs benchmarks as tests: there is nothing to test here.
        words if !words.iter().any(|word| word == "--bench") => return Ok(()),
        _ => {}
    }
    let place = tempfile::tempdir()?;
    let given = arguments.iter().find(|word| !word.starts_with("--"));
    let index = match given {
        Some(given) => PathBuf::from(given),
        None => made_up(place.path())?,
    };
    let expanded = expand_and_hash(&index)?.1;
    println!("{}: {} bytes, {expanded} expanded", index.display(), fs::metadata(&index)?.len());
    let mut kept = reading(&index, place.path(), given.is_none())?;
    kept &= looking_up(&index, place.path())?;
    if kept { Ok(()) } else { Err("a figure is over its limit".into()) }
}

/// A figure, its limit, and whether it keeps to it.
fn figure(what: &str, value: f64, limit: f64, unit: &str) -> bool {
    let kept = value <= limit;
    println!(
        "{what:<44} {value:>10.2} {unit:<6} limit {limit:.2}{}",
        if kept { "" } else { "   OVER" }
    );
    kept
}

// --- reading --------------------------------------------------------------------------------------------------------

/// Reads the index in processes of their own, in turns with the command that it is compared with.
fn reading(index: &Path, place: &Path, made_up: bool) -> Outcome<bool> {
    let (mut ours, mut theirs) = (Duration::MAX, Duration::MAX);
    let (mut memory, mut segment, mut claims) = (0, 0, 0_u64);
    for round in 0..ROUNDS {
        theirs = theirs.min(expand_and_hash(index)?.0);
        let output = Command::new(std::env::current_exe()?)
            .arg("read")
            .args([index, &place.join(format!("read-{round}"))])
            .stderr(Stdio::inherit())
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let numbers: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [nanoseconds, peak, bytes, count] = numbers[..] else {
            return Err(format!("a reading said {text:?}").into());
        };
        ours = ours.min(Duration::from_nanos(nanoseconds));
        (memory, segment, claims) = (memory.max(peak), bytes, count);
    }
    println!("{claims} claims; xz -dc | sha256sum {theirs:.2?}, larder {ours:.2?}");
    // The control: what was read is the whole index and not the beginning of it.
    let mut kept = if made_up { claims == STANZAS } else { claims > 0 };
    kept &= figure(
        "reading / (xz -dc | sha256sum)",
        ours.as_secs_f64() / theirs.as_secs_f64(),
        READING_RATIO,
        "x",
    );
    kept &= figure("memory for a reading", mebibytes(memory), mebibytes(READING_MEMORY), "MiB");
    kept &= figure("a segment on disk", mebibytes(segment), mebibytes(SEGMENT_BYTES), "MiB");
    Ok(kept)
}

/// One reading: prints nanoseconds, additional bytes of memory at the peak, bytes of the segment, claims.
fn read_once(index: &Path, data: &Path) -> Outcome<()> {
    let store = store(data)?;
    let before = status("VmRSS:")?;
    let began = Stopwatch::start();
    read(&store, index, &target(0)?, None)?;
    let took = began.elapsed();
    let peak = status("VmHWM:")?.saturating_sub(before);
    let set = store.indexes().pop().ok_or("no claims")?;
    println!("{} {peak} {} {}", took.as_nanos(), set.bytes, set.claims);
    Ok(())
}

/// Reads an index's claims and makes them current, as the pipeline does with one that a signature names; `moved` into a pool
/// of their own.
fn read(store: &Arc<Store>, index: &Path, at: &Target, moved: Option<usize>) -> Outcome<()> {
    let found = recognise(at)?;
    let head = Head { status: StatusCode::OK, headers: hyper::HeaderMap::new() };
    let open = || -> io::Result<Box<dyn Read>> { Ok(Box::new(File::open(index)?)) };
    let document = Document {
        at,
        base: at,
        head: &head,
        proven: Rank::Signed,
        now: Clock::system().now(),
        open: &open,
        shelf: &Nothing,
    };
    // Which document it is decides nothing here but that the twenty differ.
    let document_name = BlobId::new(Sha256::digest(at.to_string()).into());
    let mut batch = store.begin_claims(at, document_name)?;
    let keys = Keyring::new();
    let standing = match moved {
        Some(number) => {
            let mut moved = Moved { to: &mut batch, number };
            found.ecosystem.claims(&document, &keys, &mut moved)?
        }
        None => found.ecosystem.claims(&document, &keys, &mut batch)?,
    };
    batch.publish(&standing, Clock::system().now())?;
    Ok(())
}

/// What the index is compared with: `xz -dc FILE | sha256sum`; says how long it took and how many bytes came.
fn expand_and_hash(index: &Path) -> Outcome<(Duration, u64)> {
    let began = Stopwatch::start();
    let script = "xz -dc -- \"$1\" | sha256sum >/dev/null";
    if !Command::new("sh").args(["-c", script, "sh"]).arg(index).status()?.success() {
        return Err("xz or sha256sum failed".into());
    }
    let took = began.elapsed();
    let list = Command::new("xz").args(["--robot", "--list", "--"]).arg(index).output()?;
    let text = String::from_utf8(list.stdout)?;
    let totals = text.lines().find(|line| line.starts_with("totals")).unwrap_or_default();
    Ok((took, totals.split('\t').nth(4).and_then(|bytes| bytes.parse().ok()).unwrap_or(0)))
}

// --- looking up -----------------------------------------------------------------------------------------------------

/// Look-ups of files that one of twenty indexes names, that none names, and that all name.
fn looking_up(index: &Path, place: &Path) -> Outcome<bool> {
    let (apart, alike) = (store(&place.join("apart"))?, store(&place.join("alike"))?);
    for number in 0..INDEXES {
        read(&apart, index, &target(number)?, Some(number))?;
        read(&alike, index, &target(number)?, None)?;
    }
    let names = names(index)?;
    let count = names.len();
    let at = |name: String| {
        let target = Target::from_url(&format!("https://example.org/debian/{name}"));
        target.ok_or_else(|| "no target".into())
    };
    let shared: Vec<Target> = names.iter().cloned().map(at).collect::<Outcome<_>>()?;
    let own = (0..INDEXES).cycle().zip(&names).map(|(number, name)| at(of_suite(name, number)));
    let own: Vec<Target> = own.collect::<Outcome<_>>()?;
    let strangers = (0..count).map(|n| at(format!("pool/none/none_{n}_amd64.deb")));
    let strangers: Vec<Target> = strangers.collect::<Outcome<_>>()?;
    let (by_one, one) = average(&apart, &own)?;
    let (by_nobody, none) = average(&apart, &strangers)?;
    let (by_all, all) = average(&alike, &shared)?;
    println!(
        "{count} look-ups of each kind, {INDEXES} indexes current; {one}, {none} and {all} promises found"
    );
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("{:<44} {:>10.2} us", "a look-up, named by all of them", micros(by_all));
    // The control: every look-up found what is there, and no more.
    let mut kept = one == count && none == 0 && all == count * INDEXES;
    kept &= figure("a look-up, named by one of them", micros(by_one), micros(LOOKUP), "us");
    kept &= figure("a look-up, named by none of them", micros(by_nobody), micros(LOOKUP), "us");
    Ok(kept)
}

/// The file of that name in a pool of one suite's own.
fn of_suite(name: &str, number: usize) -> String {
    name.replacen("pool/", &format!("pool/suite{number}/"), 1)
}

/// Moves what an index names into a pool of one suite's own: twenty indexes out of one.
struct Moved<'a> {
    to: &'a mut dyn ClaimSink,
    number: usize,
}

impl ClaimSink for Moved<'_> {
    fn claim(&mut self, mut claim: Claim) -> Result<(), TooMany> {
        let path = of_suite(claim.target.path(), self.number);
        claim.target = Target::new(claim.target.origin().clone(), &path).map_err(|_| TooMany)?;
        self.to.claim(claim)
    }
}

/// The mean time of a look-up in the quickest of some rounds, after one that warms what is kept in memory; and how many
/// promises were found.
fn average(store: &Store, files: &[Target]) -> Outcome<(Duration, usize)> {
    let now = Clock::system().now();
    let topics = topics(files.first().ok_or("no files")?)?;
    let round = || files.iter().map(|file| store.promises(file, &topics, now).len()).sum::<usize>();
    let found = round();
    let mut quickest = Duration::MAX;
    for _ in 0..ROUNDS {
        let watch = Stopwatch::start();
        if round() != found {
            return Err("two rounds found different promises".into());
        }
        quickest = quickest.min(watch.elapsed());
    }
    Ok((quickest / u32::try_from(files.len())?, found))
}

fn topics(file: &Target) -> Outcome<Vec<Topic>> {
    match recognise(file)?.resource.kind {
        ecosystem::Kind::Artifact(artifact) => Ok(artifact.topics),
        ecosystem::Kind::Index => Err("a package is taken for an index".into()),
    }
}

/// Names of files in the index: some thousand, spread over the whole of it.
fn names(index: &Path) -> Outcome<Vec<String>> {
    let output = Command::new("xz").args(["-dc", "--"]).arg(index).output()?;
    let text = String::from_utf8(output.stdout)?;
    let all = text.lines().filter_map(|line| line.strip_prefix("Filename: "));
    Ok(all.step_by(13).map(str::to_owned).collect())
}

// --- the world ------------------------------------------------------------------------------------------------------

struct Nothing;

impl Shelf for Nothing {
    fn open(&self, _: &Target) -> Option<Box<dyn Read + '_>> {
        None
    }
    fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

fn store(data: &Path) -> Outcome<Arc<Store>> {
    let config = Config { data: data.to_owned(), ..Config::default() };
    Ok(Store::open(Live::new(config), Clock::system())?)
}

/// The index of one of the archive's suites.
fn target(number: usize) -> Outcome<Target> {
    let url = format!("https://example.org/debian/dists/suite{number}/main/binary-amd64/Packages");
    Ok(Target::from_url(&url).ok_or("no target")?)
}

fn recognise(at: &Target) -> Outcome<Recognition> {
    Ok(ecosystem::recognise(&Shape { target: at, accept: "" }).ok_or("not recognised")?)
}

/// A line of /proc/self/status, in bytes.
fn status(name: &str) -> Outcome<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn mebibytes(bytes: u64) -> f64 {
    // Whole KiB, which is how the system counts, too.
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// An index as archives have them: stanzas of 800 bytes, digests that do not compress, descriptions that do.
fn made_up(place: &Path) -> Outcome<PathBuf> {
    let packed = place.join("Packages.xz");
    let script = "exec xz -T0 -6 >\"$1\"";
    let mut xz =
        Command::new("sh").args(["-c", script, "sh"]).arg(&packed).stdin(Stdio::piped()).spawn()?;
    let mut out = BufWriter::new(xz.stdin.take().ok_or("no pipe")?);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for number in 0..STANZAS {
        stanza(&mut out, number, &mut chance)?;
    }
    out.flush()?;
    drop(out);
    if xz.wait()?.success() { Ok(packed) } else { Err("xz failed".into()) }
}

fn stanza(out: &mut dyn Write, number: u64, chance: &mut Chance) -> io::Result<()> {
    let name = format!("{}-{}-{number}", chance.word(), chance.word());
    let version = format!("1.{number}-1+deb12u1");
    writeln!(out, "Package: {name}\nVersion: {version}\nInstalled-Size: {}", number * 3)?;
    writeln!(out, "Maintainer: {}\nArchitecture: amd64", chance.prose(4))?;
    writeln!(out, "Depends: {}\nDescription: {}", chance.prose(12), chance.prose(8))?;
    writeln!(out, "Homepage: https://example.org/{name}\nDescription-md5: {}", chance.hex(2))?;
    writeln!(out, "Tag: {}\nSection: libs\nPriority: optional", chance.prose(16))?;
    writeln!(out, "Filename: pool/main/{number}/{name}/{name}_{version}_amd64.deb")?;
    writeln!(out, "Size: {}\nMD5sum: {}", number * 1000 + 1, chance.hex(2))?;
    writeln!(out, "SHA256: {}\n", chance.hex(4))
}

/// The same numbers in each run (xorshift, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn word(&mut self) -> &'static str {
        const WORDS: &str = "library for the of and tools to a with support development files data common runtime \
                             shared documentation python module plugin interface network image server";
        let at = self.next() % 24;
        WORDS.split(' ').nth(usize::try_from(at).unwrap_or(0)).unwrap_or("a")
    }

    fn prose(&mut self, words: usize) -> String {
        (0..words).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }

    fn hex(&mut self, words: usize) -> String {
        let digits: Vec<String> = (0..words).map(|_| format!("{:016x}", self.next())).collect();
        digits.concat()
    }
}
