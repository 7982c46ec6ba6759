//! Response bodies as they arrived: complete, spooled and hashed, but not verified.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName};

use crate::clock::Time;
use crate::digest::Digests;

/// Status and header fields of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The fields, without the hop-by-hop ones.
    pub headers: HeaderMap,
}

/// The fields that describe a representation and how long it may be cached (RFC 9110 §8, RFC 9111 §5, RFC 9530), and
/// fields that the ecosystems' clients look for.
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
    /// Removes every field that may tell something about the requesting client: names, quotas, request numbers, links
    /// with a token. Used for responses that larder serves to several credentials: each has a right to the
    /// representation, but not to what the origin told another credential.
    pub fn keep_the_representations(&mut self) {
        let mut kept = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            if OF_A_REPRESENTATION.contains(&name.as_str()) {
                kept.append(name, value.clone());
            }
        }
        self.headers = kept;
    }

    /// The approximate memory use in bytes, for memory limits: an origin may send fields of any size.
    pub fn weight(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
    }

    /// The text of a header; `None` if it is absent or not ASCII.
    pub fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A validator that proves two bodies equal byte for byte: a strong `ETag` (RFC 9110 §8.8.3). `Last-Modified` does
    /// not count: two publications within one second share it.
    pub fn strong_validator(&self) -> Option<&str> {
        self.text(&hyper::header::ETAG).filter(|etag| etag.starts_with('"') && etag.len() > 2)
    }
}

/// A complete body in the spool. Dropping it removes its file, unless the store has renamed the file.
pub struct Spooled {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// The path of the spool file.
    pub path: PathBuf,
    /// The length in bytes.
    pub size: u64,
    /// The digests, computed while the body arrived.
    pub digests: Digests,
    /// The CRC-32 of each chunk, with which the store detects damage.
    pub chunks: Vec<u32>,
    /// The space reserved for it under the store's size limit, released on drop.
    pub room: Box<dyn Any + Send + Sync>,
}

impl Spooled {
    /// The path of the spool file.
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
        // After a commit the file is no longer at this path. After a crash, start-up removes it.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// A complete response: larder saw the end of the message, and its length was right. Only `verify` turns it into
/// something that may be stored.
#[derive(Debug)]
pub struct Received {
    /// The body.
    pub body: Spooled,
    /// The response's status and header fields.
    pub head: Head,
    /// Whether any hop was plain HTTP: a redirect chain is as trustworthy as its weakest hop.
    pub plain: bool,
    /// The final URL, if redirects were followed; without secrets.
    pub answered_by: Option<String>,
    /// Whether the transfer broke and was resumed. If so, larder fetches a mismatching body again before it rejects it.
    pub resumed: bool,
    /// When the request was sent.
    pub requested_at: Time,
    /// When the last byte arrived.
    pub received_at: Time,
}
