//! Resolves and reads paths in another root directory, as after `chroot`.
//!
//! An image's symbolic links refer to the image. A link to `/etc/ssl/cert.pem` means the image's file, not that of
//! the machine on which the doctor runs; a link that climbs above the root stays at the root. Every link on the way
//! is resolved here, because the system would resolve it against this machine.
//!
//! An image may be hostile: only regular files are read, no pipes or devices, and files up to a maximum size.
//!
//! See `path_resolution(7)` and chroot(2).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

/// The most links on the way to one file; Linux follows as many.
const MAX_LINKS: usize = 40;

/// The largest file that is read. A bundle of roots has a quarter of a megabyte.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The real path of the file that `path` names in `root`, with all links resolved. A file that does not exist
/// resolves to where it would be created. `None`: too many links.
pub(super) fn within(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut ahead: VecDeque<OsString> = parts(path).collect();
    let (mut below, mut links) = (PathBuf::new(), 0);
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            below.pop();
            continue;
        }
        let here = below.join(&part);
        let Ok(leads) = std::fs::read_link(root.join(&here)) else {
            below = here;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        if leads.is_absolute() {
            below.clear();
        }
        for part in parts(&leads).collect::<Vec<_>>().into_iter().rev() {
            ahead.push_front(part);
        }
    }
    Some(root.join(below))
}

/// The names in a path, and its `..`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// The content of a regular file that is not too large.
pub(super) fn read(file: &Path) -> Option<Vec<u8>> {
    // Opening a pipe without this flag would block until there is a writer.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > MAX_FILE {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files; nothing needs to be durable")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_where_they_lead_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc/pki")).unwrap();
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::write(dir.path().join("secret"), "of this machine").unwrap();
        let outside = dir.path().join("secret").display().to_string();
        for (link, leads) in [
            ("etc/cert.pem", "/etc/pki/bundle.pem"),
            ("etc/pki/bundle.pem", "../pki/./extracted.pem"),
            ("etc/climbs", "../../../../../etc/pki"),
            ("etc/stranger", outside.as_str()),
            ("bin", "usr/bin"),
            ("etc/one", "two"),
            ("etc/two", "one"),
            ("etc/root", "/"),
        ] {
            symlink(leads, root.join(link)).unwrap();
        }
        let at = |path: &str| {
            within(&root, Path::new(path))
                .map(|found| found.strip_prefix(&root).unwrap().display().to_string())
        };
        for (path, expected) in [
            ("/etc/cert.pem", "etc/pki/extracted.pem"),
            ("/etc/climbs/x", "etc/pki/x"),
            ("/etc/climbs/../y", "etc/y"),
            ("/bin/wget", "usr/bin/wget"),
            ("/../../etc", "etc"),
            ("/etc/root/etc/root/bin/sh", "usr/bin/sh"),
            ("/no/such/../file", "no/file"),
            ("/", ""),
        ] {
            assert_eq!(at(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(at("/etc/one"), None);
        // Control: as this machine resolves it, the link leads out of the root.
        assert!(read(&root.join("etc/stranger")).is_some());
        assert!(read(&within(&root, Path::new("/etc/stranger")).unwrap()).is_none());
    }

    #[test]
    fn only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(read(&pipe).is_none() && read(dir.path()).is_none());
        assert!(read(Path::new("/dev/zero")).is_none());
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(read(&dir.path().join("file")).unwrap(), b"x", "the control");
    }
}
