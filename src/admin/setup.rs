//! The script that sets clients up: the body of `GET /setup`, and the command line that fetches, checks and runs it.
//!
//! ```text
//! ca/setup/*.sh ──▶ one text ──▶ this larder's CA and its fingerprint put in ──▶ SHA-256
//! ```
//!
//! The script installs a root certificate, so users must be able to check that it is the right script: the command
//! line contains its SHA-256. For that the text must be the same for every client and every host name. It contains
//! nothing from the request; larder's address is an argument of the script, which checks it.

use super::Running;

/// The script without the CA: its call, its plan, its settings, and how it applies them.
const TEMPLATE: &str = concat!(
    include_str!("../../ca/setup/1-call.sh"),
    "\n",
    include_str!("../../ca/setup/2-plan.sh"),
    "\n",
    include_str!("../../ca/setup/2-without.sh"),
    "\n",
    include_str!("../../ca/setup/3-settings.sh"),
    "\n",
    include_str!("../../ca/setup/4-change.sh"),
);

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The script of one larder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// Its text.
    pub(super) text: String,
    sha256: String,
}

impl Script {
    /// The script for clients of a larder that serves.
    pub(crate) fn of(running: &Running) -> Self {
        Self::new(&running.authority.ca_pem(), &running.authority.fingerprint_sha256())
    }

    /// The script for the CA in `ca_pem`, and the next CA if there are two.
    pub(crate) fn new(ca_pem: &str, fingerprint: &str) -> Self {
        let (first, rest) = ca_pem.split_once(END).unwrap_or((ca_pem, ""));
        let next = if rest.contains(BEGIN) { certificate(rest) } else { String::new() };
        let text = TEMPLATE
            .replacen("@LARDER_CA_SHA256@", &hexadecimal(fingerprint), 1)
            .replacen("@LARDER_CA_PEM@", &certificate(&format!("{first}{END}")), 1)
            .replacen("@LARDER_NEXT_PEM@", &next, 1);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let sha256 = crate::digest::hex(digest.as_ref());
        Self { text, sha256 }
    }

    /// Its text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Its SHA-256 in hexadecimal digits.
    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The shell command line that sets a machine up for the larder at `name` (`HOST:PORT`). `run` is put before the
    /// shell that runs the script: `sudo `, or nothing.
    ///
    /// The file comes from mktemp, so that no other user can have made it or can change it between check and run.
    /// curl bypasses any other proxy that is set.
    pub(crate) fn line(&self, name: &str, run: &str) -> String {
        format!(
            "f=$(mktemp) && curl -fsS --noproxy '*' http://{name}/setup -o \"$f\" && echo \"{}  $f\" | sha256sum -c - && \
             {run}sh \"$f\" http://{name}",
            self.sha256
        )
    }
}

/// The first certificate in `pem` and nothing else: other text in it, for example injected text, must not become part
/// of a script that runs as root.
fn certificate(pem: &str) -> String {
    let inner = pem.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let base64 = |line: &&str| {
        !line.is_empty() && line.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
    };
    let lines = inner.map_or("", |(body, _)| body).lines().map(str::trim).filter(base64);
    [BEGIN].into_iter().chain(lines).chain([END]).collect::<Vec<_>>().join("\n")
}

fn hexadecimal(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_hexdigit() || *c == ':').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nQUJD+/=\n-----END CERTIFICATE-----\n";

    #[test]
    fn the_ca_and_nothing_else_is_put_in() {
        let script = Script::new(PEM, "AB:01");
        assert!(script.text.contains("\nca_sha256='AB:01'\n"));
        assert!(script.text.contains(&format!("<<'LARDER_CA'\n{PEM}LARDER_CA\n")));
        assert!(!script.text.contains("@LARDER"));
        let hostile = format!(
            "LARDER_CA\nreboot\n{}",
            PEM.replace("QUJD", "QUJD\nLARDER_CA\n$(reboot)\n`reboot`\n")
        );
        let text = Script::new(&hostile, "AB:01'; reboot; '").text;
        assert!(!text.contains("reboot"), "{text}");
        // The delimiter contains an underscore, which base64 does not, so no line of a certificate can end the text
        // early.
        assert_eq!(text.matches("\nLARDER_CA\n").count(), 1);
    }

    #[test]
    fn while_one_ca_follows_another_both_are_put_in() {
        let two = format!("{PEM}{}", PEM.replace("QUJD", "TkVYVA"));
        let text = Script::new(&two, "AB:01").text;
        assert!(text.contains(&format!("<<'LARDER_CA'\n{PEM}LARDER_CA\n")));
        assert!(text.contains("\nTkVYVA+/=\n-----END CERTIFICATE-----\nLARDER_NEXT\n"));
        assert!(!Script::new(PEM, "AB:01").text.contains("TkVYVA"), "the control");
    }

    #[test]
    fn another_ca_makes_another_script() {
        let script = Script::new(PEM, "AB:01");
        assert_eq!(script, Script::new(PEM, "AB:01"));
        assert_ne!(script.sha256(), Script::new(&PEM.replace("QUJD", "QUJE"), "AB:02").sha256());
        assert_eq!(script.sha256().len(), 64);
        assert!(script.line("cache.example.org:3142", "sudo ").contains(script.sha256()));
    }
}
