//! Tests of the origin layer against real servers on loopback.

mod body;
mod passing;
mod pool;
mod proxied;
mod redirected;
mod tokens;
mod trust;
mod world;
