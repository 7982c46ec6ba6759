//! Small package repositories: URLs that contain digests, and indexes that promise digests.

use std::fmt::Write as _;

use larder::digest::{Algorithm, Algorithms, Hashing};

use super::{Origin, Page};

/// The digest of `bytes` in hexadecimal.
pub(crate) fn hex(algorithm: Algorithm, bytes: &[u8]) -> String {
    let mut hashing = Hashing::new(Algorithms::NONE.with(algorithm));
    hashing.update(bytes);
    hashing.finish().get(algorithm).unwrap().to_hex()
}

/// The path of an apt index that contains its digest. The protocol binds the server to such a name.
pub(crate) fn by_hash(bytes: &[u8]) -> String {
    let sha256 = hex(Algorithm::Sha256, bytes);
    format!("/debian/dists/stable/main/binary-amd64/by-hash/SHA256/{sha256}")
}

/// The path of a Python file that contains its digest. This is a convention, which larder believes after three matches.
pub(crate) fn wheel_path(name: &str, bytes: &[u8]) -> String {
    let blake2 = hex(Algorithm::Blake2b256, bytes);
    let (one, rest) = blake2.split_at(2);
    let (two, rest) = rest.split_at(2);
    format!("/packages/{one}/{two}/{rest}/{name}-1.0-py3-none-any.whl")
}

/// The path of a Python file without a digest.
pub(crate) fn plain_wheel(name: &str) -> String {
    format!("/files/{name}-1.0-py3-none-any.whl")
}

/// A simple index (PEP 503) of links and the bytes they promise.
pub(crate) fn simple(files: &[(&str, &[u8])]) -> Page {
    let mut html = String::from("<!DOCTYPE html><html><head><title>Links</title></head><body>\n");
    for (href, bytes) in files {
        let sha256 = hex(Algorithm::Sha256, bytes);
        let name = href.rsplit('/').next().unwrap();
        writeln!(html, "<a href=\"{href}#sha256={sha256}\">{name}</a><br/>").unwrap();
    }
    html.push_str("</body></html>\n");
    Page::new(html).header("content-type", "text/html; charset=utf-8")
}

/// Puts the index of project `name` below `root` (which ends with a slash); returns its URL.
pub(crate) fn put_simple(
    origin: &Origin,
    root: &str,
    name: &str,
    files: &[(&str, &[u8])],
) -> String {
    origin.put(&format!("{root}simple/{name}/"), simple(files))
}

/// `bytes` with one bit flipped, in the middle.
pub(crate) fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}
