//! Throw-away keys of the real gpg, each in a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::tools::text;

/// A key pair.
pub(crate) struct GpgKey {
    pub(crate) home: PathBuf,
    pub(crate) fingerprint: String,
}

impl GpgKey {
    /// One that signs, in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let home = dir.join(format!("{name}.home"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).unwrap();
        let mut key = Self { home, fingerprint: String::new() };
        let user = format!("{name} <{name}@example.org>");
        key.gpg(&["--passphrase", "", "--quick-gen-key", &user, "ed25519", "sign", "1y"]);
        let listed = key.gpg(&["--with-colons", "--fingerprint"]).stdout;
        let listed = String::from_utf8(listed).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().clone_into(&mut key.fingerprint);
        key
    }

    /// Runs gpg in this home.
    pub(crate) fn gpg(&self, arguments: &[&str]) -> Output {
        let output = Command::new("gpg")
            .arg("--homedir")
            .arg(&self.home)
            .args(["--batch", "--quiet", "--pinentry-mode", "loopback"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    /// The public key, binary.
    pub(crate) fn public(&self) -> Vec<u8> {
        self.gpg(&["--export"]).stdout
    }

    /// The public key, armoured.
    pub(crate) fn armoured(&self) -> Vec<u8> {
        self.gpg(&["--armor", "--export"]).stdout
    }

    /// `document`, clear-signed.
    pub(crate) fn clear_sign(&self, document: &str) -> Vec<u8> {
        let file = self.home.join("document");
        std::fs::write(&file, document).unwrap();
        let file = file.to_str().unwrap();
        self.gpg(&["--digest-algo", "SHA512", "--output", "-", "--clear-sign", file]).stdout
    }
}
