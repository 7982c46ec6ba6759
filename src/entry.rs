//! Entries: what the ledger records about a target.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::http;
use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::proof::Proof;
pub use crate::received::Head;
use crate::target::{Key, Partition};

/// A stored response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key of the request that the entry answers.
    pub key: Key,
    /// The URL for display, with secrets replaced.
    pub shown: String,
    /// The variant, as the ecosystem names it.
    pub variant: String,
    /// Which clients may receive it.
    pub partition: Partition,
    /// The ecosystem that recognised the target; empty if none did.
    pub ecosystem: String,
    /// Whether the ecosystem classifies the target as an index.
    pub index: bool,
    /// The body.
    pub blob: BlobId,
    /// The body's length in bytes.
    pub size: u64,
    /// The known digests of the body, SHA-256 first.
    #[serde(with = "digests")]
    pub digests: Vec<Digest>,
    /// The origin's status and header fields, as received.
    #[serde(with = "head")]
    pub head: Head,
    /// The request fields that the origin's `Vary` names, as larder sent them.
    pub varied: Vec<(String, String)>,
    /// What vouches for the body.
    pub proof: Proof,
    /// The highest snapshot number when this entry was written: after a restart, larder assigns only higher numbers. It
    /// does not tell when `proof` was judged; the record of judgements does.
    pub generation: u64,
    /// The final URL, if redirects were followed; needed to resolve relative links.
    pub answered_by: Option<String>,
    /// When larder sent the request.
    pub requested_at: Time,
    /// When the last byte arrived.
    pub received_at: Time,
    /// When the origin last confirmed that the entry is current.
    pub checked_at: Time,
}

mod digests {
    //! Stores a digest as its algorithm code and bytes, so that a record with a wrong length fails to load.

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::digest::{Algorithm, Digest};

    pub(super) fn serialize<S: Serializer>(digests: &[Digest], to: S) -> Result<S::Ok, S::Error> {
        let pairs: Vec<(u8, &[u8])> =
            digests.iter().map(|d| (d.algorithm() as u8, d.as_bytes())).collect();
        pairs.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Digest>, D::Error> {
        Vec::<(u8, Vec<u8>)>::deserialize(from)?
            .into_iter()
            .map(|(code, bytes)| {
                Algorithm::from_code(code)
                    .and_then(|algorithm| Digest::new(algorithm, &bytes))
                    .ok_or_else(|| D::Error::custom("not a digest"))
            })
            .collect()
    }
}

mod head {
    //! Stores a head as its status and a list of pairs, which keeps the order and repetition of fields.

    use super::{Head, HeaderMap, HeaderName, HeaderValue, StatusCode};
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(head: &Head, to: S) -> Result<S::Ok, S::Error> {
        let pairs: Vec<(&str, &[u8])> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        (head.status.as_u16(), pairs).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Head, D::Error> {
        let (status, pairs) = <(u16, Vec<(String, Vec<u8>)>)>::deserialize(from)?;
        let mut headers = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).map_err(D::Error::custom)?,
                HeaderValue::from_bytes(&value).map_err(D::Error::custom)?,
            );
        }
        Ok(Head { status: StatusCode::from_u16(status).map_err(D::Error::custom)?, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::proof::Rank;

    #[test]
    fn a_record_survives_a_round_trip() {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("a"));
        headers.append("link", HeaderValue::from_bytes(b"\xe9").unwrap());
        let entry = Entry {
            key: Key([7; 32]),
            shown: "https://example.org/a".into(),
            variant: "json".into(),
            partition: Partition::Private([1; 16]),
            ecosystem: "pypi".into(),
            index: true,
            blob: BlobId::new([9; 32]),
            size: 3,
            digests: vec![Digest::new(Algorithm::Md5, &[1; 16]).unwrap()],
            head: Head { status: StatusCode::OK, headers },
            varied: vec![("accept".into(), "*/*".into())],
            proof: Proof::of(Rank::Indexed).stale(),
            generation: 4,
            answered_by: None,
            requested_at: Time::from_millis(1),
            received_at: Time::from_millis(2),
            checked_at: Time::from_millis(3),
        };
        let bytes = postcard::to_stdvec(&entry).unwrap();
        assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry);
        assert!(postcard::from_bytes::<Entry>(&bytes[..bytes.len() / 2]).is_err());
    }
}
