//! Fuzz targets: arbitrary bytes, and what must hold for the result.

use url::{Position, Url};

use super::body::Changing;
use super::path;
use super::rewrite::LinkRewriter;
use crate::config::Config;
use crate::ecosystem::fuzz::Body;
use crate::ecosystem::links::{Links, Step};
use crate::target::Target;

/// All fuzz targets.
pub const BODIES: &[Body] = &[
    Body { name: "mirrored", run: mirrored },
    Body { name: "mirrored_names", run: mirrored_names },
];

/// The places of addresses in npm's and PyPI's documents.
const PATTERNS: &[&[Step]] = &[
    &[Step::Member("versions"), Step::Any, Step::Member("dist"), Step::Member("tarball")],
    &[Step::Member("files"), Step::Each, Step::Member("url")],
];

/// Arbitrary bytes as a document whose links are rewritten: the result must not depend on how it is cut into pieces.
/// The first byte selects the cut.
///
/// # Panics
///
/// If it does.
pub fn mirrored(bytes: &[u8]) {
    let Some((first, document)) = bytes.split_first() else { return };
    let at = usize::from(*first).min(document.len());
    for links in [Links::Html, Links::Json { ways: PATTERNS, take_login: false }] {
        let whole = changed(links, [document]);
        let (one, two) = document.split_at(at);
        assert_eq!(changed(links, [one, two]), whole, "cut at {at}");
        assert_eq!(changed(links, document.chunks(1)), whole, "cut everywhere");
    }
}

/// Arbitrary text as a path, and as a link in a page: the rewritten path must name the host that the link names.
///
/// # Panics
///
/// If a link leads to another host in mirror form than it names.
pub fn mirrored_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mirror = Config::default().mirror;
    if let Ok(uri) = format!("/{text}").parse() {
        let _read = path::read(&mirror, &uri);
    }
    let Some((page, lead)) = lead() else { return };
    let (Some(path), Some(meant)) = (lead.path(&text), page.join(&text)) else { return };
    if !path.starts_with('/') {
        assert!(path.starts_with("https://") && text.contains("//"), "{text:?} became {path}");
        return;
    }
    // As the client resolves it before it sends the request.
    let asked = Url::parse("http://larder:3142/").and_then(|own| own.join(&path)).ok();
    let Some(Ok(uri)) =
        asked.map(|asked| asked[Position::BeforePath..Position::AfterQuery].parse())
    else {
        return;
    };
    let named = path::read(&mirror, &uri).ok().flatten().map(|place| place.target);
    assert_eq!(named.as_ref().map(Target::origin), Some(meant.origin()), "{text:?} became {path}");
}

fn lead() -> Option<(Target, LinkRewriter)> {
    let page = Target::from_url("https://example.org/simple/widget/")?;
    let lead = LinkRewriter::from(&page, "http://larder:3142", false, false)?;
    Some((page, lead))
}

fn changed<'a>(links: Links, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some((_, lead)) = lead() {
        let mut changing = Changing::new(links, lead);
        for piece in pieces {
            changing.push(piece, &mut out);
        }
        changing.finish(&mut out);
    }
    out
}
