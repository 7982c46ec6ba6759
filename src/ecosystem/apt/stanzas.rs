//! Parses Packages and Sources: the files of an archive, and their digests.
//!
//! They are read as a stream, line by line: a distribution's index has 50 MB, of which four fields matter. The first
//! stanza tells which of the two a document is: in Packages it has a `Filename`, in Sources a `Directory` and a list of
//! files. Other documents made of stanzas, such as a translation, are not read further.
//!
//! Source: the Debian repository format (wiki), deb822(5), Debian policy §5.4.

use std::io::{BufRead as _, BufReader, Read};

use crate::claim::{Claim, ClaimSink, Topic};
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::{Malformed, bounded};
use crate::target::{Root, Target};

/// The maximum length of a line, in bytes. The longest real ones, lists of dependencies, have some 50 KiB.
const MAX_LINE: u64 = 4 << 20;

/// The maximum number of files of one source package.
const MAX_FILES: usize = 1024;

/// How to resolve the names in an index.
#[derive(Debug)]
pub(super) struct Places {
    /// The directories that the names may be relative to, the archive's root first. For a flat archive also every
    /// directory above it, because the line in a client's configuration may begin at any of them.
    pub(super) bases: Vec<Root>,
    pub(super) topic: Topic,
}

/// Reads the claims of an index; returns whether it was one. `known`: its URL says that it is an index. Without that,
/// it may be any document of an archive, and a document that does not begin like an index is not one.
pub(super) fn read(
    index: impl Read,
    places: &Places,
    known: bool,
    out: &mut dyn ClaimSink,
) -> Result<bool, Malformed> {
    let mut stanzas = Stanzas::new(index);
    let mut any = false;
    loop {
        let stanza = match stanzas.next() {
            Err(Malformed::Shape { .. }) if !known && !any => return Ok(false),
            next => next?,
        };
        let Some(stanza) = stanza else {
            return Ok(any);
        };
        if !any && stanza.index().is_none() {
            return Ok(false);
        }
        any = true;
        stanza.claims(places, out)?;
    }
}

/// The name of an index that was fetched by-hash, from its first stanza; `None` if it is another document.
pub(super) fn name(index: impl Read) -> Result<Option<&'static str>, Malformed> {
    match Stanzas::new(index).next() {
        Err(Malformed::Shape { .. }) => Ok(None),
        first => Ok(first?.and_then(|stanza| stanza.index())),
    }
}

/// Iterates over the stanzas of an index.
struct Stanzas<R> {
    lines: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> Stanzas<R> {
    fn new(index: R) -> Self {
        Self { lines: BufReader::with_capacity(256 << 10, index), line: Vec::new() }
    }

    fn next(&mut self) -> Result<Option<Stanza>, Malformed> {
        let mut stanza = Stanza::default();
        loop {
            self.line.clear();
            let mut lines = self.lines.by_ref().take(MAX_LINE + 1);
            let read = lines.read_until(b'\n', &mut self.line).map_err(bounded::malformed)?;
            if read as u64 > MAX_LINE {
                return Err(Malformed::Limit { limit: MAX_LINE, unit: "bytes in a line" });
            }
            let text = self.line.trim_ascii_end();
            if !text.is_empty() {
                stanza.line(text)?;
            } else if stanza.begun {
                return Ok(Some(stanza));
            } else if read == 0 {
                return Ok(None);
            }
        }
    }
}

/// The fields of a stanza that larder uses.
#[derive(Debug, Default)]
struct Stanza {
    begun: bool,
    filename: Option<String>,
    size: Option<u64>,
    digests: Vec<Digest>,
    directory: Option<String>,
    files: Vec<(String, u64, Digest)>,
    /// The list to which the next lines belong.
    list: Option<Algorithm>,
    seen: u8,
}

/// The fields that must not be repeated, each with its bit in `seen`.
const FIELDS: [(&[u8], u8); 7] = [
    (b"filename", 1),
    (b"size", 2),
    (b"sha256", 4),
    (b"sha512", 8),
    (b"directory", 16),
    (b"checksums-sha256", 32),
    (b"checksums-sha512", 64),
];

impl Stanza {
    /// The name of the index that contains this stanza, if the stanza names files.
    fn index(&self) -> Option<&'static str> {
        if self.filename.is_some() {
            return Some("Packages");
        }
        (self.directory.is_some() || !self.files.is_empty()).then_some("Sources")
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Malformed> {
        self.begun = true;
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            return match self.list {
                Some(algorithm) => self.file(algorithm, line),
                None => Ok(()),
            };
        }
        self.list = None;
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Err(shape("a line without a colon", line));
        };
        let (field, value) = line.split_at_checked(colon).unwrap_or_default();
        let known = FIELDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(field));
        let Some((name, bit)) = known else {
            return Ok(());
        };
        if self.seen & bit != 0 {
            return Err(shape("a field stands twice", line));
        }
        self.seen |= bit;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let text = std::str::from_utf8(value).map_err(|_| shape("not UTF-8", line))?;
        match *name {
            b"filename" => self.filename = Some(text.to_owned()),
            b"directory" => self.directory = Some(text.to_owned()),
            b"size" => self.size = Some(text.parse().map_err(|_| shape("not a size", line))?),
            b"sha256" => self.digest(Algorithm::Sha256, text, line)?,
            b"sha512" => self.digest(Algorithm::Sha512, text, line)?,
            b"checksums-sha256" => self.list = Some(Algorithm::Sha256),
            _ => self.list = Some(Algorithm::Sha512),
        }
        Ok(())
    }

    fn digest(&mut self, algorithm: Algorithm, text: &str, line: &[u8]) -> Result<(), Malformed> {
        let digest =
            Digest::from_hex(algorithm, text).ok_or_else(|| shape("not a digest", line))?;
        self.digests.push(digest);
        Ok(())
    }

    /// Parses ` <hex> <size> <name>`, a file of a source package.
    fn file(&mut self, algorithm: Algorithm, line: &[u8]) -> Result<(), Malformed> {
        let text = std::str::from_utf8(line).map_err(|_| shape("not UTF-8", line))?;
        let mut words = text.split_whitespace();
        let (Some(hex), Some(size), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(shape("not a digest, a size and a name", line));
        };
        let digest = Digest::from_hex(algorithm, hex).ok_or_else(|| shape("not a digest", line))?;
        let size = size.parse().map_err(|_| shape("not a size", line))?;
        if name.contains('/') || self.files.len() >= MAX_FILES {
            return Err(shape("not a file of this package", line));
        }
        self.files.push((name.to_owned(), size, digest));
        Ok(())
    }

    fn claims(&self, places: &Places, out: &mut dyn ClaimSink) -> Result<(), Malformed> {
        if let Some(filename) = &self.filename
            && !self.digests.is_empty()
        {
            claim(places, filename, &self.digests, self.size, out)?;
        }
        // `apt-ftparchive` omits the directory if it is the archive's own.
        let directory = self.directory.as_deref().unwrap_or_default().trim_end_matches('/');
        let mut files = self.files.clone();
        files.sort();
        for of_one in files.chunk_by(|one, two| one.0 == two.0) {
            let digests: Vec<Digest> = of_one.iter().map(|file| file.2).collect();
            let Some((name, size, _)) = of_one.first() else {
                continue;
            };
            let path =
                if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            claim(places, &path, &digests, Some(*size), out)?;
        }
        Ok(())
    }
}

fn claim(
    places: &Places,
    name: &str,
    digests: &[Digest],
    size: Option<u64>,
    out: &mut dyn ClaimSink,
) -> Result<(), Malformed> {
    for base in &places.bases {
        if let Some(target) = under(base, name) {
            out.claim(Claim {
                target,
                topic: places.topic.clone(),
                digests: digests.to_vec(),
                size,
            })?;
        }
    }
    Ok(())
}

/// The file called `name` below `base`; `None` if the name leads outside. Characters that a URL does not allow are
/// percent-encoded, and so is `%` itself, because names in an index are not encoded.
pub(super) fn under(base: &Root, name: &str) -> Option<Target> {
    let name = name.trim_start_matches("./");
    if name.is_empty() || name.starts_with('/') {
        return None;
    }
    let mut path = base.path.to_string();
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\') {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push_str(&crate::digest::hex(&[byte]).to_ascii_uppercase());
        }
    }
    Target::new(base.origin.clone(), &path).ok()
}

fn shape(what: &str, line: &[u8]) -> Malformed {
    let line = String::from_utf8_lossy(line);
    let start: String = line.chars().take(80).filter(|c| !c.is_control()).collect();
    Malformed::Shape { expected: "index of packages", found: format!("{what}: {start}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn claims(text: &str) -> Result<(bool, Vec<String>), Malformed> {
        let at = Target::from_url("https://example.org/debian/").unwrap();
        let places = Places { bases: vec![Root::directory_of(&at)], topic: Topic::new("apt", "x") };
        let mut out: Vec<Claim> = Vec::new();
        let any = read(text.as_bytes(), &places, true, &mut out)?;
        let shown = |claim: &Claim| {
            format!("{} {} {:?}", claim.target.path(), claim.digests.len(), claim.size)
        };
        Ok((any, out.iter().map(shown).collect()))
    }

    #[test]
    fn packages_and_sources_name_their_files() {
        let packages = format!(
            "Package: g++\nDescription: a\n b\nFilename: pool/g++_1.deb\nSize: 3\nSHA256: {HEX}\nSHA512: {HEX}{HEX}\n\nPackage: b\nFilename: ./b_1.deb\nSHA256: {HEX}"
        );
        assert_eq!(
            claims(&packages).unwrap(),
            (
                true,
                vec![
                    "/debian/pool/g++_1.deb 2 Some(3)".to_owned(),
                    "/debian/b_1.deb 1 None".to_owned()
                ]
            )
        );
        let sources = format!(
            "Package: a\nDirectory: pool/a\nFiles:\n 00 1 a.dsc\nChecksums-Sha256:\n {HEX} 1 a.dsc\n {HEX} 2 a.tar.xz\nHomepage: x\n\n"
        );
        assert_eq!(
            claims(&sources).unwrap().1,
            ["/debian/pool/a/a.dsc 1 Some(1)", "/debian/pool/a/a.tar.xz 1 Some(2)"]
        );
        // As `apt-ftparchive` writes it for a flat archive.
        let flat = sources.replace("Directory: pool/a\n", "");
        assert_eq!(
            claims(&flat).unwrap(),
            (true, vec!["/debian/a.dsc 1 Some(1)".into(), "/debian/a.tar.xz 1 Some(2)".into()])
        );
        assert_eq!(claims("Package: a\nDescription-en: b\n\n").unwrap(), (false, vec![]));
        assert_eq!(claims("").unwrap(), (false, vec![]));
        for (text, called) in [
            (&*packages, Some("Packages")),
            (&*sources, Some("Sources")),
            (&*flat, Some("Sources")),
            // The first stanza decides; empty lines before it do not count as a stanza.
            (&*format!("\n\n{flat}\n{packages}"), Some("Sources")),
            ("Package: a\nDescription-en: b\n\n", None),
            ("bin/a  devel/a\n", None),
            ("", None),
        ] {
            assert_eq!(name(text.as_bytes()).unwrap(), called, "{text}");
        }
    }

    #[test]
    fn hostile_stanzas_are_malformed_or_name_nothing() {
        let file =
            |more: &str| format!("Package: a\nFilename: a_1.deb\nSize: 3\nSHA256: {HEX}\n{more}\n");
        for more in [
            format!("SHA256: {HEX}"),
            "Filename: b_1.deb".into(),
            "no colon".into(),
            "sha512: 00".into(),
        ] {
            assert!(claims(&file(&more)).is_err(), "{more}");
        }
        for name in ["../a_1.deb", "/etc/passwd", "a/../../b.deb", "%2e%2e/a.deb"] {
            let (_, named) = claims(&file("").replace("a_1.deb", name)).unwrap();
            assert!(named.iter().all(|claim| claim.starts_with("/debian/%252e")), "{named:?}");
        }
    }
}
