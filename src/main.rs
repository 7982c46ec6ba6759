//! The program: flags, configuration, the command, its exit code. `larder help` says the rest.

use std::process::ExitCode;

use larder::config::environment::Environment;

fn main() -> ExitCode {
    // The one TLS provider, before anything could choose another. It fails only if one was installed already.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    larder::cli::main(std::env::args_os(), Environment::of_process())
}
