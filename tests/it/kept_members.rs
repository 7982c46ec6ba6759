//! What belongs to the state of an archive that is shown stays stored while the next state is half published.

use crate::generations::{PACKAGES, SUITE, State, archive, later};
use crate::world::{Origin, Page};

const OTHER: &str = "main/binary-amd64/Packages";

/// Each attempt to fetch a new state brings its signature; that of the state that is served stays stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_shown_keeps_its_signature_however_many_are_half_published() {
    for https in [true, false] {
        let (dir, key, world, origin) = archive(https).await;
        let signature = |state: &State| {
            let file = dir.path().join("Release");
            std::fs::write(&file, &state.text).unwrap();
            key.gpg(&["--armor", "--output", "-", "--detach-sign", file.to_str().unwrap()]).stdout
        };
        let put = |origin: &Origin, state: &State| {
            let signature = signature(state);
            for (name, bytes) in [("Release", state.text.as_bytes()), ("Release.gpg", &signature)] {
                origin.put(&format!("{SUITE}/{name}"), Page::new(bytes.to_vec()));
            }
            signature
        };
        let get = async |name: &str| {
            let url = origin.url(&format!("{SUITE}/{name}"));
            world.client.get(&url).header("cache-control", "max-age=0").send().await
        };
        let one = State::new(&key, 1, false, &[PACKAGES, OTHER]);
        for name in [PACKAGES, OTHER] {
            one.put_member(&origin, name);
        }
        let first = put(&origin, &one);
        for name in ["Release", "Release.gpg", PACKAGES, OTHER] {
            get(name).await.complete();
        }
        for number in 2..8 {
            let next = State::new(&key, number, false, &[PACKAGES, OTHER]);
            put(&origin, &next);
            next.put_member(&origin, PACKAGES);
            later(&world);
            assert_eq!(get("Release").await.complete().body, one.text, "{number}");
            let came = get("Release.gpg").await;
            assert_eq!(came.body, first, "{number}: {} {}", came.status, came.cache_status());
        }
        let last = State::new(&key, 8, false, &[PACKAGES, OTHER]);
        for name in [PACKAGES, OTHER] {
            last.put_member(&origin, name);
        }
        let signature = put(&origin, &last);
        later(&world);
        assert_eq!(get("Release").await.complete().body, last.text, "the control");
        assert_eq!(get("Release.gpg").await.complete().body, signature, "the control");
    }
}
