//! Stops root from leaving files in a data directory that another user's larder could then not read.
//!
//! `sudo larder stats` while the service is stopped would open the service's store, and sled would write files that
//! belong to root: the service could not start again.
//!
//! Only commands that query the store check this. `serve` does not: running it as root with another user's directory,
//! for example in a container, is deliberate.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::bail;

/// Refuses to open `data` as root if it belongs to another user. A directory that does not exist yet is fine.
pub(super) fn check(data: &Path) -> anyhow::Result<()> {
    let Ok(found) = std::fs::metadata(data) else {
        return Ok(());
    };
    let user = rustix::process::geteuid().as_raw();
    if refuses(user, found.uid()) {
        let owner = found.uid();
        bail!(
            "{} belongs to user {owner}, which could not read files that root writes there; start its larder, or \
             run this as that user: setpriv --reuid={owner} --regid={} --clear-groups larder …",
            data.display(),
            found.gid()
        );
    }
    Ok(())
}

fn refuses(user: u32, owner: u32) -> bool {
    user == 0 && owner != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_is_kept_from_what_is_not_its_own() {
        assert!(refuses(0, 998));
        // For other users, the file system's permissions decide.
        assert!(!refuses(0, 0) && !refuses(1000, 1000) && !refuses(1000, 998));
    }

    #[test]
    fn a_directory_is_judged_by_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check(directory.path()).is_ok() && check(&directory.path().join("none")).is_ok());
        if std::os::unix::fs::chown(directory.path(), Some(65_534), None).is_ok() {
            let error = check(directory.path()).unwrap_err().to_string();
            assert!(error.contains("belongs to user 65534"), "{error}");
        }
    }
}
