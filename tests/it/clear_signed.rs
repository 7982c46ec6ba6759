//! If larder accepts a clear-signed document, gpgv accepts it too, and both read the same text. Otherwise an attacker could show
//! one of them a Release that the other never sees.

use std::path::Path;
use std::process::Command;

use larder::clock::Clock;
use larder::keyring::{Cleartext, Keyring, Source};

use crate::world::gpg::Key;
use crate::world::tools;

const TEXT: &str = "Suite: stable\nOrigin: a  \t\n\n- dashed\n-dash\n--\nSHA256:\n 00 1 a\nlast: ü";

/// The text that was signed, according to larder; `None` if larder does not accept the document.
fn by_larder(document: &[u8], keys: &Keyring) -> Option<String> {
    let cleartext = Cleartext::parse(document).ok()?;
    keys.verify_cleartext(&cleartext, Clock::system().now()).ok()?;
    Some(cleartext.text().to_owned())
}

/// The same according to gpgv, without blanks at line ends, which are not signed.
fn by_gpgv(document: &[u8], key: &Path, dir: &Path) -> Option<String> {
    let (file, out) = (dir.join("document"), dir.join("text"));
    std::fs::write(&file, document).unwrap();
    let _before = std::fs::remove_file(&out);
    let ran = Command::new("gpgv")
        .arg("--keyring")
        .arg(key)
        .arg("--output")
        .args([&out, &file])
        .output()
        .unwrap();
    if !ran.status.success() {
        return None;
    }
    let text = String::from_utf8(std::fs::read(&out).unwrap()).unwrap();
    let lines = text.split('\n').map(|line| line.trim_end_matches([' ', '\t', '\r']));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// Each document with the changes that an attacker on the path could make.
fn twins(whole: &str, other: &str) -> Vec<String> {
    const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
    const END: &str = "-----END PGP SIGNATURE-----";
    let mut twins = vec![
        whole.replace('\n', "\r\n"),
        whole.replace('\n', " \t\n"),
        whole.replace("stable\n", "stable\x0c\n"),
        whole.replace("stable\n", "stable\u{a0}\n"),
        whole.replace("stable\n", "stable\0\n"),
        whole.replace("stable\n", "stable\rSuite: other\n"),
        whole.replace("stable", "other"),
        whole.replace("- -dash", "-dash"),
        whole.replace("- -dash", "- - -dash"),
        whole.replace("Suite:", "- Suite:"),
        whole.replace("Hash: ", "Hash: SHA1,"),
        whole.replace("Hash: ", "Hash: SHA256\nHash: "),
        whole.replace("Hash: ", "Comment: x\nHash: "),
        whole.replace("Hash: ", "\nHash: "),
        whole.replacen("\n\n", "\n \t\n", 1),
        whole.replacen("\n\n", "\n\nSuite: other\n", 1),
        whole.replacen("\n\n", "\n\n\n", 1),
        whole.replace(SIGNATURE, &format!("\n{SIGNATURE}")),
        whole.replace(SIGNATURE, &format!("{SIGNATURE}  ")),
        whole.replace(SIGNATURE, &format!("{SIGNATURE}\nComment: x")),
        format!("Suite: other\n{whole}"),
        format!("\n{whole}"),
        format!("\u{feff}{whole}"),
        format!("{whole}Suite: other\n"),
        format!("{whole}{other}"),
        format!("{other}{whole}"),
        format!("{whole}{}", &other[other.find(SIGNATURE).unwrap()..]),
        format!(
            "{}{}",
            &whole[..whole.find(SIGNATURE).unwrap()],
            &other[other.find(SIGNATURE).unwrap()..]
        ),
        whole.trim_end().to_owned(),
        whole.replace(END, ""),
    ];
    // A line longer than any buffer.
    twins.push(whole.replace("Suite:", &format!("{} Suite:", "x".repeat(40_000))));
    twins
}

#[test]
fn what_larder_takes_for_signed_gpgv_reads_alike() {
    if Command::new("gpgv").arg("--version").output().is_err() {
        tools::skip("there is no gpgv");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let mut keys = Keyring::new();
    let source = Source::Operator("test".to_owned());
    assert_eq!(keys.read(&key.exported(), "archive.gpg", &source).unwrap(), 1);
    let ring = dir.path().join("archive.gpg");
    std::fs::write(&ring, key.exported()).unwrap();
    let sign = |text: &str| String::from_utf8(key.clear_sign(text)).unwrap();
    let long = format!("Suite: stable\nPad: {}\nEnd: x\n", "x".repeat(40_000));
    let (mut signed, mut twins_of_any) = (0, 0);
    for text in [TEXT, "Suite: stable\n", "\n\nSuite: stable\n\n\n", &long] {
        let whole = sign(text);
        // The control: the document as it is.
        assert!(by_larder(whole.as_bytes(), &keys).is_some(), "{text:?}");
        assert!(by_gpgv(whole.as_bytes(), &ring, dir.path()).is_some(), "{text:?}");
        for twin in twins(&whole, &sign("Suite: other\n")).iter().chain([&whole]) {
            twins_of_any += 1;
            let Some(ours) = by_larder(twin.as_bytes(), &keys) else {
                continue;
            };
            signed += 1;
            let theirs = by_gpgv(twin.as_bytes(), &ring, dir.path());
            let theirs = theirs.unwrap_or_else(|| panic!("gpgv refuses {twin:?}"));
            assert_eq!(ours.trim_end_matches('\n'), theirs.trim_end_matches('\n'), "{twin:?}");
        }
    }
    assert!(signed > 8 && signed < twins_of_any, "{signed} of {twins_of_any}");
}
