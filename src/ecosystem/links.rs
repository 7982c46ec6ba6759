//! Locates the URLs in an index that names its files by URL. When larder serves such an index under another address,
//! clients follow these URLs. Indexes that are signed, or that name files only by relative paths, have no such URLs.

use super::{ALL, Kind, Recognition};
use crate::target::Target;

/// How to find the URLs in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The `href` of every `<a>`, resolved against the page's `<base>`.
    Html,
    /// The strings at the ends of given paths through a JSON document.
    Json {
        /// The paths.
        ways: &'static [&'static [Step]],
        /// Whether clients send the index's credential to the hosts that it names, too, as the protocol defines.
        take_login: bool,
    },
}

/// A step into a JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member with this name.
    Member(&'static str),
    /// Every member.
    Any,
    /// Every element.
    Each,
}

/// Where to find the URLs in a response of type `kind` (lower case, without parameters) to a request that was
/// recognised as `recognition`. Artifacts, and documents that are certain to be another ecosystem's, have none.
pub fn links(recognition: Option<&Recognition>, at: &Target, kind: &str) -> Option<Links> {
    match recognition {
        Some(found) if found.resource.kind != Kind::Index => None,
        Some(found) if found.certain => found.ecosystem.linked()?.links(at, kind),
        Some(_) | None => ALL.iter().find_map(|ecosystem| ecosystem.linked()?.links(at, kind)),
    }
}
