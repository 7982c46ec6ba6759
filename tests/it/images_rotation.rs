//! The ONBUILD base images during a rotation of the CA: larder hands out two CAs, and issues leaves with the first of them.

use crate::images::{begin, image, seen};
use crate::world::Ca;
use crate::world::binary::{Daemon, say};
use crate::world::larder::own;
use crate::world::root::Root;
use crate::world::tools::{signal, text};

const ANCHORS: &str = "usr/local/share/ca-certificates";

/// The fingerprints that `larder ca show` prints.
async fn fingerprints(ca: &Ca, data: &std::path::Path) -> Vec<String> {
    let shown = text(&say(ca, data, &["ca", "show"]).await);
    let lines = shown.lines().filter_map(|line| line.strip_prefix("SHA-256 fingerprint: "));
    lines.map(str::to_owned).collect()
}

async fn uses_larder(root: &Root) -> bool {
    seen(root, &["sh"], &[]).await.contains_key("HTTPS_PROXY")
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_go_on_while_one_ca_follows_another() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, data) = (Ca::new(&dir.path().join("origins.pem")), dir.path().join("data"));
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let address = format!("http://{}", daemon.address);

    // Before the rotation: one CA, and nothing else.
    let (old, before) = image(0);
    let told = begin(&old, &["sh"], &[("LARDER", &address)]).await;
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    let all: String = old
        .listing()
        .into_iter()
        .filter(|(path, _)| !path.starts_with(old.path().join("larder")))
        .map(|(_, content)| content)
        .collect();
    assert!(!all.contains("@LARDER"), "a template that was not filled");
    assert!(!old.path().join(ANCHORS).join("larder-ca-next.crt").exists());

    assert!(say(&ca, &data, &["ca", "rotate", "--days", "5"]).await.status.success());
    let [first, next] = fingerprints(&ca, &data).await.try_into().unwrap();
    assert!(uses_larder(&old).await, "the one that mints is the one it trusts");

    let (both, _) = image(0);
    let told = begin(&both, &["sh"], &[("LARDER", &address)]).await;
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    let set = seen(&both, &["sh"], &[]).await;
    let extra = std::fs::read_to_string(&set["NODE_EXTRA_CA_CERTS"]).unwrap();
    for certificate in
        own(daemon.address, "/ca.crt").await.split_inclusive("-----END CERTIFICATE-----\n")
    {
        let line = certificate.lines().nth(1).unwrap();
        assert!(both.bundle().contains(line) && extra.contains(line), "{extra}");
    }

    // A build with a pinned fingerprint gets that CA only: the other could be anybody's.
    let mut pinned = Vec::new();
    for fingerprint in [&first, &next] {
        let (root, _) = image(0);
        let told =
            begin(&root, &["sh"], &[("LARDER", &address), ("LARDER_CA_SHA256", fingerprint)]).await;
        assert_eq!(told.status.code(), Some(0), "{}", text(&told));
        assert!(!root.path().join(ANCHORS).join("larder-ca-next.crt").exists());
        pinned.push(root);
    }
    assert!(uses_larder(&pinned[0]).await);
    assert!(!uses_larder(&pinned[1]).await, "it would refuse every host until the next one mints");

    // The date passes.
    let handed_out = own(daemon.address, "/ca.crt").await;
    std::fs::write(data.join("state/ca.next.from"), "0\n").unwrap();
    signal(daemon.id(), "HUP").await;
    crate::world::eventually("the next CA mints, and is named first", || async {
        own(daemon.address, "/ca.crt").await != handed_out
    })
    .await;
    assert!(uses_larder(&both).await && uses_larder(&pinned[1]).await);
    assert!(!uses_larder(&old).await && !uses_larder(&pinned[0]).await);

    let removed = crate::world::tools::run(old.step(&["sh"], &["--remove"])).await;
    assert_eq!(removed.status.code(), Some(0), "{}", text(&removed));
    assert_eq!(old.listing(), before);
}
