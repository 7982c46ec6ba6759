//! `larder ca`.

use clap::{Args, Subcommand};

use super::clients::bundle::Bundle;
use super::{Invocation, OK};

const EXAMPLES: &str = "\
Examples:
  larder ca path                                   where the certificate is
  larder ca show                                   the certificate, and its fingerprint to compare
  larder ca bundle > bundle.pem                    with this machine's roots, for tools that replace their store
  sudo cp \"$(larder ca path)\" /usr/local/share/ca-certificates/larder.crt && sudo update-ca-certificates";

/// Hands out the certificate of larder's CA, which is made if there is none yet.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Ca {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prints the path of the certificate
    #[command(before_help = EXAMPLES)]
    Path,
    /// Prints the certificate and its fingerprint
    #[command(before_help = EXAMPLES)]
    Show,
    /// Prints the certificate together with this machine's roots
    #[command(before_help = EXAMPLES)]
    Bundle,
}

impl Ca {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let ca = invocation.ca()?;
        match self.what {
            What::Path => writeln!(invocation.out, "{}", ca.file.display())?,
            // What stands between certificates is a comment to every reader of PEM (RFC 7468 §2).
            What::Show => write!(invocation.out, "SHA-256 fingerprint: {}\n{}", ca.sha256, ca.pem)?,
            What::Bundle => {
                write!(invocation.out, "{}", Bundle::gather(&ca.pem, &invocation.environment).all)?;
            }
        }
        Ok(OK)
    }
}
