//! Chooses what to drop when a limit is exceeded: something of the branch that holds most (promise P4).
//!
//! Roots form a tree: a site, its origins, and the directories of their roots. At each fork the heaviest branch loses.
//! So neither a hundred hosts under one domain nor a hundred directories of one tenant can push out a neighbour that
//! holds less than they do together.

use crate::target::Origin;

/// The path from the site down to a root's directory.
pub(super) type Lineage = Vec<Box<str>>;

/// Maximum number of directory levels in a lineage; an attacker can make a path as deep as they like.
const MAX_DEPTH: usize = 8;

/// The lineage of the root `path` on `origin`.
pub(super) fn lineage(origin: &Origin, path: &str) -> Lineage {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    let above = [origin.site().into(), origin.to_string().into()];
    above.into_iter().chain(segments.take(MAX_DEPTH).map(Into::into)).collect()
}

/// One holder of a shared resource.
pub(super) struct Share<'a, A> {
    /// Its place in the tree.
    pub(super) lineage: &'a [Box<str>],
    /// How much it holds.
    pub(super) weight: u64,
    /// Within the chosen branch the one with the least age is dropped.
    pub(super) age: A,
}

/// The position of the holder to drop from; `None` if there are none.
pub(super) fn first_to_go<A: Ord + Copy>(shares: &[Share<'_, A>]) -> Option<usize> {
    let mut among: Vec<(usize, &Share<'_, A>)> = shares.iter().enumerate().collect();
    for depth in 0.. {
        among.sort_by(|(_, one), (_, two)| one.lineage.get(depth).cmp(&two.lineage.get(depth)));
        let branches =
            among.chunk_by(|(_, one), (_, two)| one.lineage.get(depth) == two.lineage.get(depth));
        let heaviest = branches.max_by_key(|branch| {
            let weight: u64 = branch.iter().map(|(_, share)| share.weight).sum();
            let oldest = branch.iter().map(|(_, share)| share.age).min();
            (weight, std::cmp::Reverse(oldest))
        })?;
        among = heaviest.iter().map(|(at, share)| (*at, *share)).collect();
        if among.iter().all(|(_, share)| share.lineage.len() <= depth) {
            break;
        }
    }
    among.into_iter().min_by_key(|(_, share)| share.age).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn lineages(urls: &[String]) -> Vec<Lineage> {
        let root = |url: &String| Target::from_url(url).unwrap();
        urls.iter().map(root).map(|at| lineage(at.origin(), at.path())).collect()
    }

    fn first(urls: &[String]) -> Option<usize> {
        let lineages = lineages(urls);
        let shares = lineages.iter().enumerate();
        let shares: Vec<Share<'_, usize>> =
            shares.map(|(age, lineage)| Share { lineage, weight: 1, age }).collect();
        first_to_go(&shares)
    }

    #[test]
    fn neither_hosts_nor_directories_make_a_neighbour_give_way() {
        let archive: Vec<String> =
            (0..12).map(|n| format!("https://example.org/debian/{n}/")).collect();
        let hosts = (0..20).map(|n| format!("https://a{n}.evil.example.com/"));
        let directories = (0..20).map(|n| format!("https://example.org/~mallory/{n}/"));
        for strangers in [hosts.collect::<Vec<_>>(), directories.collect()] {
            let all = [archive.clone(), strangers].concat();
            assert!(first(&all).unwrap() >= archive.len());
        }
    }

    #[test]
    fn of_equals_the_oldest_goes() {
        assert_eq!(first(&[]), None);
        let same = vec!["https://example.org/a/".to_owned(); 3];
        assert_eq!(first(&same), Some(0));
        let other = "https://example.net/".to_owned();
        assert_eq!(first(&[other, same[0].clone()]), Some(0));
        // The files directly in a directory are a branch, too.
        let nested = ["/", "/a/", "/a/b/"].map(|path| format!("https://example.org{path}"));
        assert_eq!(first(&nested), Some(1));
    }
}
