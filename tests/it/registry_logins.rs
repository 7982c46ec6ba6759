//! Logging in to a registry through larder, with each client's own command, and what that login gives access to: only for clients
//! that have it. With a registry that requires user and password, and with one that requires tokens.

use std::process::Output;

use crate::world::holding;
use crate::world::registry::image::Image;
use crate::world::registry::yard::{Yard, can_run};
use crate::world::registry::{Around, GUEST, MEMBER, NAME, OWNER, PROGRAM, basic};
use crate::world::tools::{installed, run, text};

const IMAGE: &str = "private/box:1.0";

impl Yard {
    /// `PROGRAM login`, into a file of its own.
    async fn log_in(&self, program: &str, file: &str, (user, password): (&str, &str)) -> Output {
        let mut command = self.command(program);
        command.args(["login", "--authfile", file, "--username", user]);
        command.args(["--password", password, NAME]);
        run(command).await
    }

    /// A pull with the login in `file`; the error is the program's output.
    async fn pull_by(&self, file: &str, into: &str) -> Result<(), String> {
        let (from, to) = (format!("docker://{NAME}/{IMAGE}"), self.path(into));
        let to = format!("dir:{}", to.display());
        let output = self.skopeo(&["copy", "--all", "--src-authfile", file, &from, &to]).await;
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    }

    fn file(&self, name: &str) -> String {
        let file = self.path(name);
        if !file.exists() {
            std::fs::write(&file, "{}").unwrap();
        }
        file.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_through_larder_opens_what_is_its_own() {
    let programs: Vec<&str> =
        ["skopeo", "podman", "buildah"].into_iter().filter(|program| installed(program)).collect();
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for tokens in [false, true] {
        let yard = if tokens {
            Yard::new(Around { redirects: true, tokens }).await
        } else {
            Yard::with_passwords().await
        };
        let image = Image::new(yard.world.dir(), 40, 100_000);
        yard.push(&image, IMAGE).await;
        let before = yard.registry.sent();
        let mut sent = None;
        for program in &programs {
            let file = yard.file(&format!("{program}.json"));
            let wrong = yard.log_in(program, &file, (MEMBER.0, "wrong")).await;
            assert!(!wrong.status.success(), "{tokens} {program} {}", text(&wrong));
            let error = yard.pull_by(&file, "nobodys").await.unwrap_err();
            assert!(is_no(&error), "{tokens} {program} {error}");
            // The control: the same file, after a login.
            let right = yard.log_in(program, &file, MEMBER).await;
            assert!(right.status.success(), "{tokens} {program} {}", text(&right));
            let pulled = yard.pull_by(&file, &format!("by-{program}")).await;
            assert_eq!(pulled, Ok(()), "{tokens} {program}");
            let moved = *sent.get_or_insert_with(|| yard.registry.sent());
            assert_eq!(yard.registry.sent(), moved, "{tokens} {program}");
        }
        assert!(sent > Some(before + 200_000), "the control: the first pull moves blobs");
        for program in programs.iter().filter(|program| **program != "skopeo") {
            let login = yard.file(&format!("{program}.json"));
            let name = format!("{NAME}/{IMAGE}");
            yard.unpack(program, program, &["--authfile", &login, &name]).await;
        }
        // Everything is stored by now, and other clients have no access.
        let guest = yard.file("guest.json");
        let logged_in = yard.log_in("skopeo", &guest, GUEST).await.status.success();
        assert_eq!(logged_in, tokens, "a guest has a login at the token service alone");
        for file in [guest, yard.file("nobody.json")] {
            let error = yard.pull_by(&file, "nobodys").await.unwrap_err();
            assert!(is_no(&error), "{tokens} {error}");
        }
        assert_eq!(Some(yard.registry.sent()), sent, "{tokens}");
        for who in [OWNER, MEMBER, GUEST] {
            for secret in [who.1.to_owned(), basic(who)] {
                assert!(holding(&yard.world.proxy.data, secret.as_bytes()).is_empty());
            }
        }
    }
}

fn is_no(said: &str) -> bool {
    ["nauthorized", "denied", "authentication required"].iter().any(|word| said.contains(word))
}
