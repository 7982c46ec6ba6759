//! larder's dependencies may be distributed with it, and there is only one TLS library.

use std::process::Command;

use serde_json::Value;

/// Licences that require only their text and attribution.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// A second TLS library would have a second trust policy.
const BANNED: &[&str] = &["openssl", "openssl-sys", "native-tls"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression (annex D of the specification) can be satisfied with allowed licences. `/` is an old way to write
/// OR.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = either(&mut words);
    met && words.next().is_none()
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn either(words: Words<'_, '_>) -> bool {
    let mut met = both(words);
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words);
    }
    met
}

fn both(words: Words<'_, '_>) -> bool {
    let mut met = one(words);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words);
    }
    met
}

fn one(words: Words<'_, '_>) -> bool {
    let met = match words.next() {
        Some("(") => {
            let met = either(words);
            words.next_if_eq(&")").is_some() && met
        }
        Some(name) => ALLOWED.contains(&name),
        None => false,
    };
    // An exception only permits more.
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    met
}

#[test]
fn every_licence_is_allowed_by_name() {
    let packages = packages();
    assert!(packages.len() > 50);
    let bad: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| format!("{} {}", package["name"], package["license"]))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn there_is_one_tls() {
    let names: Vec<String> =
        packages().iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect();
    let bad: Vec<&String> = names.iter().filter(|name| BANNED.contains(&name.as_str())).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(names.iter().any(|name| name == "rustls"));
}

#[test]
fn expressions_are_read_as_the_specification_says() {
    assert!(allowed("MIT OR GPL-3.0-only"));
    assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(allowed("MIT/Apache-2.0"));
    assert!(allowed("Apache-2.0 WITH LLVM-exception"));
    assert!(!allowed("GPL-3.0-only"));
    assert!(!allowed("MIT AND GPL-3.0-only"));
    assert!(!allowed("(MIT OR Apache-2.0"));
    assert!(!allowed(""));
}
