//! Determines which of a package's documents a client requests.
//!
//! One URL serves the full document or the abbreviated one for installing, selected by `Accept`. Mirrors omit `Vary`,
//! so the class of `Accept` is part of the key. As in every ecosystem, a class stands for requests that every server
//! answers alike. A request that fits no class is an unknown resource, whose key contains the header itself.
//!
//! What clients send: `npm ci`, npm up to 10, yarn 1, pnpm and bun `application/vnd.npm.install-v1+json; q=1.0,
//! application/json; q=0.8, */*`; `npm install` and `npm view` of npm 11 `application/json`; yarn 2 and later no
//! `Accept` at all.

use crate::ecosystem::Variant;
use crate::ecosystem::ranges::weights;

/// The type of an abbreviated document.
pub(super) const TYPE_INSTALL: &str = "application/vnd.npm.install-v1+json";

/// The abbreviated document, or else the full one.
pub(super) const INSTALL: Variant = Variant {
    name: "install",
    accept: "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*",
};
/// Only the abbreviated document: a server that has none may answer 406.
pub(super) const INSTALL_ONLY: Variant = Variant { name: "install-only", accept: TYPE_INSTALL };
/// The full document.
pub(super) const FULL: Variant = Variant { name: "full", accept: "application/json" };

/// Every class.
pub(super) const CLASSES: [Variant; 4] = [INSTALL, INSTALL_ONLY, FULL, Variant::ANY];

/// The class of an `Accept` header; `None` if it fits no class exactly.
pub(super) fn classify(accept: &str) -> Option<Variant> {
    if accept.trim().is_empty() {
        return Some(Variant::ANY);
    }
    let [install, json, any] = weights(accept, [TYPE_INSTALL, "application/json", "*/*"])?;
    // A named range precedes `*/*` of the same weight, because it is more specific (RFC 9110 §12.5.1). If two named
    // ranges have the same weight, the server chooses; such a header fits no class.
    match (install, json, any) {
        (1.., 0, 0) => Some(INSTALL_ONLY),
        (1.., ..) if install > json && install >= any => Some(INSTALL),
        (0, 1.., 0) => Some(FULL),
        (0, 0, 1..) => Some(Variant::ANY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(accept: &str) -> Option<&'static str> {
        classify(accept).map(|variant| variant.name)
    }

    #[test]
    fn real_clients_are_classified() {
        for (who, accept, expected) in [
            (
                "npm ci, npm 6 to 10, yarn 1, pnpm, bun",
                "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*",
                "install",
            ),
            ("npm 11 install, npm view", "application/json", "full"),
            ("yarn 4", "", "any"),
            ("curl", "*/*", "any"),
            ("a script", TYPE_INSTALL, "install-only"),
        ] {
            assert_eq!(class(accept), Some(expected), "{who}");
        }
    }

    #[test]
    fn a_fill_is_of_its_own_class() {
        for variant in CLASSES {
            assert_eq!(classify(variant.accept), Some(variant));
        }
    }

    #[test]
    fn weights_decide_and_order_does_not() {
        assert_eq!(class("*/*;q=0.1,APPLICATION/vnd.npm.install-v1+json;q=0.9"), Some("install"));
        assert_eq!(
            class("application/json, application/vnd.npm.install-v1+json;q=0"),
            Some("full")
        );
    }

    /// Two clients that a server may answer differently never share a class, so these headers fit none.
    #[test]
    fn what_fits_no_class_is_not_merged() {
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/json, text/plain, */*",
            "application/json, */*;q=0.1",
            "application/json, */*",
            "application/json, application/vnd.npm.install-v1+json",
            "application/json, application/vnd.npm.install-v1+json;q=0.5",
            "*/*, application/vnd.npm.install-v1+json;q=0.5",
            "application/vnd.npm.install-v2+json",
            "application/vnd.npm.install-v1+json;charset=utf-8",
            "application/json, application/json",
            "application/json;q=0",
            "*/*;q=0",
            ";",
        ] {
            assert_eq!(class(accept), None, "{accept}");
        }
    }
}
