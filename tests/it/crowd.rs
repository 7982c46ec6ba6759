//! Many clients pull one cold image, each with a token of its own. Each blob is fetched once, for clients with a right to it, and
//! memory use does not grow with the blob.

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::world::binary::Daemon;
use crate::world::names::Names;
use crate::world::registry::{Around, MEMBER, NAME, PROGRAM, Registry};
use crate::world::tools::installed;
use crate::world::{Ca, Client};

/// How many clients pull at once.
const CLIENTS: usize = 20;

/// How much more memory a large blob may cost than a small one: the buffers of connections that run longer, but never the blob
/// itself.
const SPREAD: u64 = 32 << 20;

/// A registry behind a larder in a process of its own, so that its memory can be measured.
struct Crowd {
    registry: Registry,
    daemon: Daemon,
    _names: Names,
    _dir: tempfile::TempDir,
}

impl Crowd {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let names = Names::new().await;
        let registry =
            Registry::start(&ca, dir.path(), Around { tokens: true, redirects: true }).await;
        for origin in [&registry.front, &registry.files, &registry.tokens.front] {
            names.know(origin);
        }
        let url = names.url();
        let variables = [("LARDER_UPSTREAM_HTTPS_PROXY", url.as_str())];
        let daemon = Daemon::start(&ca, &dir.path().join("data"), &variables).await;
        Self { registry, daemon, _names: names, _dir: dir }
    }

    /// Every client pulls a new blob of `size` bytes with a token of its own; returns larder's peak memory.
    async fn pull(&self, client: &Client, size: u64) -> u64 {
        let digest = self.registry.plant("private/box", size);
        let url = format!("https://{NAME}/v2/private/box/blobs/{digest}");
        let tokens: Vec<String> = (0..CLIENTS)
            .map(|_| self.registry.tokens.bearer("private/box", Some(MEMBER)))
            .collect();
        let pulling = tokens.iter().map(|token| async {
            let ask = client.get(&url).header("authorization", token);
            let got = ask.open().await.unwrap().digested().await;
            got.map(|(count, digest)| (count, format!("sha256:{}", digest.to_hex())))
        });
        for got in join_all(pulling).await {
            assert_eq!(got, Some((size, digest.clone())));
        }
        assert_eq!(self.registry.gets(&digest), 1, "the registry is asked for it once");
        let asked = self.registry.front.log();
        let proved: HashSet<&str> = asked
            .iter()
            .filter(|one| one.is_proof() && one.path.ends_with(&digest))
            .filter_map(|one| one.text("authorization"))
            .collect();
        let followers = tokens.iter().filter(|token| proved.contains(&***token)).count();
        assert!(followers >= CLIENTS - 1, "all but the first prove their right: {followers}");
        self.daemon.most_memory()
    }

    async fn is_flat(&self, size: u64) {
        let client = self.daemon.client().await;
        let before = self.pull(&client, 1 << 20).await;
        let sent = self.registry.sent();
        let after = self.pull(&client, size).await;
        assert_eq!(self.registry.sent() - sent, size, "each byte leaves the registry once");
        assert!(size > SPREAD, "the control: a blob in memory would be seen");
        assert!(after.saturating_sub(before) < SPREAD, "{before} grew to {after} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_a_cold_blob_fetches_it_once_in_flat_memory() {
    if installed(PROGRAM) {
        Crowd::new().await.is_flat(48 << 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "moves 40 GB: cargo test --release --test it -- --ignored crowd"]
async fn a_crowd_at_a_cold_blob_of_two_gigabytes_fetches_it_once_in_flat_memory() {
    if installed(PROGRAM) {
        Crowd::new().await.is_flat(2 << 30).await;
    }
}
