//! The program: runs the command line and returns its exit code. See `larder help`.

use std::process::ExitCode;

use larder::config::environment::Environment;
use tikv_jemallocator::Jemalloc;

/// A load of thousands of connections takes hundreds of megabytes for a moment. glibc's allocator keeps nearly all of
/// it for good, because small long-lived allocations are spread among the freed memory. jemalloc gives unused pages
/// back within seconds, in a background thread (`docs/reliability.md` has the figures).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    // The TLS provider, installed before any other code can install one. It fails only if one was installed already.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    larder::cli::main(std::env::args_os(), Environment::of_process())
}
