//! Fuzz targets, one for each parser of untrusted bytes: plain functions that any driver can run. They panic if a
//! property of the parser is violated. `tests/it` runs each for some seconds, `tests/fuzz` for as long as wanted.

use std::io::{self, Read};

use hyper::{HeaderMap, StatusCode};

pub use super::apk::fuzz::{apk_index, apk_members, apk_package, apk_tar};
pub use super::apt::fuzz::{apt_index, apt_release};
pub use super::cargo::fuzz::{cargo_index, cargo_names};
pub use super::npm::fuzz::{npm_document, npm_names};
pub use super::oci::fuzz::{oci_manifest, oci_names};
pub use super::pypi::fuzz::{pypi_html, pypi_json, pypi_names};
use super::{ALL, Document, Recognised, Shape, Shelf};
use crate::clock::Time;
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Origin, Root, Target};

/// A fuzz target and its name.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// The function's name.
    pub name: &'static str,
    /// The target; takes any bytes.
    pub run: fn(&[u8]),
}

/// Every fuzz target.
pub const BODIES: &[Body] = &[
    body("apk_index", apk_index),
    body("apk_members", apk_members),
    body("apk_package", apk_package),
    body("apk_tar", apk_tar),
    body("apt_index", apt_index),
    body("apt_release", apt_release),
    body("cargo_index", cargo_index),
    body("cargo_names", cargo_names),
    body("documents", documents),
    body("npm_document", npm_document),
    body("npm_names", npm_names),
    body("oci_manifest", oci_manifest),
    body("oci_names", oci_names),
    body("pypi_html", pypi_html),
    body("pypi_json", pypi_json),
    body("pypi_names", pypi_names),
    body("requests", requests),
];

const fn body(name: &'static str, run: fn(&[u8])) -> Body {
    Body { name, run }
}

/// Parses any bytes as a request: a path and query, a line feed, an `Accept` header. At most one ecosystem recognises
/// it for certain.
///
/// # Panics
///
/// If two ecosystems do.
pub fn requests(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (path, accept) = text.split_once('\n').unwrap_or((&text, ""));
    let Some(target) = Target::from_url(&format!("https://example.org{path}")) else {
        return;
    };
    let request = Shape { target: &target, accept };
    let certain = ALL
        .iter()
        .filter(|ecosystem| matches!(ecosystem.recognise(&request), Recognised::Certain(_)))
        .count();
    assert!(certain < 2, "{target} is certain for two ecosystems");
}

/// Parses any bytes as a response: a path, a line feed, a body. Every ecosystem reads it.
///
/// # Panics
///
/// If an ecosystem makes claims with a rank below [`Rank::Indexed`].
pub fn documents(bytes: &[u8]) {
    let (path, body) = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => bytes.split_at(end),
        None => (&b"/simple/widget/"[..], bytes),
    };
    let path = String::from_utf8_lossy(path);
    let Some(at) = Target::from_url(&format!("https://example.org{path}")) else {
        return;
    };
    let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
    let owned = body.to_vec();
    for ecosystem in ALL {
        let _confirmed = ecosystem.confirm(&at, &head, body);
        let document = Document {
            at: &at,
            base: &at,
            head: &head,
            proven: Rank::Origin,
            now: Time::from_millis(0),
            open: &|| Ok(Box::new(io::Cursor::new(owned.clone()))),
            shelf: &Everywhere,
        };
        let mut claims = Vec::new();
        if let Ok(standing) = ecosystem.claims(&document, &Keyring::new(), &mut claims) {
            assert!(
                standing.rank >= Rank::Indexed || claims.is_empty(),
                "claims without a standing"
            );
        }
    }
}

/// An empty shelf.
#[cfg(test)]
pub(super) struct Nowhere;

#[cfg(test)]
impl Shelf for Nowhere {
    fn open(&self, _: &Target) -> Option<Box<dyn Read + '_>> {
        None
    }

    fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

/// A shelf with the configuration of a cargo registry at every URL.
struct Everywhere;

impl Shelf for Everywhere {
    fn open(&self, _: &Target) -> Option<Box<dyn Read + '_>> {
        Some(Box::new(&br#"{"dl":"https://files.example.org/crates"}"#[..]))
    }

    fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
        Vec::new()
    }
}
