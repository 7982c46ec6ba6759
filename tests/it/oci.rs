//! Real clients of container registries against a real registry: skopeo, podman and buildah, told of nothing but a proxy
//! and a certificate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::world::archive::flipped;
use crate::world::names::Names;
use crate::world::registry::image::Image;
use crate::world::registry::{Around, NAME, OWNER, PROGRAM, Registry, basic};
use crate::world::tools::{client, installed, run, text, trusted_file};
use crate::world::{Client, Mood, World, files, holding};

/// A registry beyond larder, and what clients need to know of larder.
struct Yard {
    registry: Registry,
    world: World,
    ca: String,
    names: Names,
    tokens: bool,
}

impl Yard {
    async fn new(around: Around) -> Self {
        let names = Names::new().await;
        let url = names.url();
        let world = World::with(|config| config.upstream.https_proxy = Some(url)).await;
        let registry = Registry::start(&world.ca, world.dir(), around).await;
        for origin in [&registry.front, &registry.files, &registry.tokens.front] {
            names.know(origin);
        }
        let ca = trusted_file(&world).await;
        Self { registry, world, ca, names, tokens: around.tokens }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.dir().join(name)
    }

    /// A client with a home of its own, so that nothing of this machine's is used or changed.
    fn command(&self, program: &str) -> Command {
        let mut command = client(&self.world, program, &self.ca);
        let home = self.path("home");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("auth.json"), "{}").unwrap();
        command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
        command.env("REGISTRY_AUTH_FILE", home.join("auth.json"));
        command
    }

    async fn skopeo(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("skopeo");
        command.args(["--insecure-policy"]).args(arguments);
        run(command).await
    }

    /// Pushes every platform of `image`, through larder.
    async fn push(&self, image: &Image, name: &str) {
        let (from, to) =
            (format!("oci:{}", image.layout.display()), format!("docker://{NAME}/{name}"));
        let mut arguments = vec!["copy", "--all", &from, &to];
        let owner = format!("{}:{}", OWNER.0, OWNER.1);
        if self.tokens {
            arguments.extend(["--dest-creds", &owner]);
        }
        let output = self.skopeo(&arguments).await;
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Pulls every platform into a directory of its own; what it holds if that succeeds.
    async fn pull(&self, name: &str, into: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.pull_as(None, name, into).await
    }

    /// The same, for somebody with user and password.
    async fn pull_as(
        &self,
        who: Option<(&str, &str)>,
        name: &str,
        into: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, String> {
        let to = self.path(into);
        let (from, shown) = (format!("docker://{NAME}/{name}"), format!("dir:{}", to.display()));
        let mut arguments = vec!["copy", "--all", &from, &shown];
        let who = who.map(|(user, password)| format!("{user}:{password}"));
        arguments.extend(who.iter().flat_map(|who| ["--src-creds", who]));
        let output = self.skopeo(&arguments).await;
        if output.status.success() { Ok(contents(&to)) } else { Err(text(&output)) }
    }
}

/// Every file of a directory and what it holds, by name.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = files(dir)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

fn can_run(programs: &[&str]) -> bool {
    programs.iter().all(|program| installed(program))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_and_its_second_pull_moves_no_blob() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for redirects in [false, true] {
        let yard = Yard::new(Around { redirects, tokens: false }).await;
        let image = Image::new(yard.world.dir(), 1, 300_000);
        yard.push(&image, "gears/box:1.0").await;
        let before = yard.registry.sent();
        let first = yard.pull("gears/box:1.0", "first").await.unwrap();
        let sent = yard.registry.sent();
        assert!(sent > before + 600_000, "the control: the first pull moves blobs");
        let second = yard.pull("gears/box:1.0", "second").await.unwrap();
        assert_eq!(yard.registry.sent(), sent);
        assert_eq!(first, second);
        assert_eq!(yard.registry.files.total() > 0, redirects);
        for layer in &image.layers {
            assert_eq!(yard.registry.gets(layer), 1, "{redirects}");
        }
    }
}

/// What podman and buildah must be told to keep to a directory of the test's.
const STORAGE: [&str; 6] = ["--root", "$ROOT", "--runroot", "$RUN", "--storage-driver", "vfs"];

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_buildah_pull_through_larder() {
    let programs: Vec<&str> =
        ["podman", "buildah"].into_iter().filter(|program| installed(program)).collect();
    if !can_run(&[PROGRAM, "skopeo"]) || programs.is_empty() {
        return;
    }
    let yard = Yard::new(Around { redirects: true, tokens: false }).await;
    let image = Image::new(yard.world.dir(), 2, 300_000);
    yard.push(&image, "gears/box:1.0").await;
    let name = format!("{NAME}/gears/box:1.0");
    for program in &programs {
        let mut command = yard.command(program);
        for word in STORAGE {
            match word.strip_prefix('$') {
                Some(variable) => command.arg(yard.path(&format!("{program}-{variable}"))),
                None => command.arg(word),
            };
        }
        command.args(["pull", "--arch", "amd64", &name]);
        let output = run(command).await;
        assert!(output.status.success(), "{program} {}", text(&output));
        let unpacked = files(&yard.path(&format!("{program}-ROOT")));
        assert!(unpacked.iter().any(|path| path.ends_with("amd64")), "{program}");
    }
    for layer in &image.layers {
        assert_eq!(
            yard.registry.gets(layer),
            1,
            "each client has it from larder, or was the first"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_a_flipped_bit_is_refused() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for redirects in [false, true] {
        let yard = Yard::new(Around { redirects, tokens: false }).await;
        let image = Image::new(yard.world.dir(), 3, 300_000);
        yard.push(&image, "gears/box:1.0").await;
        let file = yard.registry.file(&image.layers[1]);
        let right = std::fs::read(&file).unwrap();
        std::fs::write(&file, flipped(&right)).unwrap();
        let url = format!("https://{NAME}/v2/gears/box/blobs/{}", image.layers[1]);
        let got = yard.world.get(&url).await;
        assert!(!got.is_complete(), "{redirects} {} {:?}", got.status, got.end);
        assert!(got.body != right && got.body.len() < right.len());
        assert!(yard.pull("gears/box:1.0", "bad").await.is_err());
        // The control: the registry itself hands it out as it is.
        let direct = Client::new(yard.names.address(), yard.world.ca.roots());
        let got = direct.get(&url).send().await;
        if redirects {
            assert_eq!(got.status, 307);
        } else {
            assert_eq!(got.complete().body, flipped(&right));
        }
        std::fs::write(&file, &right).unwrap();
        yard.world.proxy.clock.advance(Duration::from_secs(61));
        yard.pull("gears/box:1.0", "good").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_pulled_while_the_registry_fails() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(Around { redirects: true, tokens: false }).await;
    let (image, other) =
        (Image::new(yard.world.dir(), 4, 100_000), Image::new(yard.world.dir(), 5, 100_000));
    yard.push(&image, "gears/box:1.0").await;
    yard.push(&other, "gears/other:1.0").await;
    let first = yard.pull("gears/box:1.0", "first").await.unwrap();
    for (number, mood) in
        [Mood::Failing(429), Mood::Failing(503), Mood::Hanging].into_iter().enumerate()
    {
        yard.registry.front.mood(mood);
        yard.registry.files.mood(mood);
        yard.world.proxy.clock.advance(Duration::from_secs(10));
        let again = yard.pull("gears/box:1.0", &format!("again-{number}")).await;
        assert_eq!(again.unwrap_or_else(|error| panic!("{mood:?} {error}")), first);
        // skopeo asks again for minutes after a 429; that such an answer reaches its client is tested with less patient ones.
        if mood == Mood::Failing(503) {
            let error = yard.pull("gears/other:1.0", "other").await.unwrap_err();
            assert!(error.contains("503"), "{error}");
        }
    }
    yard.registry.front.stop();
    assert_eq!(yard.pull("gears/box:1.0", "last").await.unwrap(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tokens_gives_everybody_what_is_theirs() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(Around { redirects: true, tokens: true }).await;
    let (open, shut) =
        (Image::new(yard.world.dir(), 6, 100_000), Image::new(yard.world.dir(), 7, 100_000));
    yard.push(&open, "public/box:1.0").await;
    yard.push(&shut, "private/box:1.0").await;
    let everybodys = yard.pull("public/box:1.0", "everybodys").await.unwrap();
    assert_eq!(yard.pull_as(Some(OWNER), "public/box:1.0", "again").await.unwrap(), everybodys);
    let owners = yard.pull_as(Some(OWNER), "private/box:1.0", "owners").await.unwrap();
    assert_eq!(yard.pull_as(Some(OWNER), "private/box:1.0", "twice").await.unwrap(), owners);
    for who in [None, Some((OWNER.0, "wrong"))] {
        assert!(yard.pull_as(who, "private/box:1.0", "nobodys").await.is_err(), "{who:?}");
    }
    assert!(yard.registry.tokens.given() > 0, "the control: tokens are asked for");
    // No credential lies on disk, in whatever spelling: the file host refuses who shows it one.
    let spelled = basic(OWNER);
    for secret in [OWNER.1.as_bytes(), spelled.as_bytes(), b"eyJ"] {
        assert!(holding(&yard.world.proxy.data, secret).is_empty());
    }
}
