//! Remembers which roots' indexes named files on which origin (the claiming roots), so that larder can find the index
//! of a file that a client requests first.
//!
//! This is a hint for the prerequisite fetch and proves nothing. Indexes on the files' own origin come first. Of any
//! other origin only a few roots are kept, so that an origin that names another's files often cannot displace the
//! others that do (promise P4).

use std::collections::HashMap;

use crate::clock::Time;
use crate::target::{Origin, Root};

/// Maximum number of roots in one answer.
const MAX_ANSWER: usize = 8;

/// Maximum number of roots of one foreign origin that are kept for an origin of files.
const MAX_PER_ORIGIN: usize = 4;

/// Maximum number of roots that are kept for an origin of files.
const MAX_ROOTS: usize = 32;

/// Maximum number of origins of files; a build uses a few dozen.
const MAX_ORIGINS: usize = 4096;

/// The claiming roots of each origin of files.
#[derive(Debug, Default)]
pub(super) struct ClaimingRoots {
    /// The roots, and when each last named a file there; unordered.
    of: HashMap<Origin, Vec<(Root, Time)>>,
}

impl ClaimingRoots {
    /// Notes that an index of `root` named files on `origin`.
    pub(super) fn note(&mut self, origin: &Origin, root: &Root, at: Time) {
        if !self.of.contains_key(origin) && self.of.len() >= MAX_ORIGINS {
            self.drop_oldest();
        }
        let roots = self.of.entry(origin.clone()).or_default();
        if let Some((_, last)) = roots.iter_mut().find(|(known, _)| known == root) {
            *last = at.max(*last);
            return;
        }
        roots.push((root.clone(), at));
        let of_same = roots.iter().filter(|(known, _)| known.origin == root.origin).count();
        if root.origin != *origin && of_same > MAX_PER_ORIGIN {
            remove_oldest(roots, |known| known.origin == root.origin);
        }
        if roots.len() > MAX_ROOTS {
            let foreign = roots.iter().any(|(known, _)| known.origin != *origin);
            remove_oldest(roots, |known| !foreign || known.origin != *origin);
        }
    }

    /// The claiming roots for files on `origin`: its own first, then the most recent.
    pub(super) fn of(&self, origin: &Origin) -> Vec<Root> {
        let mut roots: Vec<&(Root, Time)> = self.of.get(origin).into_iter().flatten().collect();
        roots.sort_by_key(|(root, at)| std::cmp::Reverse((root.origin == *origin, *at)));
        roots.into_iter().take(MAX_ANSWER).map(|(root, _)| root.clone()).collect()
    }

    fn drop_oldest(&mut self) {
        let oldest = self
            .of
            .iter()
            .min_by_key(|(_, roots)| roots.iter().map(|(_, at)| *at).max())
            .map(|(origin, _)| origin.clone());
        if let Some(oldest) = oldest {
            self.of.remove(&oldest);
        }
    }
}

fn remove_oldest(roots: &mut Vec<(Root, Time)>, among: impl Fn(&Root) -> bool) {
    let oldest = roots
        .iter()
        .enumerate()
        .filter(|(_, (root, _))| among(root))
        .min_by_key(|(_, (_, at))| *at)
        .map(|(position, _)| position);
    if let Some(position) = oldest {
        roots.swap_remove(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::identity::origin_of;
    use crate::target::{Scheme, Target};

    fn root(url: &str) -> Root {
        Root::directory_of(&Target::from_url(url).unwrap())
    }

    #[test]
    fn a_hostile_origin_cannot_hide_the_others() {
        let files = origin_of(Scheme::Https, "files.example.org").unwrap();
        let mut claiming_roots = ClaimingRoots::default();
        let real = root("https://example.org/simple/");
        let own = root("https://files.example.org/simple/");
        claiming_roots.note(&files, &real, Time::from_millis(1));
        claiming_roots.note(&files, &own, Time::from_millis(2));
        for number in 0..1000 {
            let evil = root(&format!("https://evil.example.org/{number}/"));
            claiming_roots.note(&files, &evil, Time::from_millis(10 + number));
        }
        let answer = claiming_roots.of(&files);
        assert_eq!(answer.len(), 2 + MAX_PER_ORIGIN);
        assert_eq!(answer.first(), Some(&own));
        assert!(answer.contains(&real));
        assert_eq!(claiming_roots.of(&real.origin), []);
    }

    #[test]
    fn everything_is_bounded() {
        let mut claiming_roots = ClaimingRoots::default();
        for number in 0..200 {
            let at = Time::from_millis(number);
            let files = origin_of(Scheme::Https, "files.example.org").unwrap();
            claiming_roots.note(&files, &root(&format!("https://a{number}.example.org/")), at);
            claiming_roots.note(&files, &root(&format!("https://files.example.org/{number}/")), at);
        }
        assert!(claiming_roots.of.values().all(|roots| roots.len() <= MAX_ROOTS));
        for number in 0..MAX_ORIGINS + 5 {
            let origin = origin_of(Scheme::Https, &format!("b{number}.example.org")).unwrap();
            claiming_roots.note(&origin, &root("https://example.org/"), Time::from_millis(1));
        }
        assert_eq!(claiming_roots.of.len(), MAX_ORIGINS);
    }
}
