//! Roots: the scope within which an index's claims select and refuse.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::secret::{self, Shown};
use super::{Origin, Target};

/// The part of an origin for which an index may speak: every path that starts with `path`.
///
/// A token in the path is neither displayed nor written to disk. So what was learnt about such a root is lost when
/// larder stops, and learnt again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root {
    /// The origin.
    pub origin: Origin,
    /// A path that begins and ends with a slash.
    #[serde(serialize_with = "without_secrets")]
    pub path: Box<str>,
}

impl Root {
    /// The directory of `at`: everything up to the last slash of its path.
    pub fn directory_of(at: &Target) -> Self {
        Self::at(at, at.path().rfind('/').unwrap_or(0))
    }

    /// The root whose path is the first `end` bytes of `at`'s path, and a slash.
    pub fn at(at: &Target, end: usize) -> Self {
        let prefix = at.path().get(..end).unwrap_or_default();
        Self {
            origin: at.origin().clone(),
            path: format!("{}/", prefix.trim_end_matches('/')).into(),
        }
    }

    /// Whether `target` lies under this root.
    pub fn covers(&self, target: &Target) -> bool {
        self.origin == *target.origin() && target.path().starts_with(&*self.path)
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, Shown { path: &self.path, query: None })
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn without_secrets<S: Serializer>(path: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&secret::for_disk(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    #[test]
    fn a_root_covers_what_lies_under_it() {
        let root = Root::directory_of(&at("/tenant/simple/"));
        assert_eq!(root.path, "/tenant/simple/".into());
        assert!(root.covers(&at("/tenant/simple/a")));
        assert!(!root.covers(&at("/tenant/simpler")));
    }
    #[test]
    fn no_token_is_written_down() {
        let bytes = |path| postcard::to_stdvec(&Root::directory_of(&at(path))).unwrap();
        let written = bytes("/t/ab-0123456789abcdef/main/");
        assert!(!written.windows(6).any(|window| window == b"012345"));
        // The control: a path without a token is restored.
        let plain = Root::directory_of(&at("/t/short/main/"));
        assert_eq!(postcard::from_bytes::<Root>(&bytes("/t/short/main/")).unwrap(), plain);
    }
}
