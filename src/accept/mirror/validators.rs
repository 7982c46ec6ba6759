//! The validators and other header fields of a rewritten document.
//!
//! A document with rewritten links is another representation (RFC 9110 §3.2): its length, digests and entity tag
//! differ. The tag contains the original tag, so that a client's condition can be applied to the origin's copy. It is
//! weak, because larder serves no ranges of rewritten documents (§8.8.3.1). Dates are removed: a condition on a date
//! could not distinguish two rewritten forms.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::rewrite::LinkRewriter;
use crate::digest::{hex, key_hash};
use crate::reply::condition::tags;

/// Must change whenever the rewriting changes.
const EDITION: &[u8] = b"2";

/// Fields that describe the original's bytes: checksums, lengths, validators.
const OF_THE_ORIGINAL: [&str; 10] = [
    "content-length",
    "last-modified",
    "accept-ranges",
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
    "x-checksum-md5",
    "x-checksum-sha1",
    "x-checksum-sha256",
];

/// Request fields about ranges of the original, or about its dates.
const ABOUT_PARTS: [HeaderName; 4] =
    [header::RANGE, header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE];

/// A mark for one form of rewriting, for entity tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(String);

impl Stamp {
    pub(super) fn of(lead: &LinkRewriter) -> Self {
        let [own, scheme, marks] = lead.stamp();
        let hash = key_hash([EDITION, own, scheme, marks]);
        Self(hex(hash.get(..6).unwrap_or_default()))
    }

    /// The tag of the rewritten document.
    fn changed(&self, tag: &str) -> Option<String> {
        let (strength, opaque) = match tag.strip_prefix("W/") {
            Some(opaque) => ('w', opaque),
            None => ('s', tag),
        };
        let opaque = opaque.strip_prefix('"')?.strip_suffix('"')?;
        Some(format!("W/\"larder-{}-{strength}-{opaque}\"", self.0))
    }

    /// The original tag in a tag that [`Stamp::changed`] made.
    fn original(&self, tag: &str) -> Option<String> {
        let opaque = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
        let rest = opaque.strip_prefix("larder-")?.strip_prefix(self.0.as_str())?;
        match rest.split_at_checked(3)? {
            ("-s-", opaque) => Some(format!("\"{opaque}\"")),
            ("-w-", opaque) => Some(format!("W/\"{opaque}\"")),
            _ => None,
        }
    }

    /// Converts the client's conditions to the original's tags. `is_changed`: the answer will be rewritten, so other
    /// tags are dropped. Returns whether a condition is left.
    pub(super) fn ask(&self, headers: &mut HeaderMap, is_changed: bool) -> bool {
        let known: Vec<String> = headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(tags)
            .map(str::to_owned)
            .collect();
        let originals: Vec<String> = known.iter().filter_map(|tag| self.original(tag)).collect();
        if !is_changed && originals.is_empty() {
            return false;
        }
        for name in ABOUT_PARTS {
            headers.remove(name);
        }
        headers.remove(header::IF_NONE_MATCH);
        // `*` matches any representation (RFC 9110 §13.1.2).
        let list =
            if known.iter().any(|tag| tag == "*") { "*".to_owned() } else { originals.join(", ") };
        if list.is_empty() {
            return false;
        }
        match HeaderValue::from_str(&list) {
            Ok(list) => headers.insert(header::IF_NONE_MATCH, list).is_none(),
            Err(_) => false,
        }
    }

    /// Turns the original's header into that of the rewritten document.
    pub(super) fn answer(&self, headers: &mut HeaderMap) {
        for name in OF_THE_ORIGINAL {
            headers.remove(name);
        }
        let changed = headers
            .remove(header::ETAG)
            .and_then(|tag| self.changed(tag.to_str().ok()?))
            .and_then(|tag| HeaderValue::from_str(&tag).ok());
        if let Some(tag) = changed {
            headers.insert(header::ETAG, tag);
        }
        // The links contain the client's name for larder, and depend on whether the client sent a credential.
        headers.append(header::VARY, HeaderValue::from_static("authorization, host"));
        note(headers);
    }
}

/// Notes in larder's member of `Cache-Status` (RFC 9211 §2: caches may add parameters) that this is not the origin's
/// document.
fn note(headers: &mut HeaderMap) {
    let name = HeaderName::from_static("cache-status");
    let mut all: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
    let Some(last) = all.pop() else { return };
    let noted = last
        .to_str()
        .ok()
        .and_then(|text| HeaderValue::from_str(&format!("{text}; links=changed")).ok());
    all.push(noted.unwrap_or(last));
    headers.remove(&name);
    for value in all {
        headers.append(&name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn stamp(own: &str) -> Stamp {
        let at = Target::from_url("https://example.org/simple/widget/").unwrap();
        Stamp::of(&LinkRewriter::from(&at, own, false, false).unwrap())
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    fn a_changed_documents_tag_leads_back_to_the_original() {
        let stamp = stamp("http://larder:3142");
        for tag in ["\"a\"", "W/\"a\"", "\"\"", "\"a,b\"", "\"W/x\""] {
            let changed = stamp.changed(tag).unwrap();
            assert!(changed.starts_with("W/\"larder-") && changed != tag, "{changed}");
            assert_eq!(stamp.original(&changed).as_deref(), Some(tag));
            let mut asked = headers(&[("if-none-match", &format!("\"other\", {changed}"))]);
            assert!(stamp.ask(&mut asked, true));
            assert_eq!(asked[header::IF_NONE_MATCH], tag);
        }
        assert_eq!(stamp.changed("no tag"), None);
    }

    #[test]
    fn a_tag_of_another_representation_is_no_condition() {
        let stamp = stamp("http://larder:3142");
        let elsewhere = self::stamp("http://cache:3142").changed("\"a\"").unwrap();
        for known in ["\"a\"", elsewhere.as_str(), "W/\"larder-\""] {
            let fields = [
                ("if-none-match", known),
                ("if-modified-since", "Sat, 01 Jan 2000 00:00:00 GMT"),
                ("range", "bytes=0-1"),
            ];
            let mut asked = headers(&fields);
            assert!(!stamp.ask(&mut asked, true));
            assert!(asked.is_empty(), "{asked:?}");
            // Control: conditions on a file do not change.
            let mut asked = headers(&fields);
            assert!(!stamp.ask(&mut asked, false));
            assert_eq!(asked.len(), 3);
        }
        let mut asked = headers(&[("if-none-match", "*")]);
        assert!(stamp.ask(&mut asked, true) && asked[header::IF_NONE_MATCH] == "*");
    }

    #[test]
    fn nothing_is_said_of_the_originals_bytes() {
        let mut answer = headers(&[
            ("etag", "\"a\""),
            ("content-length", "5"),
            ("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT"),
            ("repr-digest", "sha-256=:AA==:"),
            ("content-md5", "AA=="),
            ("content-type", "text/html"),
            ("cache-status", "larder; hit; detail=\"indexed\""),
        ]);
        stamp("http://larder:3142").answer(&mut answer);
        let names: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(answer["cache-status"], "larder; hit; detail=\"indexed\"; links=changed");
        assert_ne!(answer[header::ETAG], "\"a\"");
    }
}
