//! Determines which manifest of a tag a client accepts.
//!
//! A tag may stand for an index of many platforms or for one image. A registry decides by the types in `Accept`, and
//! sends a client that does not accept indexes another document under the same URL. It considers only the set of types,
//! neither their order nor their weights. So the set is the class: one of 2⁹, and there are as many entries as clients
//! differ. An `Accept` with another type or with weights fits no class: the request is an unknown resource, whose key
//! contains the header itself.
//!
//! What clients send: containerd both Docker types, both OCI types and `*/*`; docker those four, two of schema 1 and
//! `application/json`; podman, buildah and skopeo the four and two of schema 1; helm and oras the four and the artifact
//! manifest; Homebrew only the OCI index.

use std::sync::OnceLock;

use crate::ecosystem::Variant;
use crate::ecosystem::ranges::ranges;

/// The types of manifests, each with its name in a class. In alphabetical order of the names.
const TYPES: [(&str, &str); 9] = [
    ("any", "*/*"),
    ("artifact", "application/vnd.oci.artifact.manifest.v1+json"),
    ("docker-list", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ("docker-manifest", "application/vnd.docker.distribution.manifest.v2+json"),
    ("json", "application/json"),
    ("oci-index", "application/vnd.oci.image.index.v1+json"),
    ("oci-manifest", "application/vnd.oci.image.manifest.v1+json"),
    ("schema1", "application/vnd.docker.distribution.manifest.v1+json"),
    ("schema1-signed", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
];

/// The number of sets of these types.
const SETS: usize = 1 << TYPES.len();

/// The name and the header of each class, once it was used.
static CLASSES: [OnceLock<(String, String)>; SETS] = [const { OnceLock::new() }; SETS];

/// The class of an `Accept` header; `None` if it fits no class exactly. A missing header is a class of its own, because
/// registries take it as the sign of a client older than indexes.
pub(super) fn classify(accept: &str) -> Option<Variant> {
    let mut set = 0;
    for range in ranges(accept) {
        let (name, 1000) = range? else { return None };
        set |= 1 << TYPES.iter().position(|(_, kind)| *kind == name)?;
    }
    class(set)
}

/// The class of all types whose digest is that of their bytes: larder fetches manifests by digest with it.
pub(super) fn every_manifest() -> Variant {
    const EVERY: usize = 0b0_0110_1111;
    Variant { name: "", ..class(EVERY).unwrap_or(Variant::ONLY) }
}

/// The class with the name `name`.
pub(super) fn by_name(name: &str) -> Option<Variant> {
    let set = name.split('+').try_fold(0, |set, part| {
        let position = TYPES.iter().position(|(short, _)| *short == part)?;
        Some(set | 1 << position)
    });
    class(if name == NOTHING { 0 } else { set? })
}

/// The name of the class for a missing header.
const NOTHING: &str = "nothing";

fn class(set: usize) -> Option<Variant> {
    let (name, accept) = CLASSES.get(set)?.get_or_init(|| {
        let members = || TYPES.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
        let names: Vec<&str> = members().map(|(_, (name, _))| *name).collect();
        let kinds: Vec<&str> = members().map(|(_, (_, kind))| *kind).collect();
        let name = if set == 0 { NOTHING.to_owned() } else { names.join("+") };
        (name, kinds.join(", "))
    });
    Some(Variant { name, accept })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINERD: &str = "application/vnd.docker.distribution.manifest.v2+json, \
        application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
        application/vnd.oci.image.index.v1+json, */*";

    fn class_of(accept: &str) -> Option<&'static str> {
        classify(accept).map(|variant| variant.name)
    }

    #[test]
    fn real_clients_are_classified() {
        let docker = TYPES.iter().filter(|(name, _)| !["any", "artifact"].contains(name));
        let docker: Vec<&str> = docker.map(|(_, kind)| *kind).collect();
        for (who, accept, expected) in [
            ("containerd", CONTAINERD, "any+docker-list+docker-manifest+oci-index+oci-manifest"),
            (
                "docker",
                &docker.join(","),
                "docker-list+docker-manifest+json+oci-index+oci-manifest+schema1+schema1-signed",
            ),
            ("Homebrew", "application/vnd.oci.image.index.v1+json", "oci-index"),
            ("curl", "*/*", "any"),
            ("no header", "", "nothing"),
        ] {
            assert_eq!(class_of(accept), Some(expected), "{who}");
        }
    }

    #[test]
    fn order_and_case_make_no_class() {
        let mut kinds: Vec<&str> = CONTAINERD.split(", ").collect();
        kinds.reverse();
        assert_eq!(class_of(&kinds.join(" ,").to_uppercase()), class_of(CONTAINERD));
    }

    #[test]
    fn a_fill_is_of_its_own_class() {
        for set in 0..SETS {
            let class = class(set).unwrap();
            assert_eq!(classify(class.accept), Some(class));
            assert_eq!(by_name(class.name), Some(class));
        }
        assert!(by_name("").is_none() && by_name("oci").is_none());
    }

    /// Schema 1, which an old registry would send, has no digest of its own bytes.
    #[test]
    fn schema_1_is_not_asked_for_by_digest() {
        let every = every_manifest();
        let names = class_of(every.accept);
        assert_eq!(names, Some("any+artifact+docker-list+docker-manifest+oci-index+oci-manifest"));
    }

    /// A client that a registry may answer differently never shares a class.
    #[test]
    fn what_fits_no_class_is_not_merged() {
        for accept in [
            "application/vnd.npm.install-v1+json",
            "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.index.v2+json",
            "application/vnd.oci.image.index.v1+json;q=0.5",
            "application/vnd.oci.image.index.v1+json, */*;q=0",
            "application/vnd.oci.image.index.v1+json;charset=utf-8",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        ] {
            assert_eq!(class_of(accept), None, "{accept}");
        }
    }
}
