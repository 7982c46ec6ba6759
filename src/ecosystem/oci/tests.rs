//! Tests of requests and documents: how they are recognised, and what they claim.

use std::io::Cursor;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::*;
use crate::claim::Claim;
use crate::clock::Time;
use crate::ecosystem::fuzz::Nowhere;

const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn target(path: &str) -> Target {
    Target::from_url(&format!("https://example.org{path}")).unwrap()
}

fn head(fields: &[(&'static str, &str)]) -> Head {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    Head { status: StatusCode::OK, headers }
}

/// How a path is recognised, in words.
fn taken(path: &str) -> String {
    let at = target(path);
    let (sure, resource) = match Oci.recognise(&Shape { target: &at, accept: INDEX }) {
        Recognised::No => return "nothing".to_owned(),
        Recognised::Certain(resource) => ("", resource),
        Recognised::Likely(resource) => ("likely ", resource),
    };
    let kind = match resource.kind {
        Kind::Index => format!("index{}", if Oci.is_tag(&at) { " that points" } else { "" }),
        Kind::Artifact(artifact) => match artifact.named.unwrap() {
            Named { convention: None, digest } => format!("{} file", digest.algorithm().name()),
            Named { convention: Some(root), .. } => format!("customary file below {}", root.path),
        },
    };
    format!("{sure}{kind} of {}", resource.root.path)
}

#[test]
fn requests_are_recognised_under_any_prefix_and_name() {
    let long = HEX.repeat(2);
    for (path, expected) in [
        (format!("/v2/a/blobs/sha256:{HEX}"), "sha256 file of /v2/a/"),
        (format!("/v2/a/b/c.d/e__f/blobs/sha512:{long}"), "sha512 file of /v2/a/b/c.d/e__f/"),
        (
            format!("/artifactory/api/docker/x/v2/a/manifests/sha256:{HEX}"),
            "sha256 file of /artifactory/api/docker/x/v2/a/",
        ),
        (format!("/v2/a/blobs/sha256:{HEX}?ns=example.com"), "sha256 file of /v2/a/"),
        // A segment of a repository's name is not taken for a verb.
        (format!("/v2/a/manifests/b/blobs/sha256:{HEX}"), "sha256 file of /v2/a/manifests/b/"),
        ("/v2/a/manifests/latest".to_owned(), "index that points of /v2/a/"),
        (
            "/v2/library/a/manifests/1.0.0-rc.1_B?ns=example.com".to_owned(),
            "index that points of /v2/library/a/",
        ),
        ("/v2/v2/v2/manifests/v2".to_owned(), "index that points of /v2/v2/v2/"),
        // The digest is another object's, and not that of this response.
        (format!("/v2/a/referrers/sha256:{HEX}?artifactType=x"), "index of /v2/a/"),
        ("/v2/a/tags/list?n=100&last=b".to_owned(), "index of /v2/a/"),
        ("/v2/_catalog".to_owned(), "index of /v2/"),
        // The file storage of registries.
        (format!("/files/blobs/sha256:{HEX}?signature=x"), "sha256 file of /files/blobs/"),
        (
            format!("/x/docker/registry/v2/blobs/sha256/44/{HEX}/data?sig=x"),
            &*format!("customary file below /x/ of /x/docker/registry/v2/blobs/sha256/44/{HEX}/"),
        ),
        // Other ecosystems may recognise these for certain.
        ("/v2/a/manifests/a_1.0_all.deb".to_owned(), "likely index that points of /v2/a/"),
        (
            "/v2/dists/stable/manifests/Release".to_owned(),
            "likely index that points of /v2/dists/stable/",
        ),
        ("/v2/pypi/manifests/json".to_owned(), "likely index that points of /v2/pypi/"),
    ] {
        assert_eq!(taken(&path), expected, "{path}");
    }
    for path in [
        "/v2/".to_owned(),
        "/v2/a/manifests/".to_owned(),
        "/v2//manifests/latest".to_owned(),
        "/v2/A/manifests/latest".to_owned(),
        "/v2/a-/manifests/latest".to_owned(),
        "/v2/a/manifests/.latest".to_owned(),
        "/v2/a/manifests/latest?x=1".to_owned(),
        "/v2/a/manifests/latest?ns=x&y=1".to_owned(),
        "/manifests/latest".to_owned(),
        "/v2/a/blobs/uploads/".to_owned(),
        format!("/v2/a/blobs/uploads/{HEX}"),
        format!("/v2/a/blobs/sha256:{}", HEX.to_uppercase()),
        format!("/v2/a/blobs/sha256:{HEX}0"),
        "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        format!("/v2/a/blobs/sha512:{HEX}"),
        format!("/v2/a/blobs/sha256%3A{HEX}"),
        format!("/x/docker/registry/v2/blobs/sha256/45/{HEX}/data"),
    ] {
        assert_eq!(taken(&path), "nothing", "{path}");
    }
}

#[test]
fn a_tag_points_where_its_header_says() {
    let at = target("/x/v2/a/b/manifests/latest?ns=example.com");
    let digest = format!("sha256:{HEX}");
    let good = [("docker-content-digest", &*digest), ("content-type", INDEX)];
    let (to, named) = Oci.points_at(&at, &head(&good)).unwrap();
    assert_eq!(to, target(&format!("/x/v2/a/b/manifests/{digest}?ns=example.com")));
    assert_eq!(named.to_hex(), HEX);
    let short = digest.trim_end_matches('a');
    for bad in [
        &[("docker-content-digest", short), ("content-type", INDEX)][..],
        &[("docker-content-digest", &*digest), ("content-type", "text/html")],
        // Schema 1: the digest is not that of the bytes.
        &[
            ("docker-content-digest", &*digest),
            ("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ],
        &[("docker-content-digest", &*digest)],
        &[("content-type", INDEX)],
    ] {
        assert_eq!(Oci.points_at(&at, &head(bad)), None, "{bad:?}");
    }
    let elsewhere = target(&format!("/v2/a/manifests/{digest}"));
    assert_eq!(Oci.points_at(&elsewhere, &head(&good)), None, "it points at itself");
}

#[test]
fn who_asks_by_head_asks_the_registry() {
    let blob = target(&format!("/v2/a/blobs/sha256:{HEX}"));
    assert!(Oci.is_existence_check(&Method::HEAD, &blob));
    assert!(!Oci.is_existence_check(&Method::GET, &blob));
    assert!(!Oci.is_existence_check(&Method::HEAD, &target("/v2/a/manifests/latest")));
}

fn claims(at: &Target, base: &Target, kind: &str, text: &str) -> (Rank, Vec<Claim>) {
    let mut claims = Vec::new();
    let document = Document {
        at,
        base,
        head: &head(&[("content-type", kind)]),
        proven: Rank::Origin,
        now: Time::from_millis(0),
        open: &|| Ok(Box::new(Cursor::new(text.as_bytes().to_vec()))),
        shelf: &Nowhere,
    };
    let standing = Oci.claims(&document, &Keyring::new(), &mut claims).unwrap();
    (standing.rank, claims)
}

#[test]
fn a_manifest_claims_its_own_repository_and_layers_that_lie_elsewhere() {
    let at = target("/v2/a/b/manifests/latest?ns=example.com");
    let layer = format!("https://files.example.org/v2/c/blobs/sha256:{HEX}");
    let text = format!(
        r#"{{"config":{{"digest":"sha256:{HEX}","size":2}},"layers":[{{"digest":"sha256:{HEX}","size":2,
        "mediaType":"application/vnd.oci.image.layer.v1.tar+zstd",
        "urls":["{layer}","https://files.example.org/x","http://files.example.org/v2/c/blobs/sha256:{HEX}"]}},
        {{"digest":"blake3:00","size":1}}]}}"#
    );
    let (rank, claims) = claims(&at, &at, IMAGE, &text);
    assert_eq!(rank, Rank::Indexed);
    let own = target(&format!("/v2/a/b/blobs/sha256:{HEX}?ns=example.com")).url();
    let named: Vec<(String, &str)> =
        claims.iter().map(|claim| (claim.target.url(), &*claim.topic.0)).collect();
    assert_eq!(named, [(own.clone(), "oci:a/b"), (own, "oci:a/b"), (layer, "oci:c")]);
    assert!(claims.iter().all(|claim| claim.size == Some(2)));
}

#[test]
fn over_plain_http_and_of_lists_nothing_is_claimed() {
    let text = format!(r#"{{"manifests":[{{"digest":"sha256:{HEX}","size":2}}]}}"#);
    let secure = target("/v2/a/manifests/latest");
    assert_eq!(claims(&secure, &secure, INDEX, &text).1.len(), 1, "the control");
    let plain = Target::from_url("http://example.org/v2/a/manifests/latest").unwrap();
    for (at, base) in [(&plain, &plain), (&secure, &plain)] {
        assert_eq!(claims(at, base, INDEX, &text), (Rank::None, Vec::new()));
    }
    let list = target("/v2/a/tags/list");
    assert_eq!(claims(&list, &list, "application/json", &text), (Rank::None, Vec::new()));
}

#[test]
fn a_registry_is_greeted_where_its_repositories_lie() {
    for prefix in ["", "/artifactory/api/docker/x"] {
        let greeted = Oci.version_check(&target(&format!("{prefix}/v2/"))).unwrap();
        for path in ["a/manifests/latest", "a/b/tags/list"] {
            let at = target(&format!("{prefix}/v2/{path}"));
            assert_eq!(Oci.service(&at), Some(greeted.service.clone()), "{at}");
        }
    }
    for path in ["/v2", "/v2/a", "/v1/", "/xv2/", "/v2/_catalog"] {
        assert!(Oci.version_check(&target(path)).is_none(), "{path}");
    }
}
