//! The registry's signatures of single versions: `dist.signatures`.
//!
//! A registry signs `<name>@<version>:<integrity>`, with the integrity exactly as the document has it. The signature
//! proves which bytes belong to that version of that package, whichever mirror serves it. It does not prove which
//! versions exist, nor when they were published. Therefore:
//!
//! - A signature counts only for the tarball of that very version: a document could name another version's tarball with it.
//! - An invalid signature by a known key refutes the version, which then promises nothing.
//! - A signature by an unknown key counts as none. Keys that the registry itself serves prove no more than its TLS
//!   certificate, and are not used.
//!
//! An expired key counts for versions published before it expired, as in npm's own check (pacote, `verifySignatures`).
//! The publication time is in the document's `time`; without one, it is taken to be 2015. Abbreviated documents never
//! have `time`. An attacker who can change a document can also change its `time`, so an expired key is trustworthy only
//! as long as its owner keeps it secret.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::MAX_DOCUMENT;
use crate::clock::Time;
use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::{Bounded, Nesting, malformed};
use crate::keyring::{Keyring, registry};

/// The maximum number of versions of one package. Packages published with every commit have some ten thousand.
pub(super) const MAX_VERSIONS: usize = 100_000;

/// The maximum length of a version, in bytes. Implementations of semantic versioning accept no longer one.
pub(super) const MAX_VERSION: usize = 256;

/// The maximum number of signatures checked for one version. Real versions have one, or two during a key change.
const MAX_SIGNATURES: usize = 8;

/// The maximum length of a key id and of a signature, in bytes. Real ones have 50 and 96.
const MAX_TEXT: usize = 256;

/// The assumed publication time of a version without one: 2015-01-01, before registries signed versions.
const LONG_AGO: Time = Time::from_millis(1_420_070_400_000);

/// One of `dist.signatures`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    key: String,
    value: String,
}

/// The members of `dist.signatures`. Anything of another shape counts as no signature; it must not make the document
/// unreadable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signatures(Vec<Signature>);

/// The result of checking the signatures of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SignatureCheck {
    /// There is no signature that counts.
    Nothing,
    /// The signatures are valid; the key's id.
    Signed(String),
    /// A signature by a known key is invalid; the reason.
    Forged(String),
    /// Only unknown keys signed it; the first key's id.
    Unknown(String),
}

/// Checks the signatures of the versions of one document.
pub(super) struct Judge<'a> {
    keys: &'a Keyring,
    package: &'a str,
    times: Times<'a>,
}

impl<'a> Judge<'a> {
    /// For the document about `package`. `open` opens it again; `None` if it has no `time`.
    pub(super) fn new(keys: &'a Keyring, package: &'a str, open: Option<&'a Open<'a>>) -> Self {
        Self { keys, package, times: Times { open, read: None } }
    }

    /// The package's name.
    pub(super) fn package(&self) -> &'a str {
        self.package
    }

    /// Checks the signatures over `integrity` of `version`.
    pub(super) fn word(
        &mut self,
        version: &str,
        integrity: &str,
        signatures: &Signatures,
    ) -> Result<SignatureCheck, Malformed> {
        let message = format!("{}@{version}:{integrity}", self.package);
        let mut word = SignatureCheck::Nothing;
        for Signature { key: id, value } in &signatures.0 {
            let Some((key, ends)) = self.keys.registry_key(id) else {
                if word == SignatureCheck::Nothing {
                    word = SignatureCheck::Unknown(id.clone());
                }
                continue;
            };
            if !key.verifies(&message, value) {
                return Ok(SignatureCheck::Forged(format!("that of the key {id} over {message}")));
            }
            let counts = match ends {
                Some(ends) => self.times.of(version)?.is_some_and(|published| published < ends),
                None => true,
            };
            if counts {
                word = SignatureCheck::Signed(id.clone());
            }
        }
        Ok(word)
    }
}

/// Opens a document.
pub(super) type Open<'a> = dyn Fn() -> io::Result<Box<dyn Read>> + 'a;

/// The publication times of the versions. They are read on demand, in a second pass: `time` comes after the versions in
/// the document, and only expired keys need it.
struct Times<'a> {
    open: Option<&'a Open<'a>>,
    read: Option<Published>,
}

impl Times<'_> {
    /// When `version` was published; `None` if the time is unreadable.
    fn of(&mut self, version: &str) -> Result<Option<Time>, Malformed> {
        let Some(open) = self.open else {
            return Ok(Some(LONG_AGO));
        };
        let published = match &self.read {
            Some(published) => published,
            None => self.read.insert(published(open()?)?),
        };
        Ok(published.0.get(version).copied().unwrap_or(Some(LONG_AGO)))
    }
}

/// The publication time of each version; `None` if it is unreadable.
#[derive(Default)]
struct Published(HashMap<String, Option<Time>>);

fn published(document: impl Read) -> Result<Published, Malformed> {
    let bounded = Bounded::new(document, MAX_DOCUMENT, Nesting::default());
    let from = io::BufReader::new(bounded);
    let read: Result<OnlyTime, serde_json::Error> = serde_json::from_reader(from);
    match read {
        Ok(OnlyTime { time }) => Ok(time),
        Err(error) if error.is_io() => Err(malformed(error.into())),
        Err(error) => Err(Malformed::Shape { expected: "packument", found: error.to_string() }),
    }
}

/// The member of a packument that holds the times.
#[derive(serde::Deserialize)]
struct OnlyTime {
    #[serde(default)]
    time: Published,
}

impl<'de> Deserialize<'de> for Published {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Published;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("times by version")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Published, A::Error> {
                let mut published = HashMap::new();
                while let Some(version) = map.next_key::<String>()? {
                    // A longer key is not a version, and no look-up will ask for it.
                    if version.len() > MAX_VERSION {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let Lenient(time) = map.next_value()?;
                    if published.len() == MAX_VERSIONS {
                        return Err(de::Error::custom("more times than there are versions"));
                    }
                    let time = time.and_then(|time| registry::moment(&time));
                    // A repeated version is ambiguous, so its time counts as unreadable.
                    published.entry(version).and_modify(|known| *known = None).or_insert(time);
                }
                Ok(Published(published))
            }
        }
        from.deserialize_map(Map)
    }
}

impl<'de> Deserialize<'de> for Signatures {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(List)
    }
}

/// Implements visits of values that do not count.
macro_rules! nothing_of {
    ($value:expr; $($visit:ident: $kind:ty),*) => {
        $(fn $visit<E: de::Error>(self, _: $kind) -> Result<Self::Value, E> {
            Ok($value)
        })*

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
    };
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Signatures;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("signatures")
    }

    nothing_of! { Signatures::default(); visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Signatures, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Signatures::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Signatures, A::Error> {
        let mut signatures = Vec::new();
        while signatures.len() < MAX_SIGNATURES
            && let Some(MaybeSignature(signature)) = list.next_element()?
        {
            signatures.extend(signature);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Signatures(signatures))
    }
}

/// An element of the list, if it is a signature.
struct MaybeSignature(Option<Signature>);

impl<'de> Deserialize<'de> for MaybeSignature {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Element;
        impl<'de> Visitor<'de> for Element {
            type Value = MaybeSignature;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a signature")
            }

            nothing_of! { MaybeSignature(None); visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MaybeSignature, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(MaybeSignature(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MaybeSignature, A::Error> {
                let (mut key, mut value, mut twice) = (None, None, false);
                while let Some(member) = map.next_key::<Member>()? {
                    let place = match member {
                        Member::Keyid => &mut key,
                        Member::Sig => &mut value,
                        Member::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    twice |= place.is_some();
                    *place = Some(map.next_value::<Lenient>()?.0);
                }
                let signature = key.flatten().zip(value.flatten()).filter(|_| !twice);
                Ok(MaybeSignature(signature.map(|(key, value)| Signature { key, value })))
            }
        }
        from.deserialize_any(Element)
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Keyid,
    Sig,
    #[serde(other)]
    Other,
}

/// A short text of printable ASCII characters, or nothing.
struct Lenient(Option<String>);

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Lenient;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            nothing_of! { Lenient(None); visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64 }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Lenient, E> {
                let fits = text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic());
                Ok(Lenient(fits.then(|| text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lenient, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Lenient(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lenient, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Lenient(None))
            }
        }
        from.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Source;
    use std::cell::Cell;

    /// A version that the public registry signed with a key that does not expire.
    const PACKAGE: &str = "pnpm";
    const VERSION: &str = "10.6.5";
    const INTEGRITY: &str = "sha512-zfko/KIIMs1Z7FOCZJK33CXcUk1DcLa0rb9lgD0y76psHIgUfArk6NV5psnuxxV1e1DU+jXuoXnYaOraTtBDrw==";
    const KEY: &str = "SHA256:DhQ8wR5APBvFHLF/+Tc+AYvPOdTpcIDqOhxsBHRwC7U";
    const SIGNATURE: &str = "MEUCIQDX5rBiPPLMcFTegu9hjp64z2gJTYuIrMwCAG/7HZMR3QIgHEf7HDdZ8avqrnaKqBA7Q8KezVQX0nEd0cwJCla+rWA=";

    /// A version signed with the key that expired in January 2025.
    const OLD_PACKAGE: &str = "@midas-ds/link";
    const OLD_INTEGRITY: &str = "sha512-t2/aa4fgURXKaz9lPDEsjh4xjBNfkmPx0Zyt8d1OSKjbIUuKrcJPT53g0ZPbBezHqRL2EmZOsy6+cRSME9gFGA==";
    const OLD_KEY: &str = "SHA256:jl3bwswu80PjjokCgh0o2w5c2U4LhQAE57gj9cz1kzA";
    const OLD_SIGNATURE: &str = "MEUCIBa4+IoWCBpQ4GALTDCehu0zd7CYZC9wC0xhpapZbH3WAiEAqZbSgmFyCCLfWwJgnW7apz0N14HWKY6glQopGab14GE=";

    fn signatures(pairs: &[(&str, &str)]) -> Signatures {
        let one = |(key, value): &(&str, &str)| Signature {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        Signatures(pairs.iter().map(one).collect())
    }

    fn word(
        keys: &Keyring,
        version: &str,
        integrity: &str,
        pairs: &[(&str, &str)],
    ) -> SignatureCheck {
        Judge::new(keys, PACKAGE, None).word(version, integrity, &signatures(pairs)).unwrap()
    }

    #[test]
    fn a_signature_is_over_name_version_and_integrity() {
        let keys = Keyring::built_in();
        let signed = SignatureCheck::Signed(KEY.to_owned());
        assert_eq!(word(&keys, VERSION, INTEGRITY, &[(KEY, SIGNATURE)]), signed);
        let cut = INTEGRITY.trim_end_matches('=');
        for (version, integrity, signature) in [
            ("10.6.6", INTEGRITY, SIGNATURE),
            (VERSION, cut, SIGNATURE),
            (VERSION, INTEGRITY, OLD_SIGNATURE),
            (VERSION, INTEGRITY, ""),
        ] {
            let said = word(&keys, version, integrity, &[(KEY, signature)]);
            assert!(matches!(said, SignatureCheck::Forged(_)), "{version} {said:?}");
        }
        let mut other = Judge::new(&keys, "npm", None);
        let said = other.word(VERSION, INTEGRITY, &signatures(&[(KEY, SIGNATURE)])).unwrap();
        assert!(matches!(said, SignatureCheck::Forged(_)));
    }

    #[test]
    fn only_known_keys_say_anything() {
        let (none, all) = (Keyring::new(), Keyring::built_in());
        let pair = (KEY, SIGNATURE);
        assert_eq!(word(&none, VERSION, INTEGRITY, &[pair]), SignatureCheck::Unknown(KEY.into()));
        assert_eq!(word(&all, VERSION, INTEGRITY, &[]), SignatureCheck::Nothing);
        // During a key change, a registry signs with both keys; larder may know only one of them.
        let new = ("SHA256:new", "x");
        for pairs in [[pair, new], [new, pair]] {
            assert_eq!(word(&all, VERSION, INTEGRITY, &pairs), SignatureCheck::Signed(KEY.into()));
        }
        // An invalid signature outweighs a valid one.
        let said = word(&all, VERSION, INTEGRITY, &[pair, (OLD_KEY, SIGNATURE)]);
        assert!(matches!(said, SignatureCheck::Forged(_)));
    }

    #[test]
    fn a_key_that_ended_counts_for_what_was_published_before() {
        let keys = Keyring::built_in();
        let asked = Cell::new(0);
        let said = |document: Option<&str>| {
            asked.set(0);
            let document = document.map(str::to_owned);
            let open = || -> io::Result<Box<dyn Read>> {
                asked.set(asked.get() + 1);
                let text = document.clone().unwrap_or_default();
                Ok(Box::new(io::Cursor::new(text)))
            };
            let again = document.is_some().then_some(&open as &Open<'_>);
            let mut judge = Judge::new(&keys, OLD_PACKAGE, again);
            let old = signatures(&[(OLD_KEY, OLD_SIGNATURE)]);
            let word = judge.word("1.0.1", OLD_INTEGRITY, &old).unwrap();
            // A second check does not read the document again.
            assert_eq!(judge.word("1.0.1", OLD_INTEGRITY, &old).unwrap(), word);
            (word, asked.get())
        };
        let at = |time: &str| format!(r#"{{"versions": {{}}, "time": {{"1.0.1": {time}}}}}"#);
        let signed = || SignatureCheck::Signed(OLD_KEY.to_owned());
        assert_eq!(said(None), (signed(), 0));
        assert_eq!(said(Some("{}")), (signed(), 1));
        assert_eq!(said(Some(r#"{"time": {"2.0.0": "x"}}"#)), (signed(), 1));
        assert_eq!(said(Some(&at("\"2025-01-28T23:59:59.999Z\""))), (signed(), 1));
        for late in [
            at("\"2025-01-29T00:00:00.000Z\""),
            at("\"2026-01-01T00:00:00Z\""),
            at("\"never\""),
            at("7"),
            at("[{}]"),
            at("\"2024-01-01T00:00:00Z\", \"1.0.1\": \"2024-01-01T00:00:00Z\""),
        ] {
            assert_eq!(said(Some(&late)), (SignatureCheck::Nothing, 1), "{late}");
        }
    }

    #[test]
    fn a_key_ends_when_any_file_says_so() {
        let text = include_str!("../../keyring/data/npm.json");
        let source = Source::Operator("x".into());
        let endless = text.replace("\"2025-01-29T00:00:00.000Z\"", "null");
        let mut keys = Keyring::new();
        keys.read(endless.as_bytes(), "", &source).unwrap();
        assert_eq!(keys.registry_key(OLD_KEY).unwrap().1, None);
        keys.read(text.as_bytes(), "", &source).unwrap();
        keys.read(endless.as_bytes(), "", &source).unwrap();
        assert!(keys.registry_key(OLD_KEY).unwrap().1.is_some());
        assert_eq!(keys.registry_key(KEY).unwrap().1, None);
    }

    #[test]
    fn what_has_another_shape_is_no_signature() {
        let read = |text: &str| serde_json::from_str::<Signatures>(text).unwrap().0.len();
        assert_eq!(
            read(r#"[{"keyid": "a", "sig": "b", "more": [1]}, {"sig": "d", "keyid": "c"}]"#),
            2
        );
        for nothing in [
            "null",
            "true",
            "1",
            "-1",
            "1.5",
            "\"x\"",
            "{}",
            "{\"a\": [1]}",
            "[]",
            "[null, 1, \"x\", [[]], {}]",
            r#"[{"keyid": "a"}, {"sig": "b"}, {"keyid": 1, "sig": "b"}, {"keyid": "a", "sig": {"b": []}}]"#,
            r#"[{"keyid": "a", "sig": "b", "sig": "c"}]"#,
            r#"[{"keyid": "a b", "sig": "c"}]"#,
        ] {
            assert_eq!(read(nothing), 0, "{nothing}");
        }
        let time =
            format!(r#"{{"time": {{"{}": "x", "1.0.0": "y"}}}}"#, "1".repeat(MAX_VERSION + 1));
        assert_eq!(
            published(time.as_bytes()).unwrap().0.len(),
            1,
            "what is longer than a version is kept"
        );
        let many = vec![r#"{"keyid": "a", "sig": "b"}"#; 100].join(",");
        assert_eq!(read(&format!("[{many}]")), MAX_SIGNATURES);
    }
}
