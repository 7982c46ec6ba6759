//! Where the addresses stand in an index that names its files by URL: whoever serves the index under another address than
//! its own leads its readers on. Indexes that are signed, or that name files by relative paths alone, have no such places.

use super::{ALL, Kind, Recognition};
use crate::target::Target;

/// How the addresses in a document are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The `href` of every `<a>`, resolved by the page's `<base>`.
    Html,
    /// The strings at the ends of some ways through a JSON document.
    Json {
        /// The ways.
        ways: &'static [&'static [Step]],
        /// Clients show the login of the index to the hosts that it names, too: its protocol says so.
        take_login: bool,
    },
}

/// A step into a JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member of this name.
    Member(&'static str),
    /// Every member.
    Any,
    /// Every element.
    Each,
}

/// Where the addresses are in an answer of type `kind` (lower case, without parameters), for a request that was recognised
/// so. What is certain to be another ecosystem's, or a file, has none.
pub fn links(recognition: Option<&Recognition>, at: &Target, kind: &str) -> Option<Links> {
    match recognition {
        Some(found) if found.resource.kind != Kind::Index => None,
        Some(found) if found.certain => found.ecosystem.linked()?.links(at, kind),
        Some(_) | None => ALL.iter().find_map(|ecosystem| ecosystem.linked()?.links(at, kind)),
    }
}
