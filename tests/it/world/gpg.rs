//! Throw-away keys of the real gpg, each in a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::tools::text;

/// A key pair.
pub(crate) struct Key {
    pub(crate) home: PathBuf,
    /// The file with its public key, for clients.
    pub(crate) public: PathBuf,
}

impl Drop for Key {
    /// gpg leaves an agent behind for each home. It takes two of the user's 128 inotify instances, which containerd needs as well.
    fn drop(&mut self) {
        let mut command = Command::new("gpgconf");
        command.arg("--homedir").arg(&self.home).args(["--kill", "gpg-agent"]);
        // Without gpgconf, or if the home is gone already, the agent stays.
        let _ended = command.output();
    }
}

impl Key {
    /// A signing key, in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let key = Self::empty(dir, name);
        let user = format!("{name} <{name}@example.org>");
        key.gpg(&["--passphrase", "", "--quick-gen-key", &user, "ed25519", "sign", "1y"]);
        key.publish();
        key
    }

    /// A home without a key.
    pub(crate) fn empty(dir: &Path, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let home = dir.join(format!("{name}.home"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).unwrap();
        Self { home, public: dir.join(format!("{name}.gpg")) }
    }

    /// Writes the public key to its file.
    pub(crate) fn publish(&self) {
        std::fs::write(&self.public, self.exported()).unwrap();
    }

    /// Revokes the key, with the revocation certificate that gpg made with the key.
    pub(crate) fn revoke(&self) {
        let [certificate] = &super::files(&self.home.join("openpgp-revocs.d"))[..] else {
            panic!("not one revocation");
        };
        let text = std::fs::read_to_string(certificate).unwrap();
        // gpg puts a colon there, so that the certificate is not used by mistake.
        std::fs::write(certificate, text.replace(":-----BEGIN", "-----BEGIN")).unwrap();
        self.gpg(&["--import", certificate.to_str().unwrap()]);
        self.publish();
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

    pub(crate) fn fingerprint(&self) -> String {
        let listed = self.gpg(&["--with-colons", "--fingerprint"]).stdout;
        let listed = String::from_utf8(listed).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    /// The public key, binary.
    pub(crate) fn exported(&self) -> Vec<u8> {
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
