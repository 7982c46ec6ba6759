//! Image builds: a build's steps have an environment, a network and roots of their own, so that variables do not reach
//! them. What they are given instead goes onto the builder's command line, right behind its subcommand, where the user's
//! own arguments come later and win.
//!
//! ```text
//! call      ── which builder, where its arguments begin, which network and Containerfile they name
//! way       ── where the steps find larder: loopback in the machine's network, else an address of the machine
//! arguments ── proxies that every builder predefines, which stay in no image; LARDER for the images of `ca/images`;
//!              the roots as the secret `larder`
//! ```
//!
//! No builder mounts roots into steps that do not ask for them: a volume would leave its mount point in the image, and over the
//! system's bundle it would break the step that renews it. So https is only sent through larder where a Containerfile mounts the
//! secret, and by the base images, which know larder's CA; all other downloads over https go around larder, as they would
//! without it.
//!
//! Sources: docs.docker.com/reference/dockerfile (predefined ARGs), buildah-build(1), podman-build(1), `docker compose build
//! --help`.

mod call;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use self::call::{Builder, Call, Network};
use crate::cli::clients::{self, containers};

/// The larder that a build is to use.
#[derive(Clone, Debug)]
pub(super) struct Offer<'a> {
    /// Where it listens.
    pub(super) listening: &'a [SocketAddr],
    /// The address of this machine towards others, if it has one.
    pub(super) machine: Option<IpAddr>,
    /// The file with larder's CA and the machine's roots.
    pub(super) bundle: &'a str,
    /// The hosts that go around a proxy.
    pub(super) no_proxy: &'a str,
    /// Whether Docker's older builder was asked for (`DOCKER_BUILDKIT=0`), which knows no secrets.
    pub(super) without_buildkit: bool,
}

/// A build's command line with what larder added, and what the user is to know of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    pub(super) command: Vec<OsString>,
    pub(super) note: Option<&'static str>,
}

const UNREACHED: &str = "the build's network does not reach a larder on loopback: its steps go around larder. Let one listen \
                         on the bridge's address (larder serve --listen 0.0.0.0:3142), or build with --network host";
const HTTP_ONLY: &str = "https downloads of this build's steps go around larder, except on a base image of ca/images or where \
                         the Containerfile mounts the secret `larder`";
const NO_SECRETS: &str = "this builder is given no secret: https downloads of its steps go around larder, except on a base image \
                          of ca/images";

/// Fits `command` to the larder on `offer`; `None` if it is no image build.
pub(super) fn fitted(command: &[OsString], offer: &Offer<'_>) -> Option<Fitted> {
    let call = Call::of(command)?;
    let mut added: Vec<String> = Vec::new();
    // Buildah and Podman hand the engine's own proxy on to steps, for which they have no roots, or which is another's loopback.
    if call.builder == Builder::Buildah && !call.names("--http-proxy") {
        added.push("--http-proxy=false".to_owned());
    }
    let note = match way(&call, offer) {
        Some((proxy, arguments)) => {
            added.extend(arguments);
            Some(add_clients(&mut added, &call, &proxy, offer))
        }
        None if call.network == Network::None => None,
        None => Some(Some(UNREACHED)),
    };
    let (before, after) = command.split_at_checked(call.arguments)?;
    let added = added.into_iter().map(OsString::from);
    let command = before.iter().cloned().chain(added).chain(after.iter().cloned()).collect();
    Some(Fitted { command, note: note.flatten() })
}

/// The address at which the build's steps find larder, and the arguments that make it so.
fn way(call: &Call<'_>, offer: &Offer<'_>) -> Option<(String, Vec<String>)> {
    let on_this_machine = || clients::proxy_at(offer.listening);
    let reached = containers::outside(offer.listening);
    match (call.network, call.builder, reached) {
        (Network::Host, _, _) => on_this_machine().map(|proxy| (proxy, vec![])),
        // Compose takes the network from its file.
        (Network::None, _, _) | (_, Builder::Compose, None) | (Network::Other, _, None) => None,
        (Network::Default, Builder::Docker | Builder::Buildah, None) => {
            let host = vec!["--network".to_owned(), "host".to_owned()];
            on_this_machine().map(|proxy| (proxy, host))
        }
        (_, Builder::Docker, Some(_)) => {
            let (proxy, name) = containers::proxy_from(offer.listening).ok()?;
            let host = |name| vec!["--add-host".to_owned(), format!("{name}:host-gateway")];
            Some((proxy, name.map(host).unwrap_or_default()))
        }
        // Neither of them knows `host-gateway` in all the versions that are about.
        (_, Builder::Compose | Builder::Buildah, Some(address)) => {
            let ip = if address.ip().is_unspecified() { offer.machine? } else { address.ip() };
            Some((format!("http://{}", SocketAddr::new(ip, address.port())), vec![]))
        }
    }
}

/// Adds what clients in the steps use; the answer is what the user is to know.
fn add_clients(
    added: &mut Vec<String>,
    call: &Call<'_>,
    proxy: &str,
    offer: &Offer<'_>,
) -> Option<&'static str> {
    let mut argument = |name: &str, value: &str| {
        added.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
    };
    for name in ["HTTP_PROXY", "http_proxy"] {
        argument(name, proxy);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        argument(name, offer.no_proxy);
    }
    argument("LARDER", proxy);
    let has_secrets = match call.builder {
        Builder::Docker => !offer.without_buildkit,
        Builder::Buildah => true,
        Builder::Compose => false,
    };
    // Builders split the argument at commas, and have no escape.
    if !has_secrets || offer.bundle.contains(',') {
        return Some(NO_SECRETS);
    }
    let mounted = call.mounts_secret();
    if mounted {
        for name in ["HTTPS_PROXY", "https_proxy"] {
            argument(name, proxy);
        }
    }
    if !call.gives_secret() {
        added.extend(["--secret".to_owned(), format!("id=larder,src={}", offer.bundle)]);
    }
    (!mounted).then_some(HTTP_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &[&str] = &["127.0.0.1:4000"];
    const EVERYWHERE: &[&str] = &["127.0.0.1:4000", "0.0.0.0:3142"];

    fn fit(line: &str, listening: &[&str]) -> Option<Fitted> {
        let listening: Vec<_> = listening.iter().map(|text| text.parse().unwrap()).collect();
        let offer = Offer {
            listening: &listening,
            machine: Some("198.51.100.7".parse().unwrap()),
            bundle: "/run/bundle.pem",
            no_proxy: "localhost",
            without_buildkit: line.starts_with("old-"),
        };
        let words = line.trim_start_matches("old-").split_whitespace();
        fitted(&words.map(OsString::from).collect::<Vec<_>>(), &offer)
    }

    /// The command as one line, without the six that are the same in all.
    fn line(line: &str, listening: &[&str]) -> String {
        let fitted = fit(line, listening).unwrap();
        let words: Vec<_> =
            fitted.command.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
        words
            .join(" ")
            .replace("--build-arg NO_PROXY=localhost --build-arg no_proxy=localhost ", "")
    }

    fn http(proxy: &str) -> String {
        format!(
            "--build-arg HTTP_PROXY={proxy} --build-arg http_proxy={proxy} --build-arg LARDER={proxy}"
        )
    }

    #[test]
    fn a_larder_on_loopback_is_reached_in_the_machines_network() {
        let http = http("http://127.0.0.1:4000");
        let secret = "--secret id=larder,src=/run/bundle.pem";
        assert_eq!(
            line("docker build -t x /none", LOOPBACK),
            format!("docker build --network host {http} {secret} -t x /none")
        );
        assert_eq!(
            line("buildah --root /s bud --isolation chroot /none", LOOPBACK),
            format!(
                "buildah --root /s bud --http-proxy=false --network host {http} {secret} --isolation chroot /none"
            )
        );
        assert_eq!(
            line("podman build --network=host /none", EVERYWHERE),
            format!("podman build --http-proxy=false {http} {secret} --network=host /none")
        );
    }

    #[test]
    fn a_larder_for_all_is_reached_at_the_machine() {
        let secret = "--secret id=larder,src=/run/bundle.pem";
        assert_eq!(
            line("docker buildx build /none", EVERYWHERE),
            format!(
                "docker buildx build --add-host larder.internal:host-gateway {} {secret} /none",
                http("http://larder.internal:3142")
            )
        );
        let at_machine = http("http://198.51.100.7:3142");
        assert_eq!(
            line("podman build /none", EVERYWHERE),
            format!("podman build --http-proxy=false {at_machine} {secret} /none")
        );
        assert_eq!(
            line("docker compose -f c.yaml build web", EVERYWHERE),
            format!("docker compose -f c.yaml build {at_machine} web")
        );
        assert_eq!(
            line("docker build /none", &["172.17.0.1:1"]),
            format!("docker build {} {secret} /none", http("http://172.17.0.1:1"))
        );
    }

    #[test]
    fn a_build_that_cannot_reach_larder_is_left_alone_and_the_user_is_told() {
        let alone = |line: &str| {
            let fitted = fit(line, LOOPBACK).unwrap();
            let words: Vec<_> = fitted.command.iter().map(|word| word.to_str().unwrap()).collect();
            (words.join(" "), fitted.note)
        };
        for unchanged in ["docker compose build", "docker build --network mine /none"] {
            assert_eq!(alone(unchanged), (unchanged.to_owned(), Some(UNREACHED)));
        }
        // The engine's proxy would be handed on to steps that cannot reach it.
        assert_eq!(
            alone("buildah build --network mine /none").0,
            "buildah build --http-proxy=false --network mine /none"
        );
        assert_eq!(alone("docker build --network none /none").1, None);
    }

    #[test]
    fn https_goes_through_larder_where_a_step_mounts_its_roots() {
        let context = tempfile::tempdir().unwrap();
        let directory = context.path().to_str().unwrap().to_owned();
        for (text, through) in [("RUN --mount=type=secret,id=larder pip", true), ("RUN pip", false)]
        {
            let file = context.path().join("Containerfile");
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.create(true).write(true).truncate(true).open(file).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            let fitted = fit(&format!("buildah bud {directory}"), LOOPBACK).unwrap();
            let https = fitted
                .command
                .iter()
                .any(|word| word.to_str() == Some("HTTPS_PROXY=http://127.0.0.1:4000"));
            assert_eq!(https, through, "{text}");
            assert_eq!(fitted.note, (!through).then_some(HTTP_ONLY));
        }
    }

    #[test]
    fn who_knows_no_secrets_is_given_none() {
        for command in ["old-docker build /none", "docker-compose build"] {
            let fitted = fit(command, EVERYWHERE).unwrap();
            assert!(!fitted.command.iter().any(|word| word == "--secret"), "{fitted:?}");
            assert_eq!(fitted.note, Some(NO_SECRETS));
        }
        let own = line("docker build --secret id=larder,src=/mine /none", LOOPBACK);
        assert_eq!(own.matches("id=larder").count(), 1, "{own}");
    }

    #[test]
    fn nothing_but_builds_is_touched() {
        for other in
            ["docker run x build", "buildah from x", "podman --root build ps", "make build"]
        {
            assert_eq!(fit(other, LOOPBACK), None, "{other}");
        }
    }
}
