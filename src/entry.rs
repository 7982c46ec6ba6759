//! What the ledger says of a target.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::http;
use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::proof::Proof;
pub use crate::received::Head;
use crate::target::{Key, Partition};

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the entry answers.
    pub key: Key,
    /// The URL for people, secrets replaced.
    pub shown: String,
    /// The variant, as the ecosystem names it.
    pub variant: String,
    /// Who may be given it.
    pub partition: Partition,
    /// The ecosystem that recognised it; empty for the unknown.
    pub ecosystem: String,
    /// Whether the ecosystem says that it is an index.
    pub index: bool,
    /// The body.
    pub blob: BlobId,
    /// The body's length in bytes.
    pub size: u64,
    /// The digests that are known of the body, SHA-256 first.
    #[serde(with = "digests")]
    pub digests: Vec<Digest>,
    /// The origin's status and header fields, as they came.
    #[serde(with = "head")]
    pub head: Head,
    /// The request fields that the origin's `Vary` names, as larder sent them.
    pub varied: Vec<(String, String)>,
    /// What vouches for the body.
    pub proof: Proof,
    /// The highest generation number when this was written: a start gives none up to it again. It does not say when `proof`
    /// was judged; what remembers judgements does.
    pub generation: u64,
    /// The URL that answered, if redirects were followed; for resolving relative links.
    pub answered_by: Option<String>,
    /// When the request for it was sent.
    pub requested_at: Time,
    /// When its last byte came.
    pub received_at: Time,
    /// When its origin last said that it is current.
    pub checked_at: Time,
}

mod digests {
    //! A digest as its code and bytes: a record cannot hold one of the wrong length.

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
    //! A head as its status and a list of pairs: order and repetition survive.

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
