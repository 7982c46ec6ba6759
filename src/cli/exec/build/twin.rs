//! Lets the steps of a Buildah or Podman build trust larder, without a change of the Containerfile and without a trace in
//! the image.
//!
//! A step's variables come from the configuration of its base image. So each base image gets a twin: the same layers and
//! history, and a configuration with the variables that name larder's root certificates.
//!
//! ```text
//! recipe    ── the images that the Containerfile begins its stages with
//! inspected ── the image's configuration, out of the builder's own store; it is pulled first if it is not there
//! twin      ── `pull dir:…` of a manifest and a configuration; the layers are in the store, and nothing is copied
//! arguments ── --build-context IMAGE=container-image://TWIN; --unsetenv for each variable, so that the image that is
//!              built has none of them; --volume of the certificates to a directory in /dev/shm
//! ```
//!
//! `/dev/shm` is a file system of its own in every step, so that the mount point stays in no image. With the isolation
//! `chroot` it is the machine's own, and the volume is not seen there: therefore the certificates lie at the same path on
//! the machine. They contain nothing secret.
//!
//! Whatever cannot be done (no such command, an image that cannot be inspected, an engine elsewhere) leaves the build as
//! it is without this: its https downloads go around larder.
//!
//! Sources: buildah-build(1), podman-build(1), containers-transports(5), the image manifest v2 schema 2.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::Offer;
use super::call::Call;
use super::recipe::Recipe;
use crate::cli::clients::place;
use crate::digest::{Algorithm, Algorithms, Hashing};

/// The builder's arguments by which its steps trust larder; `None` if that cannot be done.
pub(super) fn arguments(
    call: &Call<'_>,
    command: &[OsString],
    offer: &Offer<'_>,
) -> Option<Vec<String>> {
    // Twins of other platforms' images, images that the user swaps, and engines on other machines.
    let elsewhere =
        ["--platform", "--arch", "--os", "--variant", "--build-context", "--from", "--manifest"];
    if elsewhere.iter().any(|option| call.names(option))
        || offer.environment.get("CONTAINER_HOST").is_some()
        || offer.environment.get("DOCKER_HOST").is_some()
    {
        return None;
    }
    let builder = Builder { before: command.get(..call.before)?, offer };
    let remote = ["--remote", "-r", "--url", "--connection", "-c", "--host"];
    if builder.before.iter().any(|word| {
        word.to_str().is_some_and(|word| remote.contains(&word.split('=').next().unwrap_or(word)))
    }) {
        return None;
    }
    let recipe = Recipe::of(&call.containerfile()?, &call.values_of_build_arguments())?;
    let shared = Shared::make(offer)?;
    let images: Vec<Image> =
        recipe.bases.keys().map(|name| builder.image(name)).collect::<Option<_>>()?;
    // What an image or the Containerfile sets itself stays as it is, and must not be removed at the end.
    let variables: Vec<_> = shared
        .variables(offer)
        .into_iter()
        .filter(|(name, _)| !recipe.mentions(name) && !images.iter().any(|image| image.sets(name)))
        .collect();
    let mut arguments = Vec::new();
    for ((name, written), image) in recipe.bases.iter().zip(&images) {
        let id = builder.twin(image, &variables, &shared.directory)?;
        // Buildah 1.28 compares with what is written, later ones with what the build arguments make of it.
        let names: BTreeSet<&String> = written.iter().chain([name]).collect();
        for name in names {
            arguments
                .extend(["--build-context".to_owned(), format!("{name}=container-image://{id}")]);
        }
    }
    for (name, _) in &variables {
        arguments.extend(["--unsetenv".to_owned(), (*name).to_owned()]);
    }
    let directory = shared.directory.to_str()?;
    arguments.extend(["--volume".to_owned(), format!("{directory}:{directory}:ro")]);
    Some(arguments)
}

/// The files with larder's root certificates, at a path that steps share with the machine.
struct Shared {
    directory: PathBuf,
}

/// Where a step has a file system of its own, in every image.
const SHARED: &str = "/dev/shm";

impl Shared {
    /// Copies them. The path depends on nothing but their content, so that the builder finds cached steps again.
    fn make(offer: &Offer<'_>) -> Option<Self> {
        let bundle = std::fs::read(offer.bundle).ok()?;
        let extra = std::fs::read(offer.value("NODE_EXTRA_CA_CERTS")?).ok()?;
        let directory = place::own(Path::new(SHARED)).ok()?.join(sha256(&bundle).get(..16)?);
        place::make(&directory).ok()?;
        let at = directory.display();
        let trees = ["", "Binary::apt::", "Binary::apt-get::"];
        let apt = trees
            .map(|tree| format!("{tree}Acquire::https::CaInfo \"{at}/bundle.pem\";\n"))
            .concat();
        let wget = format!("ca_certificate = {at}/bundle.pem\n");
        for (name, content) in [
            ("bundle.pem", bundle.as_slice()),
            ("extra.pem", &extra),
            ("apt.conf", apt.as_bytes()),
            ("wgetrc", wget.as_bytes()),
        ] {
            crate::cli::clients::put(&directory.join(name), content).ok()?;
        }
        Some(Self { directory })
    }

    /// The variables that name files, each with its file here. Those that name larder's address reach the steps as build
    /// arguments, which stay in no image.
    fn variables(&self, offer: &Offer<'_>) -> Vec<(&'static str, String)> {
        let place = |name: &str, value: &str| {
            let file = Path::new(value).file_name()?.to_str()?;
            let is_file = ["bundle.pem", "extra.pem", "apt.conf", "wgetrc"].contains(&file);
            match name {
                "NODE_USE_ENV_PROXY" => Some(value.to_owned()),
                _ if is_file => Some(self.directory.join(file).display().to_string()),
                _ => None,
            }
        };
        let variables = offer.variables.iter();
        variables.filter_map(|(name, value)| Some((*name, place(name, value)?))).collect()
    }
}

/// The builder's program with its own options, without a subcommand.
struct Builder<'a> {
    before: &'a [OsString],
    offer: &'a Offer<'a>,
}

/// An image in the builder's store.
struct Image {
    configuration: Value,
}

impl Image {
    /// From what `inspect` prints: Buildah prints the configuration itself, Podman its parts.
    fn inspected(text: &[u8]) -> Option<Self> {
        let said: Value = serde_json::from_slice(text).ok()?;
        if let Some(configuration) = said.get("Config").and_then(Value::as_str) {
            return Some(Self { configuration: serde_json::from_str(configuration).ok()? });
        }
        let image = said.get(0)?;
        let mut config = image.get("Config")?.clone();
        if let (Some(check), Some(config)) = (image.get("Healthcheck"), config.as_object_mut()) {
            config.insert("Healthcheck".to_owned(), check.clone());
        }
        let configuration = json!({
            "created": image.get("Created")?,
            "architecture": image.get("Architecture")?,
            "os": image.get("Os")?,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": image.get("RootFS")?.get("Layers")?},
            "history": image.get("History")?,
        });
        Some(Self { configuration })
    }

    fn environment(&self) -> impl Iterator<Item = &str> {
        let list = self.configuration.pointer("/config/Env").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    }

    fn sets(&self, name: &str) -> bool {
        self.environment().any(|pair| pair.split('=').next() == Some(name))
    }

    /// The manifest and the configuration of its twin.
    fn twin(&self, variables: &[(&'static str, String)]) -> Option<(Value, Vec<u8>)> {
        let mut configuration = self.configuration.clone();
        let pairs = variables.iter().map(|(name, value)| format!("{name}={value}"));
        let list: Vec<String> = self.environment().map(str::to_owned).chain(pairs).collect();
        configuration.get_mut("config")?.as_object_mut()?.insert("Env".to_owned(), json!(list));
        let layers = configuration.pointer("/rootfs/diff_ids")?.as_array()?;
        // The store knows its layers by the digests of what is unpacked, and asks for none that it has.
        let kind = "application/vnd.docker.image.rootfs.diff.tar";
        let layers: Vec<Value> = layers
            .iter()
            .map(|digest| json!({"mediaType": kind, "size": 0, "digest": digest}))
            .collect();
        let bytes = serde_json::to_vec(&configuration).ok()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": bytes.len(),
                "digest": format!("sha256:{}", sha256(&bytes)),
            },
            "layers": layers,
        });
        Some((manifest, bytes))
    }
}

impl Builder<'_> {
    /// What a command of the builder's prints; `None` if it fails.
    fn asked(&self, words: &[&str]) -> Option<Vec<u8>> {
        let (program, options) = self.before.split_first()?;
        let variables = self.offer.variables.iter().map(|(name, value)| (*name, value));
        let output = Command::new(program)
            .args(options)
            .args(words)
            .envs(variables)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output.status.success().then_some(output.stdout)
    }

    fn image(&self, name: &str) -> Option<Image> {
        let inspect = || {
            let buildahs = self.asked(&["inspect", "--type", "image", name]);
            buildahs.and_then(|said| Image::inspected(&said))
        };
        inspect().or_else(|| {
            self.asked(&["pull", "-q", name])?;
            inspect()
        })
    }

    /// The ID of the twin in the builder's store.
    fn twin(
        &self,
        image: &Image,
        variables: &[(&'static str, String)],
        near: &Path,
    ) -> Option<String> {
        let (manifest, configuration) = image.twin(variables)?;
        let directory = near.with_extension(format!("twin-{}", std::process::id()));
        place::make(&directory).ok()?;
        let written = [
            ("version".to_owned(), b"Directory Transport Version: 1.1\n".to_vec()),
            ("manifest.json".to_owned(), serde_json::to_vec(&manifest).ok()?),
            (sha256(&configuration), configuration),
        ]
        .iter()
        .all(|(name, content)| crate::cli::clients::put(&directory.join(name), content).is_ok());
        let source = format!("dir:{}", directory.display());
        let said = if written { self.asked(&["pull", "-q", &source]) } else { None };
        // Best effort: it lies in memory, in a directory of this user's own.
        let _gone = std::fs::remove_dir_all(&directory);
        let said = String::from_utf8(said?).ok()?;
        let id = said.trim();
        (id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit())).then(|| id.to_owned())
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut hashing = Hashing::new(Algorithms::NONE.with(Algorithm::Sha256));
    hashing.update(bytes);
    hashing.finish().get(Algorithm::Sha256).map(crate::digest::Digest::to_hex).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: &str = r#"{"created":"x","architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},
        "rootfs":{"type":"layers","diff_ids":["sha256:aa","sha256:bb"]},"history":[{"created_by":"x"}]}"#;

    #[test]
    fn a_twin_differs_in_its_variables_alone() {
        let said = json!({"Config": CONFIGURATION});
        let image = Image::inspected(said.to_string().as_bytes()).unwrap();
        assert!(image.sets("PATH") && !image.sets("PIP_CERT"));
        let (manifest, configuration) =
            image.twin(&[("PIP_CERT", "/dev/shm/x".to_owned())]).unwrap();
        let mut configuration: Value = serde_json::from_slice(&configuration).unwrap();
        assert_eq!(configuration["config"]["Env"], json!(["PATH=/bin", "PIP_CERT=/dev/shm/x"]));
        configuration["config"]["Env"] = json!(["PATH=/bin"]);
        let original: Value = serde_json::from_str(CONFIGURATION).unwrap();
        assert_eq!(configuration, original);
        let digests: Vec<_> =
            manifest["layers"].as_array().unwrap().iter().map(|one| &one["digest"]).collect();
        assert_eq!(digests, ["sha256:aa", "sha256:bb"]);
    }

    #[test]
    fn podmans_words_for_an_image_give_the_same() {
        let said = json!([{
            "Created": "x", "Architecture": "amd64", "Os": "linux",
            "Config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "RootFS": {"Type": "layers", "Layers": ["sha256:aa", "sha256:bb"]},
            "History": [{"created_by": "x"}],
        }]);
        let image = Image::inspected(said.to_string().as_bytes()).unwrap();
        let original: Value = serde_json::from_str(CONFIGURATION).unwrap();
        assert_eq!(image.configuration, original);
        assert!(Image::inspected(b"[]").is_none() && Image::inspected(b"no JSON").is_none());
    }

    #[test]
    fn an_image_without_variables_gets_some() {
        let text = CONFIGURATION.replace(r#""Env":["PATH=/bin"],"#, "");
        let image = Image::inspected(json!({"Config": text}).to_string().as_bytes()).unwrap();
        let (_, configuration) = image.twin(&[("A", "b".to_owned())]).unwrap();
        let configuration: Value = serde_json::from_slice(&configuration).unwrap();
        assert_eq!(configuration["config"]["Env"], json!(["A=b"]));
    }
}
