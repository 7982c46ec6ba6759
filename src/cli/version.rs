//! `larder version`.

use clap::Args;
use serde::Serialize;

use super::answers::json;
use super::{Invocation, OK};

const EXAMPLES: &str = "\
Examples:
  larder version
  larder version --json | jq -r .version";

/// Prints the version
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Version {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// The version and target of this program.
#[derive(Serialize)]
struct Known {
    version: &'static str,
    /// The architecture and operating system that it was built for.
    target: String,
}

impl Version {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        let known = Known { version: env!("CARGO_PKG_VERSION"), target };
        if self.json {
            json(&mut invocation.out, &known)?;
        } else {
            writeln!(invocation.out, "larder {} ({})", known.version, known.target)?;
        }
        Ok(OK)
    }
}
