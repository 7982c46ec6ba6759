//! Roots: how far an index's word carries.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Origin, Target};

/// The part of an origin for which an index may speak: every path that starts with `path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root {
    /// The origin.
    pub origin: Origin,
    /// A path that begins and ends with a slash.
    pub path: Box<str>,
}

impl Root {
    /// The directory of `at`: everything up to the last slash of its path.
    pub fn directory_of(at: &Target) -> Self {
        Self::at(at, at.path().rfind('/').unwrap_or(0))
    }

    /// The root whose path is the first `end` bytes of `at`'s and a slash.
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
        write!(f, "{}{}", self.origin, self.path)
    }
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
}
