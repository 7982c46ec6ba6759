//! One file of a JSON index: its URL and its promises.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::ecosystem::pypi::links::{FileClaims, Promised};

/// The maximum number of digest algorithms of one file. Real ones have three.
const MAX_KINDS: usize = 16;

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "kebab-case")]
enum FileKey {
    Url,
    /// PEP 691.
    Hashes,
    /// The legacy JSON document.
    Digests,
    Size,
    /// PEP 714.
    CoreMetadata,
    /// PEP 691, and the name that the first servers used.
    #[serde(alias = "data-dist-info-metadata")]
    DistInfoMetadata,
    #[serde(other)]
    Other,
}

/// One file.
pub(super) struct File {
    /// The URL, as the document spells it.
    pub(super) url: String,
    /// The promises that the document makes about it.
    pub(super) said: FileClaims,
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(FileVisitor)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = File;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
        let (mut url, mut digests, mut size) = (None, None, None);
        let (mut core, mut dist_info) = (None, None);
        while let Some(key) = map.next_key()? {
            match key {
                FileKey::Url => fill(&mut url, map.next_value::<String>()?, "url")?,
                FileKey::Hashes | FileKey::Digests => {
                    fill(&mut digests, map.next_value::<Hashes>()?, "hashes")?;
                }
                FileKey::Size => fill(&mut size, map.next_value::<Option<u64>>()?, "size")?,
                FileKey::CoreMetadata => {
                    fill(&mut core, map.next_value::<Hashes>()?, "core-metadata")?;
                }
                // Some servers send it under both of its names, with the same value; the first one is used.
                FileKey::DistInfoMetadata => {
                    let hashes = map.next_value::<Hashes>()?;
                    dist_info.get_or_insert(hashes);
                }
                FileKey::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let metadata = core.filter(|Hashes(promised)| !promised.is_empty());
        Ok(File {
            url: url.ok_or_else(|| de::Error::missing_field("url"))?,
            said: FileClaims {
                digests: digests.map(|Hashes(promised)| promised).unwrap_or_default(),
                size: size.flatten(),
                metadata: metadata
                    .or(dist_info)
                    .map(|Hashes(promised)| promised)
                    .unwrap_or_default(),
            },
        })
    }
}

fn fill<T, E: de::Error>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), E> {
    if place.replace(value).is_some() {
        return Err(E::duplicate_field(name));
    }
    Ok(())
}

/// `{"sha256": "…"}`; `true`, `false` and `null` promise nothing.
struct Hashes(Promised);

impl<'de> Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(HashesVisitor)
    }
}

struct HashesVisitor;

impl<'de> Visitor<'de> for HashesVisitor {
    type Value = Hashes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("digests by algorithm")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Hashes, A::Error> {
        let mut promised = Promised::default();
        let mut seen: Vec<String> = Vec::new();
        while let Some((name, hex)) = map.next_entry::<String, String>()? {
            if seen.contains(&name) {
                return Err(de::Error::custom(format!("{name:?} stands twice")));
            }
            if seen.len() == MAX_KINDS {
                return Err(de::Error::custom("too many kinds of digest"));
            }
            promised.add(&name, &hex);
            seen.push(name);
        }
        Ok(Hashes(promised))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Hashes, E> {
        Ok(Hashes(Promised::default()))
    }

    fn visit_unit<E>(self) -> Result<Hashes, E> {
        Ok(Hashes(Promised::default()))
    }
}
