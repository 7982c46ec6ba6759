//! Detects whether the files of a directory changed since the ledger was last closed cleanly.
//!
//! sled trusts what it reads: some kinds of damage make it panic, others make it loop for ever, which no `catch_unwind`
//! ends. So larder checksums sled's files when it closes the ledger cleanly, and opens them again only if the checksums
//! still match. After a crash there are no checksums, and the ledger is rebuilt, which only means reading many small
//! files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::durable;
use super::sealed::{Kind, seal, unseal};

const KIND: Kind = Kind { magic: *b"LauD", version: 1 };

/// Maximum length of the list in bytes: more than the files that sled makes need.
const MAX_LIST: u64 = 1 << 20;

/// Name, length and CRC-32 of each file, sorted.
type List = Vec<(String, u64, u32)>;

/// Syncs every file of `directory` and writes their checksums to `signature`.
pub(super) fn put_away(directory: &Path, signature: &Path) -> io::Result<()> {
    let mut list = List::new();
    sum(directory, "", &mut |name, file, length, crc| {
        file.sync_all()?;
        list.push((name, length, crc));
        Ok(())
    })?;
    list.sort_unstable();
    durable::write(signature, &seal(KIND, &list)?, 0o600)
}

/// Whether the files of `directory` are as [`put_away`] left them. Removes `signature`, so it holds for one opening
/// only: whoever opens the files now may change them and must call [`put_away`] again.
pub(super) fn is_untouched(directory: &Path, signature: &Path) -> io::Result<bool> {
    let signed = durable::read(signature, MAX_LIST)?;
    if durable::remove(signature)? {
        durable::sync_directory_of(signature)?;
    }
    let signed: Option<List> = signed.and_then(|bytes| unseal(KIND, &bytes));
    let mut list = List::new();
    sum(directory, "", &mut |name, _, length, crc| {
        list.push((name, length, crc));
        Ok(())
    })?;
    list.sort_unstable();
    Ok(signed == Some(list))
}

fn sum(
    directory: &Path,
    prefix: &str,
    each: &mut dyn FnMut(String, &File, u64, u32) -> io::Result<()>,
) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            sum(&entry.path(), &format!("{name}/"), each)?;
            continue;
        }
        let mut file = File::open(entry.path())?;
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0;
        loop {
            let read = file.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            hasher.update(bytes);
            length += read as u64;
        }
        each(name, &file, length, hasher.finalize())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_is_noticed_and_a_signature_counts_once() {
        let data = tempfile::tempdir().unwrap();
        let (directory, signature) = (data.path().join("ledger"), data.path().join("seal"));
        let db = directory.join("blobs/db");
        let put = || durable::write(&db, b"content", 0o600).unwrap();
        let sign = || put_away(&directory, &signature).unwrap();
        let untouched = || is_untouched(&directory, &signature).unwrap();
        put();
        assert!(!untouched(), "never signed");
        sign();
        assert!(untouched());
        assert!(!untouched(), "once");
        let changes: [&dyn Fn(); 4] = [
            &|| durable::write(&db, b"c0ntent", 0o600).unwrap(),
            &|| durable::write(&db, b"conten", 0o600).unwrap(),
            &|| durable::write(&directory.join("another"), b"", 0o600).unwrap(),
            &|| assert!(durable::remove(&db).unwrap()),
        ];
        for change in changes {
            sign();
            change();
            assert!(!untouched());
            put();
        }
    }
}
