//! Tests of apk's claims: what counts, and what must not count, each beside a control.

use std::sync::LazyLock;

use hyper::{HeaderMap, StatusCode};

use super::*;
use crate::claim::Claim;
use crate::clock::Time;
use crate::digest::{Algorithm, Content as _};
use crate::ecosystem::fuzz::Nowhere;
use crate::keyring::Source;
use made::{Key, cut_tar, gzip, member, signed_index, tar};

#[path = "../../../tests/it/world/apk.rs"]
pub(super) mod made;

/// Made once, because generating a key is slow.
static KEYS: LazyLock<[Key; 2]> = LazyLock::new(|| [Key::new("builder"), Key::new("stranger")]);

const HTTPS: &str = "https://example.org/main/x86_64/APKINDEX.tar.gz";
const HTTP: &str = "http://example.org/main/x86_64/APKINDEX.tar.gz";

/// A keyring with the first `many` keys.
fn keyring(many: usize) -> Keyring {
    let mut keys = Keyring::new();
    for key in KEYS.iter().take(many) {
        let source = Source::Operator("test".to_owned());
        assert_eq!(keys.read(key.pem().as_bytes(), &key.name, &source).unwrap(), 1);
    }
    keys
}

#[derive(Default)]
struct Said {
    claims: Vec<Claim>,
    edition: Snapshot,
}

impl ClaimSink for Said {
    fn claim(&mut self, claim: Claim) -> Result<(), crate::claim::TooMany> {
        self.claims.push(claim);
        Ok(())
    }

    fn edition(&mut self, edition: Snapshot) {
        self.edition = edition;
    }
}

fn read(url: &str, body: &[u8], keys: &Keyring) -> Result<(Rank, Said), Malformed> {
    let at = Target::from_url(url).unwrap();
    let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
    let body = body.to_vec();
    let document = Document {
        at: &at,
        base: &at,
        head: &head,
        proven: if url.starts_with("https") { Rank::Origin } else { Rank::None },
        now: Time::from_millis(1_795_000_000_000),
        open: &|| Ok(Box::new(io::Cursor::new(body.clone()))),
        shelf: &Nowhere,
    };
    let mut said = Said::default();
    let standing = Apk.claims(&document, keys, &mut said)?;
    assert_eq!(standing.root, Root::directory_of(&at));
    Ok((standing.rank, said))
}

fn refused(url: &str, body: &[u8]) -> String {
    match read(url, body, &keyring(1)) {
        Err(malformed) => malformed.to_string(),
        Ok((rank, _)) => panic!("{rank:?}"),
    }
}

fn package(name: &str) -> made::Package {
    made::Package::new(name, b"content", &KEYS[0])
}

fn records(sum: &str) -> String {
    package("gear").record(sum, 7) + &package("gear+box").record(sum, 9)
}

#[test]
fn a_signed_index_promises_the_content_of_its_packages() {
    for (sum, algorithm) in [("Q1", Algorithm::Apk2Sha1), ("Q2", Algorithm::Apk2Sha256)] {
        for kind in ["RSA", "RSA256", "RSA512"] {
            let index = signed_index(&records(sum), kind, &KEYS[0]);
            let (rank, said) = read(HTTP, &index, &keyring(1)).unwrap();
            assert_eq!(rank, Rank::Signed);
            assert_eq!(said.edition.signers.len(), 1);
            assert_eq!(said.edition.weak_hash, kind == "RSA");
            let census = said.edition.census.unwrap();
            assert_eq!((census.packages, census.newest), (2, Time::from_millis(9000)));
            let claim = &said.claims[1];
            assert_eq!(claim.target.url(), "http://example.org/main/x86_64/gear+box-1.0-r0.apk");
            assert_eq!(claim.size, Some(package("gear+box").file().len() as u64));
            assert_eq!(claim.digests[0].algorithm(), algorithm);
            assert!(digests(&package("gear+box").file()).unwrap().contains(&claim.digests[0]));
        }
    }
}

#[test]
fn who_is_unknown_or_nobody_has_tls_for_a_voucher_at_most() {
    let strange = signed_index(&records("Q1"), "RSA256", &KEYS[1]);
    for (body, why) in
        [(&strange, "stranger.rsa.pub"), (&made::index(&records("Q1")), "there is no")]
    {
        for (url, expected, claims) in [(HTTPS, Rank::Indexed, 2), (HTTP, Rank::None, 0)] {
            let (rank, said) = read(url, body, &keyring(1)).unwrap();
            assert_eq!((rank, said.claims.len()), (expected, claims));
            assert!(said.edition.signers.is_empty());
            assert!(said.edition.unsigned.unwrap().contains(why));
        }
    }
    // The control: the same file, with a known key.
    assert_eq!(read(HTTP, &strange, &keyring(2)).unwrap().0, Rank::Signed);
}

#[test]
fn several_signatures_need_one_that_holds() {
    let rest = made::index(&records("Q1"));
    let name = |kind: &str, key: &Key| format!(".SIGN.{kind}.{}", key.name);
    let signed = |files: &[(&str, &[u8])]| {
        let index = [gzip(&cut_tar(files)), rest.clone()].concat();
        read(HTTPS, &index, &keyring(1)).map(|(rank, said)| (rank, said.edition.unsigned))
    };
    let (good, bad) = (KEYS[0].sign("RSA256", &rest), KEYS[0].sign("RSA256", b"another"));
    let (known, strange) = (name("RSA256", &KEYS[0]), name("RSA256", &KEYS[1]));
    let both = signed(&[(&strange, &good), (&known, &good)]).unwrap();
    assert_eq!(both.0, Rank::Signed);
    assert!(matches!(signed(&[(&known, &bad)]), Err(Malformed::Forged(_))));
    // A signature by one hash algorithm is not valid as one by another.
    let wrong = name("RSA512", &KEYS[0]);
    assert!(matches!(signed(&[(&wrong, &good)]), Err(Malformed::Forged(_))));
    let dsa = name("DSA", &KEYS[0]);
    let (rank, why) = signed(&[(&dsa, &good)]).unwrap();
    assert_eq!(rank, Rank::Indexed);
    assert!(why.unwrap().contains("DSA"));
}

#[test]
fn any_bit_of_what_is_signed_counts() {
    let rest = made::index(&records("Q1"));
    let front = KEYS[0].member("RSA256", &rest);
    let whole = [front.clone(), rest].concat();
    assert_eq!(read(HTTP, &whole, &keyring(1)).unwrap().0, Rank::Signed);
    for at in (front.len()..whole.len()).step_by(7) {
        let mut tampered = whole.clone();
        tampered[at] ^= 1;
        assert!(matches!(read(HTTPS, &tampered, &keyring(1)), Err(Malformed::Forged(_))), "{at}");
    }
    for end in [whole.len() - 1, whole.len() - 9, front.len() + 20] {
        assert!(read(HTTPS, &whole[..end], &keyring(1)).is_err(), "{end}");
    }
    // A change within the signature member: the member no longer parses, or gives another key name or signature, or
    // expands to the same.
    let expanded = |front: &[u8]| {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(front).read_to_end(&mut text).map(|_| text).ok()
    };
    for at in (0..front.len()).step_by(5) {
        let mut tampered = whole.clone();
        tampered[at] ^= 1;
        let rank = read(HTTP, &tampered, &keyring(1)).map_or(Rank::None, |(rank, _)| rank);
        let same = expanded(&tampered[..front.len()]) == expanded(&front);
        assert!(rank == Rank::None || same, "{at}");
    }
}

#[test]
fn a_key_named_by_a_path_is_refused_aloud() {
    let rest = made::index(&records("Q1"));
    let signature = KEYS[0].sign("RSA256", &rest);
    for path in ["../../etc/apk/keys/builder.rsa.pub", "/etc/apk/keys/builder.rsa.pub", ""] {
        let front = member(&format!(".SIGN.RSA256.{path}"), &signature);
        let why = refused(HTTPS, &[front, rest.clone()].concat());
        assert!(why.contains("by a path"), "{why}");
    }
}

/// Neither a signature nor a digest covers the signature member, and apk refuses a file with anything else in it.
#[test]
fn nothing_but_signatures_stands_in_front() {
    let (rest, package) = (made::index(&records("Q1")), package("gear"));
    let over = [&package.control[..], &package.data].concat();
    // A valid signature over an index and one over a package, each followed in its member by `more`.
    let fronts = |more: &[u8]| {
        [&rest, &package.control].map(|signed| {
            let signature = KEYS[0].sign("RSA256", signed);
            let name = format!(".SIGN.RSA256.{}", KEYS[0].name);
            gzip(&[&cut_tar(&[(&name, &signature)])[..], more].concat())
        })
    };
    let mut link = cut_tar(&[("link", b"")]);
    // The entry's type and the header's checksum. The type was a zero byte, so the checksum changes.
    link[156] = b'2';
    let sum: u32 = link
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    link[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    for (more, why) in [
        (cut_tar(&[(".PKGINFO", b"pkgname = other\n")]), ".PKGINFO"),
        (cut_tar(&[("usr/bin/evil", b"")]), "usr/bin/evil"),
        (cut_tar(&[("APKINDEX", b"P:other\nV:1-r0\n\n")]), "APKINDEX"),
        (link, "not a file"),
        (vec![0; 1024], "end the whole archive"),
    ] {
        let [of_index, of_package] = fronts(&more);
        let said = refused(HTTP, &[of_index, rest.clone()].concat());
        assert!(said.contains(why), "{said}");
        let said = digests(&[of_package, over.clone()].concat()).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    let [of_index, of_package] = fronts(&[]);
    assert_eq!(
        read(HTTP, &[of_index, rest.clone()].concat(), &keyring(1)).unwrap().0,
        Rank::Signed
    );
    assert_eq!(digests(&[of_package, over].concat()).unwrap().len(), 2);
}

#[test]
fn hostile_records_make_no_claims_at_all() {
    let good = records("Q1");
    let index = |records: &str| made::index(records);
    assert_eq!(read(HTTPS, &index(&good), &keyring(0)).unwrap().1.claims.len(), 2);
    // Equal records count once.
    let twice = index(&(good.clone() + &good));
    assert_eq!(read(HTTPS, &twice, &keyring(0)).unwrap().1.claims.len(), 2);
    let other = made::Package::new("gear", b"other content", &KEYS[0]).record("Q1", 7);
    for (hostile, why) in [
        (good.clone() + &other, "two different records of gear-1.0-r0.apk"),
        (good.replace("V:1.0-r0\n", "V:1.0-r0\nV:2.0-r0\n"), "a field twice: V:2.0-r0"),
        (good.replace("V:1.0-r0\n", ""), "without a name or without a version"),
        (good.replace("A:x86_64", "A:aarch64"), "a package of aarch64"),
        (good.replace("S:", "S:-"), "the length of gear-1.0-r0.apk is no number"),
        (good.replace("T:A gear", "no field"), "a line that is no field: no field"),
        (good.replace("P:gear\n", &format!("P:{}\n", "x".repeat(5000))), "over the limit of 4096"),
    ] {
        let told = refused(HTTPS, &index(&hostile));
        assert!(told.contains(why), "{told}");
    }
    for (file, why) in [
        (gzip(&tar(&[("DESCRIPTION", b"x")])), "no APKINDEX"),
        (gzip(&tar(&[("APKINDEX", b""), ("APKINDEX", b"")])), "two files"),
        (b"<html>".to_vec(), "not gzip"),
        (Vec::new(), "no APKINDEX"),
        (gzip(&cut_tar(&[("APKINDEX", good.as_bytes())])[..700]), "ends within a file"),
    ] {
        let told = refused(HTTPS, &file);
        assert!(told.contains(why), "{told}");
    }
    // Names that cannot be file names are skipped; long lines of unused fields are not parsed.
    let odd = good
        .replace("P:gear\n", "P:../../evil\n")
        .replace("T:A", &format!("T:{}", "A".repeat(90_000)));
    let (_, said) = read(HTTPS, &index(&odd), &keyring(0)).unwrap();
    assert_eq!(said.claims.len(), 1);
    let unsummed = good.replace("C:Q1", "C:Q9");
    assert_eq!(read(HTTPS, &index(&unsummed), &keyring(0)).unwrap().1.claims.len(), 0);
}

#[test]
fn a_bomb_is_put_out() {
    let bomb = made::index(&format!("p:{}", "x".repeat(65 << 20)));
    assert!(bomb.len() < 1 << 17);
    let why = refused(HTTPS, &bomb);
    assert!(why.contains("expanded bytes"), "{why}");
    let front = gzip(&vec![0; 3 << 20]);
    assert!(front.len() < 1 << 13);
    let name = format!(".SIGN.RSA.{}", KEYS[0].name);
    let mut tar = cut_tar(&[(&name, b"x")]);
    tar.resize(3 << 20, 0);
    let why = refused(HTTPS, &gzip(&tar));
    assert!(why.contains("expanded bytes of signatures"), "{why}");
}

/// The digests of a package's content, or why it has none.
fn digests(file: &[u8]) -> Result<Vec<crate::digest::Digest>, String> {
    let mut package = Box::new(Package::new());
    file.chunks(100).for_each(|piece| package.update(piece));
    package.finish()
}

#[test]
fn a_package_has_a_content_while_its_parts_belong_together() {
    let package = package("gear");
    let content = digests(&package.file()).unwrap();
    assert_eq!(content.len(), 2);
    // The signature in front may be replaced or missing.
    let other =
        made::Package { signature: KEYS[1].member("RSA256", &package.control), ..package.clone() };
    let none = made::Package { signature: Vec::new(), ..package.clone() };
    for same in [other, none] {
        assert_eq!(digests(&same.file()), Ok(content.clone()));
    }
    let strange = made::Package::new("gear", b"other", &KEYS[0]);
    let mixed = made::Package { data: strange.data.clone(), ..package.clone() };
    let why = digests(&mixed.file()).unwrap_err();
    assert!(why.contains("do not have its datahash"), "{why}");
    let other = made::Package { control: strange.control, data: strange.data, ..package.clone() };
    assert_ne!(digests(&other.file()).unwrap(), content);
    for (file, why) in [
        ([package.file(), gzip(b"more")].concat(), "behind its data"),
        ([package.signature.clone(), package.control.clone()].concat(), "2 gzip members"),
        ([package.file(), b"more".to_vec()].concat(), "not gzip"),
        (package.file()[..package.file().len() - 1].to_vec(), "within a gzip member"),
        (b"ADB.".to_vec(), "not gzip"),
        (Vec::new(), "0 gzip members"),
    ] {
        let told = digests(&file).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
    let control = |info: &str| {
        let control = gzip(&cut_tar(&[(".PKGINFO", info.as_bytes())]));
        let package = made::Package { control, ..package.clone() };
        digests(&package.file()).unwrap_err()
    };
    assert!(control("pkgname = gear\n").contains("no datahash"));
    assert!(control("datahash = 00\ndatahash = 11\n").contains("datahash twice"));
}

#[test]
fn a_package_is_signed_by_itself_under_its_own_name() {
    let package = package("gear");
    let url = &format!("http://example.org/main/x86_64/{}", package.file_name());
    let (rank, said) = read(url, &package.file(), &keyring(1)).unwrap();
    assert_eq!((rank, said.edition.signers.len(), said.edition.weak_hash), (Rank::Signed, 1, true));
    assert!(said.claims.is_empty());
    let (rank, said) = read(url, &package.file(), &keyring(0)).unwrap();
    assert_eq!(rank, Rank::None);
    assert!(said.edition.unsigned.unwrap().contains("builder.rsa.pub"));
    for elsewhere in ["main/x86_64/gear-2.0-r0.apk", "main/aarch64/gear-1.0-r0.apk"] {
        let why = refused(&format!("http://example.org/{elsewhere}"), &package.file());
        assert!(why.contains("gear-1.0-r0.apk of x86_64"), "{why}");
    }
    // A package with two names is refused by its own signature, but an index may still name its content.
    let text = format!(
        "pkgname = evil\npkgname = gear\npkgver = 1.0-r0\narch = x86_64\ndatahash = {}\n",
        made::datahash(&package.data)
    );
    let control = gzip(&cut_tar(&[(".PKGINFO", text.as_bytes())]));
    let signature = KEYS[0].member("RSA", &control);
    let twice = made::Package { signature, control, ..package.clone() };
    assert!(refused(url, &twice.file()).contains("evil and gear-1.0-r0.apk"));
    assert!(digests(&twice.file()).is_ok());
    let forged = made::Package { signature: KEYS[0].member("RSA", b"another"), ..package };
    assert!(matches!(read(url, &forged.file(), &keyring(1)), Err(Malformed::Forged(_))));
}

#[test]
fn a_package_is_judged_by_the_index_beside_it() {
    let wanted = |url: &str| {
        let at = Target::from_url(url).unwrap();
        Apk.wants(&at, &Nowhere).iter().map(Target::url).collect::<Vec<_>>()
    };
    assert_eq!(wanted("https://example.org/main/x86_64/gear-1.0-r0.apk"), [HTTPS]);
    assert_eq!(wanted(HTTPS), Vec::<String>::new());
    let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
    let confirm = |path: &str, start: &[u8]| {
        let at = Target::from_url(&format!("https://example.org/{path}")).unwrap();
        Apk.confirm(&at, &head, start)
    };
    assert!(confirm("x/gears.adb", b"ADBd..."));
    assert!(!confirm("x/gears.adb", b"with Ada.Text_IO;"));
    assert!(!confirm("x/gears.apk", b"ADB."));
}
