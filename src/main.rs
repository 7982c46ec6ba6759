//! The program: flags, configuration, the command, its exit code. `larder help` says the rest.

use std::process::ExitCode;

use larder::config::environment::Environment;
use tikv_jemallocator::Jemalloc;

/// A load of thousands of connections takes hundreds of megabytes for a moment. glibc's allocator keeps nearly all of it for
/// good, since small things that live on stand between; this one gives unused pages back within seconds, by a thread of
/// its own (`docs/reliability.md` has the figures).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    // The one TLS provider, before anything could choose another. It fails only if one was installed already.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    larder::cli::main(std::env::args_os(), Environment::of_process())
}
