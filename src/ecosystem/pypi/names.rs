//! Names of projects and of their files.
//!
//! A topic is the normalised name of a project (PEP 503). An index knows its project, but a request for a file has only
//! the file's name, and the name of a source distribution can be split in more than one way:
//! `python-3parclient-4.2.tar.gz` may belong to `python` or to `python-3parclient`. So a file name yields every
//! plausible project, up to a limit. An index about a project has authority over that project's files only (see
//! `owner`).
//!
//! Sources: PEP 503 (normalisation), PEP 508 (names), PEP 427 and 491 (wheels), PEP 625 (source distributions), the
//! setuptools documentation (eggs).

/// The maximum number of projects that one file name may yield. Real names have one or two splits.
const MAX_PROJECTS: usize = 4;

/// The maximum length of a project name. The longest real ones have about 80 letters; file systems limit a file name to
/// 255.
const MAX_NAME: usize = 255;

/// The suffixes of source distributions. Indexes have long refused `.exe`, `.msi` and `.rpm`.
const ARCHIVES: [&str; 6] = [".tar.gz", ".zip", ".tar.bz2", ".tgz", ".tar.xz", ".tar.Z"];

/// The suffix of the metadata file of a distribution file (PEP 658).
pub(super) const METADATA: &str = ".metadata";

/// Normalises a project's name (PEP 503): lower case, and each run of `-`, `_` and `.` becomes a single `-`.
pub(super) fn normalise(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if !matches!(c, '-' | '_' | '.') {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out
}

/// Whether `name` is a valid project name (PEP 508): letters, digits, `-`, `_` and `.`, with a letter or digit at both
/// ends.
pub(super) fn is_project(name: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    name.len() <= MAX_NAME
        && name.starts_with(ends)
        && name.ends_with(ends)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether `file` is a well-formed wheel name: five parts, or six of which the third is a build number.
pub(super) fn is_wheel(file: &str) -> bool {
    wheel_project(file).is_some()
}

/// The normalised names of the projects that `file` may belong to, the likeliest first; empty if it is not the name of
/// a distribution file.
pub(super) fn projects(file: &str) -> Vec<String> {
    if let Some(project) = wheel_project(file).or_else(|| egg_project(file)) {
        return vec![normalise(project)];
    }
    let Some(stem) = ARCHIVES.iter().find_map(|end| file.strip_suffix(end)) else {
        return Vec::new();
    };
    let mut found: Vec<String> = Vec::new();
    // From the right, because versions with a dash before a digit (`1.0-1`) are older than such project names.
    for (at, _) in stem.rmatch_indices('-') {
        let Some((project, version)) = stem.split_at_checked(at) else {
            continue;
        };
        let version = version.trim_start_matches('-');
        if is_project(project) && is_version(version) {
            let project = normalise(project);
            if !found.contains(&project) {
                found.push(project);
            }
        }
        if found.len() == MAX_PROJECTS {
            break;
        }
    }
    found
}

/// The project under which an index about `page` may claim `file`: `page`, if the file belongs to it. Otherwise the
/// index has no authority over the file, so that a publisher of one project cannot block another; clients ignore such a
/// link too. A page of links is about no project; its authority is limited by its directory.
pub(super) fn project_of(file: &str, page: Option<&str>) -> Option<String> {
    let found = projects(file);
    match page {
        Some(page) => (owner(file, &found)? == page).then(|| page.to_owned()),
        None => found.into_iter().next(),
    }
}

/// The owner of `file` among `found`, the projects that it may belong to. A dash before a number separates a project
/// from its version, or a version from its post-release. Of several splits of a source distribution's name, the first
/// one whose rest is a valid PEP 440 version wins, because such versions are more common than project names that end
/// like a version.
fn owner<'a>(file: &str, found: &'a [String]) -> Option<&'a String> {
    let stem = ARCHIVES.iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    let splits = || stem.match_indices('-').filter_map(|(at, _)| stem.split_at_checked(at));
    let may_own = |project: &&String| {
        let own = |(name, rest): (&str, &str)| {
            normalise(name) == **project && is_pep_440(rest.trim_start_matches('-'))
        };
        splits().any(own)
    };
    found.iter().rev().find(may_own).or_else(|| found.first())
}

/// Whether `version` is a valid PEP 440 version, dashes included: a release, then pre-release, post-release (which may
/// be a bare number), development release and local version parts.
fn is_pep_440(version: &str) -> bool {
    let lower = version.to_ascii_lowercase();
    let public = lower.split_once('+').map_or(&*lower, |(public, _)| public);
    let public = public.strip_prefix('v').unwrap_or(public);
    let release = public.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '!'));
    // The rest must consist of known words, numbers and separators. A bare number needs a dash before it.
    let mut rest = release;
    while !rest.is_empty() {
        let behind = rest.trim_start_matches(['-', '_', '.']);
        let word = WORDS.iter().find_map(|word| behind.strip_prefix(word));
        let after = match word {
            Some(after) => after.trim_start_matches(['-', '_', '.']),
            None if rest.starts_with('-') && behind.starts_with(|c: char| c.is_ascii_digit()) => {
                behind
            }
            None => return false,
        };
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    !public.is_empty()
}

/// The words of PEP 440, longer ones before their prefixes.
const WORDS: [&str; 12] =
    ["alpha", "beta", "preview", "post", "pre", "dev", "rev", "rc", "a", "b", "c", "r"];

/// Whether `text` looks like a version: it begins with a digit (PEP 440), perhaps after a `v`. Otherwise
/// `tool-latest.zip` would count as a file that never changes.
fn is_version(text: &str) -> bool {
    text.strip_prefix(['v', 'V']).unwrap_or(text).starts_with(|c: char| c.is_ascii_digit())
}

fn wheel_project(file: &str) -> Option<&str> {
    let parts: Vec<&str> = file.strip_suffix(".whl")?.splitn(7, '-').collect();
    let tags = match parts.as_slice() {
        [_, _, tags @ ..] if tags.len() == 3 => tags,
        [_, _, build, tags @ ..] if tags.len() == 3 && is_version(build) => tags,
        _ => return None,
    };
    let (project, version) = (parts.first()?, parts.get(1)?);
    let well_formed = is_project(project)
        && is_version(version)
        && tags.iter().all(|tag| {
            !tag.is_empty()
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
        });
    well_formed.then_some(*project)
}

/// In an egg's name, a dash of the project's name is written as an underscore, so the first dash ends the project.
fn egg_project(file: &str) -> Option<&str> {
    let (project, rest) = file.strip_suffix(".egg")?.split_once('-')?;
    (is_project(project) && is_version(rest)).then_some(project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised_as_pep_503_says() {
        for (name, expected) in [
            ("friendly-bard", "friendly-bard"),
            ("Friendly-Bard", "friendly-bard"),
            ("FRIENDLY-BARD", "friendly-bard"),
            ("friendly.bard", "friendly-bard"),
            ("friendly_bard", "friendly-bard"),
            ("friendly--bard", "friendly-bard"),
            ("FrIeNdLy-._.-bArD", "friendly-bard"),
            ("a1", "a1"),
        ] {
            assert_eq!(normalise(name), expected);
        }
        for good in ["a", "A1", "zope.interface", "ruamel.yaml.clib", "x-_.y"] {
            assert!(is_project(good), "{good}");
        }
        for bad in ["", "-a", "a-", ".a", "a b", "a/b", "a%2f", "é", "a\u{301}"] {
            assert!(!is_project(bad), "{bad}");
        }
        assert!(!is_project(&"a".repeat(MAX_NAME + 1)));
    }

    #[test]
    fn a_file_name_gives_its_projects() {
        for (file, expected) in [
            ("idna-3.9-py3-none-any.whl", &["idna"][..]),
            (
                "Foo_Bar-1.0-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                &["foo-bar"],
            ),
            ("torch-2.1.0+cu121-cp310-cp310-linux_x86_64.whl", &["torch"]),
            ("zope.interface-5.0-py3-none-any.whl", &["zope-interface"]),
            ("pkg-1!2.0-py3-none-any.whl", &["pkg"]),
            ("foo-bar-1.0.tar.gz", &["foo-bar"]),
            ("Foo.Bar-1.0.zip", &["foo-bar"]),
            ("foo-v1.0.tgz", &["foo"]),
            ("python-3parclient-4.2.tar.gz", &["python-3parclient", "python"]),
            ("foo-1.0-1.tar.bz2", &["foo-1-0", "foo"]),
            ("a-1-2-3-4-5-6.tar.xz", &["a-1-2-3-4-5", "a-1-2-3-4", "a-1-2-3", "a-1-2"]),
            ("setuptools-0.6c11-py2.7.egg", &["setuptools"]),
            ("my_pkg-1.0-py2.7-linux-x86_64.egg", &["my-pkg"]),
        ] {
            assert_eq!(projects(file), expected, "{file}");
        }
    }

    /// Row 7 of issue 10.
    #[test]
    fn a_page_speaks_for_files_of_its_own_project_only() {
        for (file, owner) in [
            ("idna-3.9-py3-none-any.whl", Some("idna")),
            ("Foo_Bar-1.0-1-cp311-cp311-linux_x86_64.whl", Some("foo-bar")),
            ("gear-box-0.9.tar.gz", Some("gear-box")),
            ("gear.box-0.9rc1.zip", Some("gear-box")),
            ("my_pkg-1.0-py2.7-linux-x86_64.egg", Some("my-pkg")),
            ("python-3parclient-4.2.tar.gz", Some("python-3parclient")),
            ("foo-2-1.0.tar.gz", Some("foo-2")),
            ("foo-1.0-rc1.tar.gz", Some("foo")),
            ("foo-nightly-20240101.tar.gz", Some("foo-nightly")),
            ("foo-1.0-1.tar.bz2", Some("foo")),
            ("foo-1.0-2-dev.tar.gz", Some("foo")),
            ("foo-1.0-beta-2.tar.gz", Some("foo")),
            ("foo-latest.tar.gz", None),
        ] {
            for page in projects(file).iter().map(String::as_str).chain(["foo", "gear", "mallory"])
            {
                let expected = owner.filter(|owner| *owner == page);
                assert_eq!(project_of(file, Some(page)).as_deref(), expected, "{file} on {page}");
            }
        }
        // A page of links is about no project; its root limits its authority.
        assert_eq!(project_of("gear-box-0.9.tar.gz", None).as_deref(), Some("gear-box"));
    }

    #[test]
    fn what_is_not_a_distribution_file_gives_none() {
        for file in [
            "",
            ".whl",
            "foo.whl",
            "foo-1.0.whl",
            "foo-1.0-py3-none.whl",
            "foo-1.0-x-py3-none-any.whl",
            "foo-1.0-1-2-py3-none-any.whl",
            "foo-latest-py3-none-any.whl",
            "foo-1.0-py3--any.whl",
            "foo-1.0-py3-none-any.whl.asc",
            "foo-1.0.exe",
            "foo.tar.gz",
            "foo-latest.tar.gz",
            "-1.0.tar.gz",
            "a b-1.0.tar.gz",
            "node_1.0.orig.tar.gz",
            "index.html",
        ] {
            assert!(projects(file).is_empty(), "{file}");
        }
    }

    proptest! {
        /// Otherwise a claim would be made that no request for its file could find.
        #[test]
        fn index_and_file_meet(
            page in "[A-Za-z0-9]([A-Za-z0-9._-]{0,12}[A-Za-z0-9])?",
            version in "[0-9v.+!-]{0,12}",
            end in prop::sample::select(vec![
                ".tar.gz", ".zip", ".tgz", ".egg", "-py3-none-any.whl", "-1-cp3-abi3-win32.whl", ".exe",
            ]),
        ) {
            let file = format!("{page}-{version}{end}");
            let on_file = projects(&file);
            prop_assert!(on_file.len() <= MAX_PROJECTS);
            for page in [Some(normalise(&page)), Some("another".into()), None] {
                match project_of(&file, page.as_deref()) {
                    Some(project) => {
                        prop_assert!(on_file.contains(&project));
                        prop_assert!(page.is_none_or(|page| page == project));
                    }
                    None => prop_assert!(on_file.is_empty() || page.is_some()),
                }
            }
        }

        #[test]
        fn any_name_may_be_asked_about(file in any::<String>()) {
            for project in projects(&file) {
                prop_assert_eq!(normalise(&project), project.clone());
                prop_assert!(is_project(&project));
            }
        }
    }
}
