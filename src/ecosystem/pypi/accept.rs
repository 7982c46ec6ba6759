//! Determines which form of a simple index a client requests.
//!
//! One URL serves JSON or two types of HTML (PEP 691 content negotiation), and real mirrors omit `Vary`, so the class
//! of `Accept` is always part of the key. A class stands for requests that every server answers alike: same first
//! choice, same willingness to take something else. A fill sends the header of its class. An `Accept` that fits no
//! class exactly (a browser's, a tie, another type) is not recognised: the request is an unknown resource, whose key
//! contains the header itself. Splitting too much only costs a miss; merging too much would give a client a type that
//! it cannot read.
//!
//! What clients send: pip ≥ 22.2 `v1+json, v1+html; q=0.1, text/html; q=0.01`; uv the same with 0.2 and 0.01; poetry
//! only `v1+json` to its default index and `v1+json, */*;q=0.1` to others; older pip, and uv for link pages,
//! `text/html`; curl and most libraries `*/*`.

use crate::ecosystem::Variant;
use crate::ecosystem::ranges::weights;

/// The type of a JSON page (PEP 691).
pub(super) const TYPE_JSON: &str = "application/vnd.pypi.simple.v1+json";
/// The type of an HTML page (PEP 691).
pub(super) const TYPE_HTML: &str = "application/vnd.pypi.simple.v1+html";

/// JSON, or else any HTML: pip, uv, poetry.
pub(super) const JSON: Variant = Variant {
    name: "json",
    accept: "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01",
};
/// Only JSON: a server that has none may answer 406 (PEP 691), which must not become an HTML page.
pub(super) const JSON_ONLY: Variant = Variant { name: "json-only", accept: TYPE_JSON };
/// Versioned HTML, or else the plain type.
pub(super) const HTML: Variant =
    Variant { name: "html", accept: "application/vnd.pypi.simple.v1+html, text/html;q=0.01" };
/// Plain HTML as in PEP 503.
pub(super) const LEGACY: Variant = Variant { name: "legacy", accept: "text/html" };

/// Every class.
pub(super) const CLASSES: [Variant; 5] = [JSON, JSON_ONLY, HTML, LEGACY, Variant::ANY];

/// The class of an `Accept` header; `None` if it fits no class exactly.
pub(super) fn classify(accept: &str) -> Option<Variant> {
    if accept.trim().is_empty() {
        return Some(Variant::ANY);
    }
    let [json, html, text, any] = weights(accept, [TYPE_JSON, TYPE_HTML, "text/html", "*/*"])?;
    // A server that supports every type follows the highest weight. A tie is the server's choice, so it fits no class.
    let rest = html.max(text).max(any);
    match (json, html, text, any) {
        (1.., 0, 0, 0) => Some(JSON_ONLY),
        (1.., ..) if json > rest => Some(JSON),
        (0, 1.., ..) if html > text.max(any) && text.max(any) > 0 => Some(HTML),
        (0, 0, 1.., 0) => Some(LEGACY),
        (0, 0, 0, 1..) => Some(Variant::ANY),
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
                "pip 23",
                "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01",
                "json",
            ),
            (
                "uv",
                "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01",
                "json",
            ),
            ("poetry, other index", "application/vnd.pypi.simple.v1+json, */*;q=0.1", "json"),
            ("poetry, default index", "application/vnd.pypi.simple.v1+json", "json-only"),
            ("pip 21, uv's link pages", "text/html", "legacy"),
            ("curl", "*/*", "any"),
            ("no header", "", "any"),
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
        assert_eq!(
            class("text/html;q=0.01,  APPLICATION/vnd.pypi.simple.v1+JSON ;Q=0.9"),
            Some("json")
        );
        assert_eq!(class("application/vnd.pypi.simple.v1+html, text/html;q=0.5"), Some("html"));
        assert_eq!(class("application/vnd.pypi.simple.v1+json;q=0, text/html"), Some("legacy"));
        assert_eq!(
            class("application/vnd.pypi.simple.v1+json, text/html;q=0.000"),
            Some("json-only")
        );
    }

    /// Two clients that a server may answer differently never share a class, so these headers fit none.
    #[test]
    fn what_fits_no_class_is_not_merged() {
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
            "application/json",
            "application/vnd.pypi.simple.latest+json",
            "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v2+json",
            "application/vnd.pypi.simple.v1+json, text/html",
            "application/vnd.pypi.simple.v1+json;q=0.1, text/html",
            "application/vnd.pypi.simple.v1+html",
            "application/vnd.pypi.simple.v1+html;q=0.5, text/html",
            "*/*, text/html;q=0.5",
            "text/html;level=1",
            "text/html;q=2",
            "text/html;q=1.001",
            "text/html;q=0.0001",
            "text/html;q=-1",
            "text/html;q=",
            "text/html, text/html;q=0.5",
            "text/html;q=0, text/html",
            "text/html, */*;q=0.1",
            "text/*",
            "*/*;q=0",
            ";;;",
            "é",
        ] {
            assert_eq!(class(accept), None, "{accept}");
        }
    }
}
