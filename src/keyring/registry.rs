//! Keys with which npm registries sign package versions: ECDSA on P-256 with SHA-256.
//!
//! Two formats are parsed: the JSON of a registry's keys endpoint (`/-/npm/v1/keys`), and a public key in PEM (RFC 7468
//! §13). A key's id is a hash of the key. A key with another key's id is refused, so that a look-up by id always yields
//! the key that belongs to that id.
//!
//! `ecosystem::npm` knows what is signed, and whether a key that has ended still counts.
//!
//! Sources: npm's documentation of registry signatures; RFC 5480 (the key), RFC 4253 §6.6 and RFC 5656 §3.1 (the input
//! of the id's hash), FIPS 186-5 (the signature).

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use moka::sync::Cache;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::kind::{Contents, Key, KeyFile, KeyKind, Kind, PublicKey, Ring};
use super::{Fingerprint, KeyDescription, Keyring, NotKeys, Source};
use crate::clock::Time;
use crate::digest::{Algorithm, Algorithms, Hashing, key_hash};

/// The bytes before the point in the `SubjectPublicKeyInfo` of every P-256 key (RFC 5480 §2). DER allows no other
/// encoding.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The only key type that registries use so far, as the endpoint and SSH name it.
const KIND: &str = "ecdsa-sha2-nistp256";

/// The maximum number of keys in one file. The public registry has two.
const MAX_KEYS: usize = 64;

/// The prefix of key ids. No identifier of an archive's signer begins so.
const ID: &str = "SHA256:";

/// How many valid signatures are remembered for each key, at a hundred bytes each. A new version of a package arrives
/// in a document that names thousands of old versions, and each signature check takes some 50 µs.
const REMEMBERED: u64 = 1 << 16;

/// The kind.
pub(super) struct Registry;

impl KeyKind for Registry {
    fn name(&self) -> &'static str {
        "npm"
    }

    fn formats(&self) -> &'static str {
        "a registry's ECDSA key in PEM, or the JSON of its keys"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[".pem", ".json"]
    }

    fn read(&self, file: &KeyFile<'_>) -> Option<Result<Contents, NotKeys>> {
        let keys = if file.text.starts_with(b"{") {
            of_json(file.text)
        } else {
            let spki = match file.spki()? {
                Ok(spki) => spki,
                Err(error) => return Some(Err(error)),
            };
            Ok(vec![RegistryKey::of_spki(&spki, None)?])
        };
        let boxed = |key| -> Key { Box::new(key) };
        Some(
            keys.map(|keys| Contents {
                keys: keys.into_iter().map(boxed).collect(),
                damaged: false,
            }),
        )
    }

    fn add_built_in(&self, keyring: &mut Keyring) {
        keyring.add_built_in("npm", include_bytes!("data/npm.json"));
    }

    /// The earlier end counts, so that an old copy cannot extend a key that was ended.
    fn ends(&self, one: Option<Time>, other: Option<Time>) -> Option<Time> {
        one.into_iter().chain(other).min()
    }

    fn is_signer(&self, signer: &str) -> bool {
        signer.starts_with(ID)
    }

    fn signs_packages(&self, signer: &str) -> bool {
        self.is_signer(signer)
    }
}

impl PublicKey for RegistryKey {
    fn kind(&self) -> Kind {
        Kind(&Registry)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.id.clone())
    }

    fn to_file(&self) -> Option<(String, Vec<u8>)> {
        // The id is base64, but a file's name cannot contain a slash.
        let id = self.id.trim_start_matches(ID).replace('/', "_");
        Some((format!("npm-{id}.json"), self.to_json().into_bytes()))
    }

    fn add_to(self: Box<Self>, keyring: &mut Keyring, source: &Source) {
        keyring.registry.0.push((*self, source.clone()));
    }
}

/// The trusted keys of registries.
#[derive(Debug, Default)]
pub(super) struct RegistryKeys(Vec<(RegistryKey, Source)>);

impl Ring for RegistryKeys {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn signers(&self) -> Vec<(Fingerprint, &Source)> {
        self.0.iter().map(|(key, source)| (key.fingerprint(), source)).collect()
    }

    fn about(&self, _: Time, of: &dyn Fn(&Fingerprint) -> bool) -> Vec<KeyDescription> {
        let described = self.0.iter().map(|(key, source)| KeyDescription {
            kind: key.kind(),
            fingerprint: key.fingerprint(),
            signer: key.fingerprint(),
            user: String::new(),
            ends: key.ends(),
            source: source.clone(),
        });
        described.filter(|key| of(&key.signer)).collect()
    }
}

impl Keyring {
    /// The registry key with that id, and when it expires.
    pub fn registry_key(&self, id: &str) -> Option<(&RegistryKey, Option<Time>)> {
        let mut named = self.registry.0.iter().map(|(key, _)| key).filter(|key| key.id() == id);
        let first = named.next()?;
        let ends = named.fold(first.ends(), |ends, copy| Registry.ends(ends, copy.ends()));
        Some((first, ends))
    }
}

/// A key with which a registry signs.
#[derive(Clone)]
pub struct RegistryKey {
    id: Box<str>,
    key: ParsedPublicKey,
    ends: Option<Time>,
    held: Cache<[u8; 32], ()>,
}

impl RegistryKey {
    /// The key in a `SubjectPublicKeyInfo` in DER.
    pub(super) fn of_spki(der: &[u8], ends: Option<Time>) -> Option<Self> {
        let point = der.strip_prefix(&SPKI)?;
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).ok()?;
        Some(Self { id: id_of(point).into(), key, ends, held: Cache::new(REMEMBERED) })
    }

    /// The key's id, as signatures name it: `SHA256:` and base64 without padding.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When the key expires, if it does.
    pub fn ends(&self) -> Option<Time> {
        self.ends
    }

    /// Whether `signature`, in base64, is a signature of `message` by this key.
    pub fn verifies(&self, message: &str, signature: &str) -> bool {
        let asked = key_hash([message.as_bytes(), signature.as_bytes()]);
        if self.held.contains_key(&asked) {
            return true;
        }
        let holds = STANDARD
            .decode(signature)
            .is_ok_and(|signature| self.key.verify_sig(message.as_bytes(), &signature).is_ok());
        if holds {
            self.held.insert(asked, ());
        }
        holds
    }

    /// The key in the JSON format of the keys endpoint, so that larder can read it again.
    pub(super) fn to_json(&self) -> String {
        let ends = self.ends.map(|ends| {
            let nanos = i128::from(ends.as_millis()) * 1_000_000;
            // This cannot fail: the moment was parsed from RFC 3339.
            let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
            moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
        });
        let spki = STANDARD.encode([&SPKI, self.key.as_ref()].concat());
        let key = serde_json::json!({
            "expires": ends, "keyid": self.id, "keytype": KIND, "scheme": KIND, "key": spki,
        });
        format!("{}\n", serde_json::json!({ "keys": [key] }))
    }
}

impl fmt::Debug for RegistryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryKey")
            .field("id", &self.id)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// The response of a keys endpoint.
#[derive(Deserialize)]
struct Answer {
    keys: Vec<Described>,
}

/// A key in the response.
#[derive(Deserialize)]
struct Described {
    expires: Option<String>,
    keyid: String,
    keytype: String,
    scheme: String,
    key: String,
}

/// The keys in the JSON of a keys endpoint. Keys of unknown types are skipped, as long as one known key remains.
pub(super) fn of_json(bytes: &[u8]) -> Result<Vec<RegistryKey>, NotKeys> {
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| {
        NotKeys::Unusable(format!("it is not a response of a keys endpoint: {error}"))
    })?;
    if answer.keys.len() > MAX_KEYS {
        return Err(NotKeys::Unusable(format!("it holds more than {MAX_KEYS} keys")));
    }
    let known = answer.keys.iter().filter(|key| key.keytype == KIND && key.scheme == KIND);
    let keys = known.map(Described::read).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(NotKeys::Unusable(format!("it holds no key of the kind {KIND}")));
    }
    Ok(keys)
}

impl Described {
    fn read(&self) -> Result<RegistryKey, NotKeys> {
        let wrong = |what: &str| NotKeys::Unusable(format!("{what} of the key {:?}", self.keyid));
        let ends = match &self.expires {
            Some(text) => Some(moment(text).ok_or_else(|| wrong("cannot read `expires`"))?),
            None => None,
        };
        let spki = STANDARD.decode(&self.key).ok();
        let key = spki.and_then(|der| RegistryKey::of_spki(&der, ends));
        let key = key.ok_or_else(|| wrong("no P-256 point is in the value"))?;
        if *key.id != *self.keyid {
            return Err(NotKeys::Unusable(format!(
                "`keyid` {:?} does not match its key, whose id is {}",
                self.keyid, key.id
            )));
        }
        Ok(key)
    }
}

/// Parses a moment as registries write it (RFC 3339).
pub fn moment(text: &str) -> Option<Time> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok().map(Time::from_millis)
}

/// [`ID`] and the digest of the key in SSH's wire format: two names and the point, each preceded by its length.
fn id_of(point: &[u8]) -> String {
    let mut hashing = Hashing::new(Algorithms::NONE.with(Algorithm::Sha256));
    for piece in [KIND.as_bytes(), b"nistp256", point] {
        // No overflow: the longest piece has 65 bytes.
        hashing.update(&u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes());
        hashing.update(piece);
    }
    format!("{ID}{}", STANDARD_NO_PAD.encode(hashing.finish().blob().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The public registry's two keys: the current and the previous one.
    const DATA: &[u8] = include_bytes!("data/npm.json");

    /// Published signatures by each key: the key's id, `name@version:integrity`, the signature.
    const SIGNED: [(&str, &str, &str); 3] = [
        (
            "SHA256:jl3bwswu80PjjokCgh0o2w5c2U4LhQAE57gj9cz1kzA",
            "@midas-ds/link@1.0.1:sha512-t2/aa4fgURXKaz9lPDEsjh4xjBNfkmPx0Zyt8d1OSKjbIUuKrcJPT53g0ZPbBezHqRL2EmZOsy6+cRSME9gFGA==",
            "MEUCIBa4+IoWCBpQ4GALTDCehu0zd7CYZC9wC0xhpapZbH3WAiEAqZbSgmFyCCLfWwJgnW7apz0N14HWKY6glQopGab14GE=",
        ),
        (
            "SHA256:DhQ8wR5APBvFHLF/+Tc+AYvPOdTpcIDqOhxsBHRwC7U",
            "pnpm@10.6.5:sha512-zfko/KIIMs1Z7FOCZJK33CXcUk1DcLa0rb9lgD0y76psHIgUfArk6NV5psnuxxV1e1DU+jXuoXnYaOraTtBDrw==",
            "MEUCIQDX5rBiPPLMcFTegu9hjp64z2gJTYuIrMwCAG/7HZMR3QIgHEf7HDdZ8avqrnaKqBA7Q8KezVQX0nEd0cwJCla+rWA=",
        ),
        (
            "SHA256:DhQ8wR5APBvFHLF/+Tc+AYvPOdTpcIDqOhxsBHRwC7U",
            "@brave/brave-search-mcp-server@2.0.82:sha512-/DkzCLp+tUJpBL0cRpl7Yn2BoStbOu0xRtq7JzOXCOsY/dlIyrWD88acBuoOIHVcfGqXz8KCD0jnub1q9OdPZA==",
            "MEUCIDcvpL1s6uM/Wrkv03KwpaYlFTWS92yJiRQ41P0Vp7lEAiEA3Yx6MhaJMh2qRvpc0NhFcuiQigoU58DW6qGIW195OY0=",
        ),
    ];

    fn keys() -> Vec<RegistryKey> {
        of_json(DATA).unwrap()
    }

    #[test]
    fn real_signatures_hold_and_nothing_near_them_does() {
        let keys = keys();
        for (id, message, signature) in SIGNED {
            let key = || keys.iter().find(|key| key.id() == id).unwrap();
            let other = keys.iter().find(|key| key.id() != id).unwrap();
            assert!(key().verifies(message, signature), "{message}");
            assert!(key().verifies(message, signature), "a second look says the same");
            assert!(!other.verifies(message, signature));
            assert!(!key().verifies(&format!("{message}\n"), signature));
            for at in 0..message.len() {
                let mut bytes = message.as_bytes().to_vec();
                bytes[at] ^= 1;
                let flipped = String::from_utf8(bytes).unwrap();
                assert!(!key().verifies(&flipped, signature), "{flipped}");
            }
            let der = STANDARD.decode(signature).unwrap();
            for at in 0..der.len() {
                let mut flipped = der.clone();
                flipped[at] ^= 1;
                assert!(!key().verifies(message, &STANDARD.encode(flipped)), "byte {at}");
            }
            for odd in [
                "",
                "MEUC",
                signature.trim_start_matches('M'),
                &format!("{signature} "),
                &format!("{signature}\n"),
            ] {
                assert!(!key().verifies(message, odd), "{odd:?}");
            }
        }
    }

    #[test]
    fn a_key_ends_when_its_registry_says() {
        let ends: Vec<Option<Time>> = keys().iter().map(RegistryKey::ends).collect();
        assert!(ends.contains(&None));
        assert!(ends.contains(&moment("2025-01-29T00:00:00.000Z")));
        assert_eq!(moment("1970-01-01T00:00:01.5+00:00"), Some(Time::from_millis(1_500)));
        assert_eq!(moment("yesterday"), None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for key in keys() {
            let again = of_json(key.to_json().as_bytes()).unwrap();
            assert_eq!((again[0].id(), again[0].ends()), (key.id(), key.ends()));
        }
    }

    #[test]
    fn a_key_under_anothers_id_and_what_is_no_key_are_refused() {
        let text = String::from_utf8(DATA.to_vec()).unwrap();
        let refused = |text: &str| of_json(text.as_bytes()).unwrap_err().to_string();
        assert!(
            refused(&text.replacen("SHA256:jl3b", "SHA256:jl3c", 1)).contains("does not match")
        );
        assert!(refused(&text.replacen("2025-01-29", "2025-13-29", 1)).contains("`expires`"));
        // The point is not on the curve.
        assert!(refused(&text.replacen("BktUgg==", "BktUgA==", 1)).contains("P-256"));
        assert!(refused("{}").contains("keys endpoint"));
        assert!(refused(r#"{"keys": []}"#).contains(KIND));
        let unknown = text.replacen("\"scheme\": \"ecdsa-sha2-nistp256\"", "\"scheme\": \"x\"", 1);
        assert_eq!(of_json(unknown.as_bytes()).unwrap().len(), 1);
    }
}
