//! Image builds: a build's steps have an environment, a network and root certificates of their own, which variables
//! do not reach. Instead larder adds arguments to the builder's command line, right after its subcommand, where the
//! user's own arguments come later and win.
//!
//! ```text
//! call      ── the builder, where its arguments begin, the network and Containerfile that they name
//! way       ── where the steps reach larder: loopback in the machine's network, else an address of the machine
//! recipe    ── the images that the Containerfile begins its stages with
//! twin      ── for Buildah and Podman: variables that name the roots, in the steps and not in the image
//! arguments ── proxy variables that every builder predefines, which stay in no image; LARDER for the images of `ca/images`;
//!              the roots as the secret `larder`
//! ```
//!
//! A build argument without a value (`--build-arg HTTPS_PROXY`, `args: [HTTPS_PROXY]`) takes it from the builder's
//! environment; larder's address in there would be neither reachable nor trusted in the steps. Docker's commands
//! download nothing themselves, so they keep the caller's environment; Buildah and Podman pull images, so they get
//! larder's variables, and such arguments are given the caller's value.
//!
//! No builder mounts root certificates into steps that do not ask for them: a volume would leave its mount point in
//! the image, and mounted over the system's bundle it would break the step that updates it. Buildah and Podman are
//! given twins of the base images instead (`twin`). With docker, https goes through larder only where a Containerfile
//! mounts the secret, and in the base images that know larder's CA; all other downloads over https bypass larder.
//!
//! Sources: docs.docker.com/reference/dockerfile (predefined ARGs), buildah-build(1), podman-build(1), `docker
//! compose build --help`.

mod call;
mod recipe;
mod twin;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use self::call::{Builder, Call, Network};
use crate::cli::clients::{self, containers};
use crate::config::environment::Environment;

/// The larder that a build uses.
#[derive(Clone, Debug)]
pub(super) struct Offer<'a> {
    /// The addresses on which it listens.
    pub(super) listening: &'a [SocketAddr],
    /// The address of this machine towards other machines, if it has one.
    pub(super) machine: Option<IpAddr>,
    /// The file with larder's CA and the machine's roots.
    pub(super) bundle: &'a str,
    /// The hosts that bypass a proxy.
    pub(super) no_proxy: &'a str,
    /// The variables that larder sets for the builder, in addition to the caller's environment.
    pub(super) variables: &'a [(&'static str, String)],
    /// The caller's environment.
    pub(super) environment: &'a Environment,
    /// What a command of the builder's prints; `None` if it fails.
    pub(super) said: fn(&[OsString]) -> Option<String>,
}

/// What a command prints on its standard output; `None` if it fails.
pub(super) fn said(words: &[OsString]) -> Option<String> {
    let (program, arguments) = words.split_first()?;
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Offer<'_> {
    /// The value that larder gives a variable.
    fn value(&self, wanted: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(name, _)| *name == wanted)?;
        Some(&found.1)
    }
}

/// A build's command line with larder's additions, and a note for the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    pub(super) command: Vec<OsString>,
    pub(super) note: Option<&'static str>,
    /// Whether the command gets the caller's environment, without larder's variables.
    pub(super) keeps_environment: bool,
    /// Whether the command is an image build.
    pub(super) is_build: bool,
}

const UNREACHED: &str = "the build's network does not reach a larder on loopback: its steps go around larder. Let one listen \
                         on the bridge's address (larder serve --listen 0.0.0.0:3142), or build with --network host";
const HTTP_ONLY: &str = "https downloads of this build's steps go around larder, except on a base image of ca/images or where \
                         the Containerfile mounts the secret `larder`: docs/docker.md";
const NO_SECRETS: &str = "this builder is given no secret: https downloads of its steps go around larder, except on a base image \
                          of ca/images";
const OLDER_BUILDER: &str = "Docker's older builder knows no secrets: https downloads of its steps go around larder, except on a base \
                             image that SECRETS=no ca/images/build made";

/// Adapts `command` to the larder in `offer`; `None` if it is no image build.
pub(super) fn fitted(command: &[OsString], offer: &Offer<'_>) -> Option<Fitted> {
    let call = Call::of(command)?;
    let mut added: Vec<String> = Vec::new();
    // Buildah and Podman would pass the engine's own proxy to the steps. These lack the root certificates for it, or
    // its loopback address is not theirs.
    if call.builder == Builder::Buildah && !call.names("--http-proxy") {
        added.push("--http-proxy=false".to_owned());
    }
    let note = match way(&call, offer) {
        Some((proxy, arguments)) => {
            added.extend(arguments);
            let trusted = match call.builder {
                Builder::Buildah => twin::arguments(&call, command, offer),
                Builder::Docker | Builder::Compose => None,
            };
            let are_trusted = trusted.is_some();
            added.extend(trusted.into_iter().flatten());
            let older = is_older(&call, command, offer);
            Some(add_clients(&mut added, &call, &proxy, offer, are_trusted, older))
        }
        None if call.network == Network::None => None,
        None => Some(Some(UNREACHED)),
    };
    let (before, after) = command.split_at_checked(call.arguments)?;
    let keeps_environment = call.builder != Builder::Buildah;
    let after = if keeps_environment { after.to_vec() } else { with_callers_values(after, offer) };
    let added = added.into_iter().map(OsString::from);
    let command = before.iter().cloned().chain(added).chain(after).collect();
    Some(Fitted { command, note: note.flatten(), keeps_environment, is_build: true })
}

/// The user's arguments. A build argument without a value, whose value would come from larder's variables, gets the
/// caller's value; if the caller has none, it is dropped.
fn with_callers_values(arguments: &[OsString], offer: &Offer<'_>) -> Vec<OsString> {
    let mut fitted = Vec::with_capacity(arguments.len());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = match word.to_str().map(|text| text.split_once('=').unwrap_or((text, ""))) {
            Some((call::BUILD_ARGUMENT, "")) => words.next().cloned(),
            Some((call::BUILD_ARGUMENT, value)) => Some(OsString::from(value)),
            _ => None,
        };
        let Some(value) = value else {
            fitted.push(word.clone());
            continue;
        };
        let set = offer.variables.iter().find(|(name, _)| value.to_str() == Some(*name));
        match set.map(|(name, _)| (name, offer.environment.get(name))) {
            None => fitted.extend([OsString::from(call::BUILD_ARGUMENT), value]),
            Some((name, Some(callers))) => {
                fitted.extend([call::BUILD_ARGUMENT.into(), format!("{name}={callers}").into()]);
            }
            Some((_, None)) => {}
        }
    }
    fitted
}

/// The address at which the build's steps reach larder, and the arguments needed for that.
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
        // Not all versions in use support `host-gateway`.
        (_, Builder::Compose | Builder::Buildah, Some(address)) => {
            let ip = if address.ip().is_unspecified() { offer.machine? } else { address.ip() };
            Some((format!("http://{}", SocketAddr::new(ip, address.port())), vec![]))
        }
    }
}

/// Whether docker uses its older builder, which stops at `--secret`: because a variable says so, or because the newer one is not
/// installed or not the default. Docker's help lists only the options of the builder that it would use.
fn is_older(call: &Call<'_>, command: &[OsString], offer: &Offer<'_>) -> bool {
    if call.builder != Builder::Docker {
        return false;
    }
    if offer.environment.get("DOCKER_BUILDKIT") == Some("0") {
        return true;
    }
    let mut words = command.get(..call.arguments).unwrap_or_default().to_vec();
    words.push("--help".into());
    (offer.said)(&words).is_some_and(|help| help.contains("--tag") && !help.contains("--secret"))
}

/// Adds the arguments for clients in the steps; returns a note for the user.
fn add_clients(
    added: &mut Vec<String>,
    call: &Call<'_>,
    proxy: &str,
    offer: &Offer<'_>,
    are_trusted: bool,
    older: bool,
) -> Option<&'static str> {
    // An argument that the user gives in one case also stands for the other case, which some clients prefer.
    let said = call.build_arguments();
    let mut argument = |name: &str, value: &str| {
        if !said.iter().any(|said| said.eq_ignore_ascii_case(name)) {
            added.extend([call::BUILD_ARGUMENT.to_owned(), format!("{name}={value}")]);
        }
    };
    for name in ["HTTP_PROXY", "http_proxy"] {
        argument(name, proxy);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        argument(name, offer.no_proxy);
    }
    argument("LARDER", proxy);
    if older {
        return Some(OLDER_BUILDER);
    }
    if are_trusted {
        for name in ["HTTPS_PROXY", "https_proxy"] {
            argument(name, proxy);
        }
    }
    // Builders parse the argument as a line of CSV, and not all of them support quotes in it.
    if call.builder == Builder::Compose || offer.bundle.contains([',', '"']) {
        return (!are_trusted).then_some(NO_SECRETS);
    }
    let mounted = call.mounts_secret();
    if mounted && !are_trusted {
        for name in ["HTTPS_PROXY", "https_proxy"] {
            argument(name, proxy);
        }
    }
    if !call.gives_secret() {
        added.extend(["--secret".to_owned(), format!("id=larder,src={}", offer.bundle)]);
    }
    (!mounted && !are_trusted).then_some(HTTP_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &[&str] = &["127.0.0.1:4000"];
    const EVERYWHERE: &[&str] = &["127.0.0.1:4000", "0.0.0.0:3142"];

    fn fit(line: &str, listening: &[&str]) -> Option<Fitted> {
        fit_by(line, listening, |_| Some("--secret --tag".to_owned()))
    }

    fn fit_by(
        line: &str,
        listening: &[&str],
        said: fn(&[OsString]) -> Option<String>,
    ) -> Option<Fitted> {
        let listening: Vec<_> = listening.iter().map(|text| text.parse().unwrap()).collect();
        let older = line.starts_with("old-").then_some(("DOCKER_BUILDKIT", "0"));
        let corporate = [("HTTP_PROXY", "http://corporate.example.org")];
        let environment = older.into_iter().chain(corporate).collect();
        let variables =
            ["HTTP_PROXY", "HTTPS_PROXY", "PIP_CERT"].map(|name| (name, "x".to_owned()));
        let offer = Offer {
            listening: &listening,
            machine: Some("198.51.100.7".parse().unwrap()),
            bundle: "/run/bundle.pem",
            no_proxy: "localhost",
            variables: &variables,
            environment: &environment,
            said,
        };
        let words = line.trim_start_matches("old-").split_whitespace();
        fitted(&words.map(OsString::from).collect::<Vec<_>>(), &offer)
    }

    /// The command as one line, without the six arguments that are always the same.
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
        // Otherwise the engine's proxy would be passed to steps that cannot reach it.
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
        for (command, note) in
            [("old-docker build /none", OLDER_BUILDER), ("docker-compose build", NO_SECRETS)]
        {
            let fitted = fit(command, EVERYWHERE).unwrap();
            assert!(!fitted.command.iter().any(|word| word == "--secret"), "{fitted:?}");
            assert_eq!(fitted.note, Some(note));
        }
        // No variable says so, but docker's help does.
        let asked = |words: &[OsString]| {
            assert_eq!(words, ["docker", "build", "--help"]);
            Some("Usage: docker build\n --tag list".to_owned())
        };
        let fitted = fit_by("docker build /none", EVERYWHERE, asked).unwrap();
        assert!(!fitted.command.iter().any(|word| word == "--secret"), "{fitted:?}");
        assert_eq!(fitted.note, Some(OLDER_BUILDER));
        let unknown = fit_by("docker build /none", EVERYWHERE, |_| None).unwrap();
        assert!(unknown.command.iter().any(|word| word == "--secret"), "the control");
        let own = line("docker build --secret id=larder,src=/mine /none", LOOPBACK);
        assert_eq!(own.matches("id=larder").count(), 1, "{own}");
    }

    /// `--build-arg HTTPS_PROXY`, as is usual behind a proxy: larder's address is of no use to a step.
    #[test]
    fn an_argument_without_a_value_has_the_callers() {
        for given in ["--build-arg HTTPS_PROXY --build-arg PIP_CERT", "--build-arg=HTTPS_PROXY"] {
            let told = line(&format!("podman build {given} -t x /none"), LOOPBACK);
            assert!(!told.contains("HTTPS_PROXY") && !told.contains("PIP_CERT"), "{told}");
            assert!(told.ends_with(" -t x /none"), "{told}");
        }
        let told =
            line("buildah bud --build-arg HTTP_PROXY --build-arg=A --build-arg B /none", LOOPBACK);
        let end =
            "--build-arg HTTP_PROXY=http://corporate.example.org --build-arg A --build-arg B /none";
        assert!(
            told.ends_with(end) && !told.contains("127.0.0.1:4000 --build-arg http_proxy"),
            "{told}"
        );
        assert!(line("buildah bud --build-arg", LOOPBACK).ends_with(" --build-arg"), "as it was");
        // Docker's commands take the value from the environment, which is the caller's.
        let told = fit("docker build --build-arg HTTPS_PROXY /none", LOOPBACK).unwrap();
        assert!(
            told.keeps_environment
                && told.command.ends_with(&["HTTPS_PROXY".into(), "/none".into()])
        );
        assert!(
            !fit("buildah bud /none", LOOPBACK).unwrap().keeps_environment,
            "it pulls the base image"
        );
    }

    #[test]
    fn a_proxy_that_the_user_names_is_not_named_otherwise() {
        let own =
            line("docker build --build-arg http_proxy=http://own.example.org:1 /none", LOOPBACK);
        assert!(
            !own.contains("HTTP_PROXY=") && own.contains(" --build-arg LARDER=http://127"),
            "{own}"
        );
        let own =
            line("docker build --build-arg=HTTP_PROXY=http://own.example.org:1 /none", LOOPBACK);
        assert!(!own.contains("http_proxy="), "{own}");
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
