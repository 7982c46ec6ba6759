//! Tests of what apt's documents claim.

use hyper::{HeaderMap, StatusCode};

use super::*;

#[test]
fn a_flat_archive_is_confirmed_by_its_release() {
    let confirm = |path: &str, status, start: &str| {
        let at = Target::from_url(&format!("https://example.org/flat/{path}")).unwrap();
        let head = Head { status, headers: HeaderMap::new() };
        Apt.confirm(&at, &head, start.as_bytes())
    };
    let signed = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: x\n";
    let release = "Origin: x\nDate: Fri, 20 Nov 2026 12:00:00 UTC\nSHA256:\n 00 1 Packages\n";
    assert!(confirm("InRelease", StatusCode::OK, signed));
    assert!(confirm("Release", StatusCode::OK, release));
    for (path, status, start) in [
        ("InRelease", StatusCode::NOT_FOUND, signed),
        ("InRelease", StatusCode::OK, release),
        ("InRelease", StatusCode::OK, "<html>"),
        ("Release", StatusCode::OK, "<html>\nDate: x\nSHA256:\n"),
        ("Release", StatusCode::OK, "SHA256:\n"),
        ("Release", StatusCode::OK, "Date: x\n"),
        ("Packages", StatusCode::OK, release),
    ] {
        assert!(!confirm(path, status, start), "{path} {start}");
    }
}

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Stored documents, by URL.
#[derive(Default)]
struct Stored(Vec<(String, Vec<u8>)>);

impl Shelf for Stored {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        let (_, body) = self.0.iter().find(|(url, _)| *url == at.url())?;
        Some(Box::new(io::Cursor::new(body.clone())))
    }

    fn claiming_roots(&self, _: &crate::target::Origin) -> Vec<Root> {
        Vec::new()
    }
}

/// Calls `read` with a document that has no sidecars.
fn reading<T>(url: &str, proven: Rank, body: &str, read: impl Fn(&Document<'_>) -> T) -> T {
    let at = Target::from_url(url).unwrap();
    let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
    let body = body.as_bytes().to_vec();
    read(&Document {
        at: &at,
        base: &at,
        head: &head,
        proven,
        now: crate::clock::Time::from_millis(1_795_000_000_000),
        open: &|| Ok(Box::new(io::Cursor::new(body.clone()))),
        shelf: &Stored::default(),
    })
}

/// The rank and the claims of a document without a signature of its own.
fn claims(url: &str, proven: Rank, body: &str) -> Result<(Rank, Vec<String>), Malformed> {
    reading(url, proven, body, |document| {
        let mut out: Vec<Claim> = Vec::new();
        let standing = Apt.claims(document, &Keyring::new(), &mut out)?;
        let urls = out.iter().map(|claim| claim.target.url()).collect();
        Ok((standing.rank, urls))
    })
}

fn release(suite: &str, path: &str) -> String {
    format!(
        "Suite: {suite}\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n {HEX} 5 {path}\n"
    )
}

#[test]
fn a_release_speaks_for_the_indexes_of_its_own_suite() {
    let url = "https://example.org/debian/dists/stable/Release";
    let (rank, urls) = claims(url, Rank::Origin, &release("stable", "main/Packages.xz")).unwrap();
    assert_eq!(rank, Rank::Indexed);
    let suite = "https://example.org/debian/dists/stable/main";
    assert_eq!(urls, [format!("{suite}/by-hash/SHA256/{HEX}"), format!("{suite}/Packages.xz")]);
    assert!(claims(url, Rank::Origin, &release("other", "main/Packages.xz")).is_err());
    for path in ["../../other/Packages", "/etc/passwd"] {
        let (_, urls) = claims(url, Rank::Origin, &release("stable", path)).unwrap();
        assert_eq!(urls, Vec::<String>::new(), "{path}");
    }
}

#[test]
fn nothing_that_came_over_plain_http_claims_without_a_signature() {
    let stanza = format!("Package: a\nFilename: pool/a_1.deb\nSHA256: {HEX}\n\n");
    let plain = "http://example.org/debian/dists/stable";
    let packages = format!("{plain}/main/Packages");
    for (url, body) in
        [(&packages, &stanza), (&format!("{plain}/Release"), &release("stable", "main/Packages"))]
    {
        for proven in [Rank::None, Rank::Origin, Rank::Indexed] {
            assert_eq!(claims(url, proven, body).unwrap(), (Rank::None, vec![]));
        }
    }
    // Other indexes are fetched by-hash as well; they make no claims, and that is not an error.
    let nameless = format!("{plain}/main/dep11/by-hash/SHA256/{HEX}");
    let yaml = "---\nFile: DEP-11\n";
    assert_eq!(claims(&nameless, Rank::Signed, yaml).unwrap().0, Rank::None);
    assert!(claims(&packages, Rank::Signed, yaml).is_err());
    // The control: a signature names the digest of the document.
    let (rank, urls) = claims(&packages, Rank::Signed, &stanza).unwrap();
    assert_eq!((rank, urls.len()), (Rank::Signed, 1));
    let tls = packages.replace("http:", "https:");
    assert_eq!(claims(&tls, Rank::Origin, &stanza).unwrap().0, Rank::Indexed);
}

#[test]
fn a_flat_archive_names_files_from_each_directory_above_it() {
    let stanza = format!("Package: a\nFilename: ./a_1.deb\nSHA256: {HEX}\n\n");
    let (_, urls) = claims("https://example.org/x/flat/Packages", Rank::Origin, &stanza).unwrap();
    assert_eq!(
        urls,
        [
            "https://example.org/x/flat/a_1.deb",
            "https://example.org/x/a_1.deb",
            "https://example.org/a_1.deb"
        ]
    );
}

#[test]
fn what_a_file_under_its_digest_is_its_content_says() {
    let packages = format!("Package: a\nFilename: a_1.deb\nSHA256: {HEX}\n\n");
    let sources = format!("Package: a\nDirectory: .\nChecksums-Sha256:\n {HEX} 1 a_1.dsc\n\n");
    let nameless = format!("https://example.org/flat/by-hash/SHA256/{HEX}");
    let named = format!("https://example.org/debian/dists/s/main/source/by-hash/SHA256/{HEX}");
    let flat = |file| Some(format!("https://example.org/flat/{file}"));
    let of_source = Some("https://example.org/debian/dists/s/main/source/Sources".to_owned());
    for (url, proven, body, index) in [
        (&nameless, Rank::Signed, &*packages, flat("Packages")),
        (&nameless, Rank::Indexed, &sources, flat("Sources")),
        (&nameless, Rank::Signed, "Package: a\nDescription-en: b\n\n", None),
        (&nameless, Rank::Signed, "bin/a  devel/a\n", None),
        (&nameless, Rank::Signed, "", None),
        // Nothing vouches for the document, so it is not read.
        (&nameless.replace("https", "http"), Rank::None, &packages, None),
        // If the directory determines the index, the content does not matter.
        (&named, Rank::Signed, &packages, of_source),
    ] {
        let found = reading(url, proven, body, |doc| {
            Apt.which(doc, Apt.indexes_of(doc.at)).unwrap().map(|index| index.url())
        });
        assert_eq!(found, index, "{url} {body}");
    }
    let bomb = format!("Package: {}", "x".repeat(5 << 20));
    let over = |doc: &Document<'_>| Apt.which(doc, Apt.indexes_of(doc.at)).is_err();
    assert!(reading(&nameless, Rank::Signed, &bomb, over));
}

#[test]
fn all_forms_of_an_index_are_one_to_its_claims() {
    let index = |path: &str| {
        let at = Target::from_url(&format!("https://example.org/d/dists/s/main/{path}")).unwrap();
        let indexes = Apt.indexes_of(&at);
        indexes.iter().map(|index| index.path().to_owned()).collect::<Vec<_>>()
    };
    for (path, of) in [
        ("binary-amd64/Packages.xz", &["binary-amd64/Packages"][..]),
        (&*format!("binary-amd64/by-hash/SHA256/{HEX}"), &["binary-amd64/Packages"]),
        (&*format!("source/by-hash/SHA256/{HEX}"), &["source/Sources"]),
        (&*format!("source/Sources.diff/by-hash/SHA256/{HEX}"), &["source/Sources.diff/Index"]),
        ("source/Sources.gz", &["source/Sources"]),
        ("binary-amd64/Packages", &[]),
        ("i18n/Translation-en.xz", &[]),
        (&*format!("by-hash/SHA256/{HEX}"), &["Packages", "Sources"]),
    ] {
        let of: Vec<String> = of.iter().map(|of| format!("/d/dists/s/main/{of}")).collect();
        assert_eq!(index(path), of, "{path}");
    }
    let at = Target::from_url("https://example.org/d/dists/a/b/main/binary-all/Packages").unwrap();
    let urls: Vec<String> = parents(&at).iter().map(|at| at.path().to_owned()).collect();
    assert!(urls.contains(&"/d/dists/a/b/InRelease".to_owned()));
    assert!(urls.iter().all(|path| path.starts_with("/d/dists/a/")), "{urls:?}");
}
