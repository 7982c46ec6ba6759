//! Parses an apk package (v2), and checks that its parts belong together.
//!
//! ```text
//! member 0    .SIGN.RSA.<key>, …        the builder's signature, over the raw control part
//! member 1    .PKGINFO, scripts         the control part: an index names its digest; its datahash names the data
//! member 2    the files                 the data: the SHA-256 of its raw bytes is the datahash
//! ```
//!
//! An index promises the digest of the control part and the length of the whole file. So a package matches if the
//! control part has that digest, the data has the digest that the control part names, and the file contains nothing
//! else but the signature in front. No promise covers that signature: two builders may sign the same package. An
//! unsigned package begins with the control part.

use aws_lc_rs::digest::{Context, SHA256};

use super::broken::Broken;
use super::members::{Members, Sink};
use super::signature::{Hashed, Hashes, MAX_MEMBER, Signatures};
use super::tar::{Files, Tar};
use crate::digest::{Algorithm, Content, Digest};
use crate::ecosystem::bounded::Over;

/// The maximum length of an expanded control part, in bytes. It holds some lines and scripts.
const MAX_CONTROL: u64 = 64 << 20;

/// The maximum length of the expanded data, in bytes. The data is not kept; it is expanded only to find its end. This
/// limit stops a decompression bomb after some ten seconds.
const MAX_DATA: u64 = 16 << 30;

/// The maximum length of `.PKGINFO`, in bytes.
const MAX_INFO: usize = 1 << 20;

/// Reads a package that arrives in pieces.
pub(super) struct Package {
    members: Members,
    parts: Parts,
    broken: Option<Broken>,
}

/// A package whose parts belong together.
pub(super) struct Whole {
    pub(super) signatures: Signatures,
    /// The hashes of the control part's raw bytes.
    pub(super) control: Hashed,
    pub(super) info: Info,
}

/// The fields of `.PKGINFO`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    datahash: String,
}

impl Package {
    pub(super) fn new() -> Self {
        Self { members: Members::new(), parts: Parts::new(), broken: None }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.broken = self.members.update(bytes, &mut self.parts).err();
        }
    }

    /// The package, if it is complete and consistent.
    pub(super) fn whole(self) -> Result<Whole, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let Parts { signatures, at, control, data, info, .. } = self.parts;
        let members = self.members.finish()?;
        if members != at + 2 {
            return Err(Broken::form(format!(
                "it has {members} gzip members, and not just a signature, a control part and data"
            )));
        }
        let text = info.ok_or_else(|| Broken::form("its control part has no .PKGINFO"))?;
        let info = Info::read(&text)?;
        let datahash = Digest::from_hex(Algorithm::Sha256, &info.datahash)
            .ok_or_else(|| Broken::form("its .PKGINFO has no datahash"))?;
        if data.finish().as_ref() != datahash.as_bytes() {
            return Err(Broken::form("its data do not have its datahash"));
        }
        Ok(Whole { signatures, control: control.finish(), info })
    }
}

impl Content for Package {
    fn update(&mut self, bytes: &[u8]) {
        self.take(bytes);
    }

    fn finish(self: Box<Self>) -> Result<Vec<Digest>, String> {
        let whole = self.whole().map_err(|broken| format!("not a v2 apk package: {broken}"))?;
        let digests = [
            Digest::new(Algorithm::Apk2Sha1, whole.control.sha1.as_ref()),
            Digest::new(Algorithm::Apk2Sha256, whole.control.sha256.as_ref()),
        ];
        Ok(digests.into_iter().flatten().collect())
    }
}

/// The state built from the members.
struct Parts {
    signatures: Signatures,
    /// Which member is the control part. It is assumed to be the first, until the first turns out to hold signatures.
    at: usize,
    tar: Tar,
    control: Hashes,
    data: Context,
    expanded: u64,
    /// `.PKGINFO`, and whether its bytes are arriving now.
    info: Option<Vec<u8>>,
    inside: bool,
}

impl Parts {
    fn new() -> Self {
        Self {
            signatures: Signatures::default(),
            at: 0,
            tar: Tar::new(),
            control: Hashes::new(),
            data: Context::new(&SHA256),
            expanded: 0,
            info: None,
            inside: false,
        }
    }
}

impl Sink for Parts {
    fn raw(&mut self, number: usize, bytes: &[u8]) {
        if number == self.at {
            self.control.update(bytes);
        } else if number == self.at + 1 {
            self.data.update(bytes);
        }
    }

    fn plain(&mut self, number: usize, bytes: &[u8]) -> Result<(), Broken> {
        self.expanded += bytes.len() as u64;
        let (limit, unit) = if number > self.at {
            (MAX_DATA, "expanded bytes of data")
        } else if self.signatures.lead() && number == 0 {
            (MAX_MEMBER, "expanded bytes of signatures")
        } else {
            (MAX_CONTROL, "expanded bytes of control")
        };
        if self.expanded > limit {
            return Err(Over { limit, unit }.into());
        }
        if number > self.at {
            return Ok(());
        }
        let mut tar = std::mem::replace(&mut self.tar, Tar::new());
        let read = tar.update(bytes, self);
        self.tar = tar;
        read
    }

    fn end(&mut self, number: usize) -> Result<(), Broken> {
        if number == 0 {
            self.signatures.end_member(&self.tar)?;
        } else if number == self.at {
            self.tar.finish()?;
        }
        if number > self.at + 1 {
            return Err(Broken::form("it has a gzip member behind its data"));
        }
        if number == 0 && self.signatures.lead() {
            // The first member held signatures, so the next one is the control part.
            self.at = 1;
            self.control = Hashes::new();
        }
        self.tar = Tar::new();
        self.expanded = 0;
        Ok(())
    }
}

impl Files for Parts {
    fn begin(&mut self, name: &str, size: u64) -> Result<(), Broken> {
        if self.at == 0 {
            self.signatures.begin(name, size)?;
            if self.signatures.lead() {
                return Ok(());
            }
        }
        self.inside = name == ".PKGINFO";
        if self.inside && self.info.replace(Vec::new()).is_some() {
            return Err(Broken::form("its control part has two files called .PKGINFO"));
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.at == 0 && self.signatures.lead() {
            return self.signatures.data(bytes);
        }
        if let Some(info) = self.info.as_mut().filter(|_| self.inside) {
            if info.len() + bytes.len() > MAX_INFO {
                return Err(Over { limit: MAX_INFO as u64, unit: "bytes of .PKGINFO" }.into());
            }
            info.extend(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        self.inside = false;
        self.signatures.end()
    }

    fn other(&mut self) -> Result<(), Broken> {
        if self.at == 0 { self.signatures.other() } else { Ok(()) }
    }
}

impl Info {
    /// Parses `key = value` lines. A second `datahash` is refused, because two parsers could then check different data.
    /// Two names are joined to a name that no file has.
    fn read(text: &[u8]) -> Result<Self, Broken> {
        let text =
            std::str::from_utf8(text).map_err(|_| Broken::form("its .PKGINFO is no text"))?;
        let mut info = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let place = match key.trim() {
                "pkgname" => &mut info.name,
                "pkgver" => &mut info.version,
                "arch" => &mut info.architecture,
                "datahash" => &mut info.datahash,
                _ => continue,
            };
            if !place.is_empty() {
                if key.trim() == "datahash" {
                    return Err(Broken::form("its .PKGINFO has datahash twice"));
                }
                place.push_str(" and ");
            }
            place.push_str(value.trim());
        }
        Ok(info)
    }
}
