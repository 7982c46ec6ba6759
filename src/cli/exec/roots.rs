//! Root certificates for clients that read only the system's files: dnf, zypper, pacman, aria2, apk and tools built
//! on them.
//!
//! No variable reaches these clients. So a command that root starts gets a mount namespace of its own, in which
//! copies are mounted over the directories of the system's root certificates; the copies also contain larder's CA:
//!
//! ```text
//! /etc/ssl/certs ──copied──▶ …/exec-1/roots-0, with larder's CA ──mounted──▶ /etc/ssl/certs, for the command only
//!                                        └── what the command changed there ──put back when it ends──▶ /etc/ssl/certs
//! ```
//!
//! Whole directories are copied and mounted instead of single files: a file that is a mount point cannot be replaced,
//! so installing `ca-certificates` would fail in the command although it works without larder. What the command
//! changes in a copy is put back into the system's directory when it ends. larder's CA is not: the system's tools
//! generate their bundles from anchors, and larder's CA is never among these. For the same reason a bundle that the
//! command itself regenerates lacks the CA for the rest of that command.
//!
//! Mounts that the command makes end with it; it sees mounts that others make. Without root, or without the right to
//! mount (in most containers), there is no namespace, and such clients reject larder's certificates; the last line of
//! `larder exec` says so.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::cli::clients::bundle::SYSTEM_FILES;

/// A directory above these limits holds more than root certificates and is not copied. The largest directory of roots
/// that was seen has 600 files, and 2 MB.
const MAX_FILES: usize = 4096;
const MAX_BYTES: u64 = 32 << 20;

/// Programs that make mounts which must outlive them, or that start such programs.
const MOUNTING: [&str; 12] = [
    "buildah",
    "ctr",
    "docker",
    "dockerd",
    "containerd",
    "mount",
    "nerdctl",
    "nsenter",
    "podman",
    "systemctl",
    "umount",
    "unshare",
];

/// Whether a mount namespace would break the command.
pub(super) fn is_about_mounts(program: &Path) -> bool {
    program.file_name().and_then(|name| name.to_str()).is_some_and(|name| MOUNTING.contains(&name))
}

/// The copies to mount over the system's root certificates.
#[derive(Debug, Default)]
pub(super) struct Roots {
    directories: Vec<Copied>,
}

/// A directory of root certificates, and its copy.
#[derive(Debug)]
struct Copied {
    of: PathBuf,
    copy: PathBuf,
    /// The state of the copy when the command began, larder's CA included.
    before: BTreeMap<PathBuf, Stamp>,
    /// The files that larder added.
    own: Vec<PathBuf>,
}

/// Identifies the state of a file, to detect changes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stamp {
    File { inode: u64, size: u64, changed: (i64, i64) },
    Link(PathBuf),
    Directory,
}

impl Roots {
    /// Makes the copies below `directory`, with the roots of `bundle` in place of the system's, and adds `ca_pem`
    /// where certificates are found by the hash of their name. Directories that hold more than root certificates are
    /// left out. Blocking.
    pub(super) fn copy(directory: &Path, bundle: &[u8], ca_pem: &str) -> io::Result<Self> {
        Self::copy_of(&SYSTEM_FILES.map(PathBuf::from), directory, bundle, ca_pem)
    }

    fn copy_of(
        files: &[PathBuf],
        directory: &Path,
        bundle: &[u8],
        ca_pem: &str,
    ) -> io::Result<Self> {
        let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for file in files.iter().filter_map(|path| std::fs::canonicalize(path).ok()) {
            let Some(parent) = file.parent().filter(|parent| is_of_roots(parent)) else { continue };
            let within = found.entry(parent.to_owned()).or_default();
            if !within.contains(&file) {
                within.push(file);
            }
        }
        let mut directories = Vec::new();
        for (number, (of, files)) in found.into_iter().enumerate() {
            let copy = directory.join(format!("roots-{number}"));
            copy_all(&of, &copy)?;
            for file in files {
                replace(&copy.join(file.strip_prefix(&of).unwrap_or(&file)), bundle)?;
            }
            let own = add_by_hash(&copy, ca_pem)?;
            let before = stamps(&copy)?;
            directories.push(Copied { of, copy, before, own });
        }
        Ok(Self { directories })
    }

    /// Whether there is nothing to mount.
    pub(super) fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// Moves this thread into a mount namespace of its own and mounts the copies there. Commands that the thread
    /// starts are in it. The thread must not be used for anything else afterwards.
    pub(super) fn enter(&self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "what made it so is UnshareFlags::FILES, which is not used; its successor is `unsafe`, which is forbidden here"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)?;
        // Mounts made here do not propagate to other namespaces; mounts made there are seen here.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        for Copied { of, copy, .. } in &self.directories {
            mount_bind(copy, of)?;
        }
        Ok(())
    }

    /// Copies what the command changed back to the system's own directories. Blocking.
    pub(super) fn put_back(&self) -> io::Result<()> {
        let mut all = Ok(());
        for directory in &self.directories {
            let done = directory.put_back();
            all = all.and(done);
        }
        all
    }
}

impl Copied {
    fn put_back(&self) -> io::Result<()> {
        let now = stamps(&self.copy)?;
        // An error does not stop the others from being put back.
        let mut all = Ok(());
        // Directories are created before their content and removed after it.
        for (path, stamp) in
            now.iter().filter(|(path, stamp)| self.before.get(*path) != Some(stamp))
        {
            if !self.own.contains(path) {
                let done = put(&self.copy.join(path), &self.of.join(path), stamp);
                all = all.and(done);
            }
        }
        for (path, stamp) in self.before.iter().rev().filter(|(path, _)| !now.contains_key(*path)) {
            let path = self.of.join(path);
            let gone = match stamp {
                Stamp::Directory => std::fs::remove_dir(path),
                Stamp::File { .. } | Stamp::Link(_) => std::fs::remove_file(path),
            };
            let done = gone.or_else(|error| {
                if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
            });
            all = all.and(done);
        }
        all
    }
}

/// Whether a directory holds root certificates and little else, so that a copy can replace it.
fn is_of_roots(directory: &Path) -> bool {
    let shared =
        ["/", "/etc", "/etc/ssl", "/etc/pki", "/usr", "/var", "/var/lib", "/opt", "/home", "/root"];
    if shared.iter().any(|path| directory == Path::new(path)) {
        return false;
    }
    let mut left = (MAX_FILES, MAX_BYTES);
    walk(directory, Path::new(""), &mut |_, found| {
        left.0 = left.0.checked_sub(1).ok_or_else(too_much)?;
        left.1 = left
            .1
            .checked_sub(if found.is_file() { found.len() } else { 0 })
            .ok_or_else(too_much)?;
        Ok(())
    })
    .is_ok()
}

fn too_much() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}

/// Calls `each` with every path below `root` and its metadata, a directory before its content.
fn walk(
    root: &Path,
    at: &Path,
    each: &mut dyn FnMut(&Path, &Metadata) -> io::Result<()>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(at))? {
        let entry = entry?;
        let (path, found) = (at.join(entry.file_name()), entry.metadata()?);
        each(&path, &found)?;
        if found.is_dir() {
            walk(root, &path, each)?;
        }
    }
    Ok(())
}

fn copy_all(of: &Path, to: &Path) -> io::Result<()> {
    make(to, &std::fs::metadata(of)?)?;
    walk(of, Path::new(""), &mut |path, found| {
        let (from, to) = (of.join(path), to.join(path));
        if found.is_dir() {
            make(&to, found)
        } else if found.is_symlink() {
            symlink(std::fs::read_link(from)?, to)
        } else if found.is_file() {
            std::fs::copy(from, &to)?;
            std::os::unix::fs::chown(to, Some(found.uid()), Some(found.gid()))
        } else {
            Ok(())
        }
    })
}

fn make(directory: &Path, like: &Metadata) -> io::Result<()> {
    DirBuilder::new().mode(like.mode() & 0o7777).create(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(like.mode() & 0o7777))?;
    std::os::unix::fs::chown(directory, Some(like.uid()), Some(like.gid()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a copy for one command; it does not have to survive a crash"
)]
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::write(path, content)
}

fn stamps(root: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut stamps = BTreeMap::new();
    walk(root, Path::new(""), &mut |path, found| {
        let stamp = if found.is_dir() {
            Stamp::Directory
        } else if found.is_symlink() {
            Stamp::Link(std::fs::read_link(root.join(path))?)
        } else {
            let changed = (found.ctime(), found.ctime_nsec());
            Stamp::File { inode: found.ino(), size: found.size(), changed }
        };
        stamps.insert(path.to_owned(), stamp);
        Ok(())
    })?;
    Ok(stamps)
}

/// Replaces `to` by `from` with a rename, because others may be reading it.
#[expect(
    clippy::disallowed_methods,
    reason = "the system's files, which its own tools make no more durable"
)]
fn put(from: &Path, to: &Path, stamp: &Stamp) -> io::Result<()> {
    let unfinished = to.with_extension("larder-new");
    // A killed process may have left a symbolic link under this name, through which another file would be written.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match stamp {
        Stamp::Directory => {
            return if to.is_dir() { Ok(()) } else { make(to, &std::fs::metadata(from)?) };
        }
        Stamp::Link(target) => symlink(target, &unfinished)?,
        Stamp::File { .. } => {
            let found = std::fs::metadata(from)?;
            std::fs::copy(from, &unfinished)?;
            std::os::unix::fs::chown(&unfinished, Some(found.uid()), Some(found.gid()))?;
        }
    }
    std::fs::rename(&unfinished, to).inspect_err(|_| {
        // Leaves no temporary file behind.
        let _gone = std::fs::remove_file(&unfinished);
    })
}

/// Adds larder's CA to directories in which certificates are found by the hash of their name (OpenSSL's). Returns the
/// files that it made.
fn add_by_hash(root: &Path, ca_pem: &str) -> io::Result<Vec<PathBuf>> {
    let mut hashed = Vec::new();
    let note = |directory: &Path, hashed: &mut Vec<PathBuf>| {
        if !hashed.iter().any(|known| known == directory) {
            hashed.push(directory.to_owned());
        }
    };
    walk(root, Path::new(""), &mut |path, found| {
        let is_hash = |stem: &str| stem.len() == 8 && stem.bytes().all(|c| c.is_ascii_hexdigit());
        let named = path.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_hash);
        if !found.is_dir() && named && path.extension().is_some_and(|number| number == "0") {
            note(path.parent().unwrap_or_else(|| Path::new("")), &mut hashed);
        }
        Ok(())
    })?;
    let mut own = Vec::new();
    for block in pem::parse_many(ca_pem).unwrap_or_default() {
        let Some(hash) = name_hash(block.contents()) else { continue };
        for directory in &hashed {
            let free = (0..100_u32)
                .map(|number| directory.join(format!("{hash:08x}.{number}")))
                .find(|path| std::fs::symlink_metadata(root.join(path)).is_err());
            if let Some(path) = free {
                replace(&root.join(&path), pem::encode(&block).as_bytes())?;
                own.push(path);
            }
        }
    }
    Ok(own)
}

/// The hash of a certificate's subject by which OpenSSL looks it up (`X509_NAME_hash`): SHA-1 of the name with its
/// strings in UTF-8 and lower case, and runs of blanks collapsed.
fn name_hash(certificate: &[u8]) -> Option<u32> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut canonical = Vec::new();
    for part in certificate.subject().iter() {
        let mut pairs = Vec::new();
        for pair in part.iter() {
            let text = pair.as_str().ok()?.to_ascii_lowercase();
            let text = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
            let value = [der(0x06, pair.attr_type().as_bytes())?, der(0x0C, text.as_bytes())?];
            pairs.extend(der(0x30, &value.concat())?);
        }
        canonical.extend(der(0x31, &pairs)?);
    }
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    digest.as_ref().first_chunk().copied().map(u32::from_le_bytes)
}

/// A DER value; `None` if its content is 256 bytes or longer, which parts of names are not.
fn der(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let length = u8::try_from(content.len()).ok()?;
    let mut value = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
    value.extend(content);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
        io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    /// A directory of root certificates, and its copy.
    fn copied(dir: &Path) -> (PathBuf, Roots) {
        let certs = dir.join("certs");
        write(&certs.join("ca-certificates.crt"), "the system's");
        write(&certs.join("java/cacerts"), "java's");
        symlink("ca-certificates.crt", certs.join("aabbccdd.0")).unwrap();
        write(&dir.join("run/x"), "");
        let files = [certs.join("ca-certificates.crt"), dir.join("missing/bundle.pem")];
        let roots = Roots::copy_of(&files, &dir.join("run"), b"with larder's", "").unwrap();
        (certs, roots)
    }

    #[test]
    fn a_copy_has_the_bundle_and_everything_else_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (certs, roots) = copied(dir.path());
        let copy = &roots.directories[0].copy;
        assert_eq!(read(&copy.join("ca-certificates.crt")), "with larder's");
        assert_eq!(read(&copy.join("aabbccdd.0")), "with larder's");
        assert_eq!(read(&copy.join("java/cacerts")), "java's");
        assert_eq!(read(&certs.join("ca-certificates.crt")), "the system's");
        assert_eq!(roots.directories.len(), 1, "what is not there is left out");
    }

    #[test]
    fn nothing_is_put_back_when_nothing_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (certs, roots) = copied(dir.path());
        roots.put_back().unwrap();
        assert_eq!(read(&certs.join("ca-certificates.crt")), "the system's");
    }

    #[test]
    fn what_the_command_changed_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let (certs, roots) = copied(dir.path());
        let copy = &roots.directories[0].copy;
        // Like the system's tools: a new file replaces the old one.
        std::fs::remove_file(copy.join("ca-certificates.crt")).unwrap();
        write(&copy.join("ca-certificates.crt"), "made by the tool");
        write(&copy.join("deep/er/x.pem"), "new");
        symlink("deep/er/x.pem", copy.join("11223344.0")).unwrap();
        std::fs::remove_file(copy.join("aabbccdd.0")).unwrap();
        std::fs::remove_dir_all(copy.join("java")).unwrap();
        roots.put_back().unwrap();
        assert_eq!(read(&certs.join("ca-certificates.crt")), "made by the tool");
        assert_eq!(read(&certs.join("11223344.0")), "new");
        assert!(!certs.join("aabbccdd.0").exists() && !certs.join("java").exists());
    }

    /// Issue 10: a symbolic link that a killed `larder exec` left is not followed, and does not stop the rest from
    /// being put back.
    #[test]
    fn what_one_that_was_killed_left_is_written_through_by_none() {
        let dir = tempfile::tempdir().unwrap();
        let (certs, roots) = copied(dir.path());
        let copy = &roots.directories[0].copy;
        symlink("ca-certificates.crt", certs.join("x.larder-new")).unwrap();
        symlink("ca-certificates.crt", certs.join("11223344.larder-new")).unwrap();
        // A directory in the place of a file cannot be put back.
        std::fs::create_dir_all(certs.join("a.pem/b")).unwrap();
        write(&copy.join("a.pem"), "new");
        write(&copy.join("x.pem"), "new");
        symlink("x.pem", copy.join("11223344.0")).unwrap();
        assert!(roots.put_back().is_err(), "it is said");
        assert_eq!(read(&certs.join("ca-certificates.crt")), "the system's");
        assert_eq!(
            (read(&certs.join("x.pem")), read(&certs.join("11223344.0"))),
            ("new".into(), "new".into())
        );
        assert!(std::fs::symlink_metadata(certs.join("x.pem")).unwrap().is_file());
        assert!(
            std::fs::read_dir(&certs)
                .unwrap()
                .flatten()
                .all(|entry| { !entry.file_name().to_string_lossy().ends_with("larder-new") })
        );
    }

    /// OpenSSL itself is the control.
    #[test]
    fn larders_ca_is_found_by_the_hash_of_its_name_and_never_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "larder  CA of This.Machine");
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "larder");
        let pem = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let certs = dir.path().join("certs");
        write(&certs.join("ca.crt"), "x");
        symlink("ca.crt", certs.join("aabbccdd.0")).unwrap();
        write(&dir.path().join("run/ca.pem"), &pem);
        let roots =
            Roots::copy_of(&[certs.join("ca.crt")], &dir.path().join("run"), b"y", &pem).unwrap();
        let [own] = &roots.directories[0].own[..] else { panic!("{roots:?}") };
        let mut command = std::process::Command::new("openssl");
        command.args(["x509", "-noout", "-subject_hash", "-in"]).arg(dir.path().join("run/ca.pem"));
        if let Ok(output) = command.output() {
            let hash = String::from_utf8(output.stdout).unwrap();
            assert_eq!(own, Path::new(&format!("{}.0", hash.trim())));
        }
        roots.put_back().unwrap();
        assert!(!certs.join(own).exists());
    }

    #[test]
    fn a_directory_with_more_than_roots_is_left_alone() {
        for directory in ["/etc", "/usr", "/etc/ssl"] {
            assert!(!is_of_roots(Path::new(directory)), "{directory}");
        }
    }
}
