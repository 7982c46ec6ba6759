//! Bytes as they arrived: complete, spooled and hashed, and not yet believed.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName};

use crate::clock::Time;
use crate::digest::Digests;

/// Status and header fields of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The fields, without those that belong to one connection.
    pub headers: HeaderMap,
}

/// The fields that speak of a representation and of how long it may be kept (RFC 9110 §8, RFC 9111 §5, RFC 9530), or that
/// clients of the ecosystems look for.
const OF_A_REPRESENTATION: [&str; 26] = [
    "accept-ranges",
    "age",
    "cache-control",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-security-policy",
    "content-type",
    "date",
    "digest",
    "docker-content-digest",
    "docker-distribution-api-version",
    "etag",
    "expires",
    "last-modified",
    "pragma",
    "repr-digest",
    "vary",
    "warning",
    "x-checksum-md5",
    "x-checksum-sha1",
    "x-checksum-sha256",
    "x-content-type-options",
];

impl Head {
    /// Without any field that may speak of who asked: names, quotas, request numbers, links with a token. For what several
    /// credentials may be given: each has a right to the representation, and to nothing that was said to another.
    pub fn keep_the_representations(&mut self) {
        let mut kept = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            if OF_A_REPRESENTATION.contains(&name.as_str()) {
                kept.append(name, value.clone());
            }
        }
        self.headers = kept;
    }

    /// Roughly the memory that it takes, in bytes: an origin may fill its fields with what it likes.
    pub fn weight(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
    }

    /// The text of a header; `None` if it is absent or not ASCII.
    pub fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A validator that says two bodies are equal byte for byte: a strong `ETag` (RFC 9110 §8.8.3). A date is not one
    /// here: two publications in one second share it.
    pub fn strong_validator(&self) -> Option<&str> {
        self.text(&hyper::header::ETAG).filter(|etag| etag.starts_with('"') && etag.len() > 2)
    }
}

/// A complete body in the spool. Its file is removed when this is dropped, unless the store renamed it away.
pub struct Spooled {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// The digests that were computed while it came.
    pub digests: Digests,
    /// The CRC-32 of each chunk, by which the store notices damage.
    pub chunks: Vec<u32>,
    /// The room it takes under the store's cap, given back on drop.
    pub room: Box<dyn Any + Send + Sync>,
}

impl Spooled {
    /// Where the spool file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for Spooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spooled")
            .field("path", &self.path)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // After a commit the name is gone already; after a crash, start-up removes it.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// A complete answer: the end of the message was seen and its length agreed. Only `verify` turns it into something
/// that may be kept.
#[derive(Debug)]
pub struct Received {
    /// The body.
    pub body: Spooled,
    /// The answer's status and header fields.
    pub head: Head,
    /// Whether a hop was plain http: a chain is worth its weakest hop.
    pub plain: bool,
    /// The URL that answered, if redirects were followed; without secrets.
    pub answered_by: Option<String>,
    /// Whether the transfer broke and was resumed: then a mismatch is fetched again before it is a rejection.
    pub resumed: bool,
    /// When the request was sent.
    pub requested_at: Time,
    /// When the last byte came.
    pub received_at: Time,
}
