//! Generated images: an OCI layout that real clients can push, for two platforms.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use larder::digest::Algorithm;

use crate::world::archive::hex;
use crate::world::noise;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image for two platforms, each with a layer of its own, in a directory.
pub(crate) struct Image {
    pub(crate) layout: PathBuf,
    /// The digests of the layers for amd64, `sha256:…`.
    pub(crate) layers: Vec<String>,
    /// The digests of every platform's manifest, and of the index that names them.
    pub(crate) manifests: Vec<String>,
}

impl Image {
    /// Makes one in `dir` whose layers have about `size` bytes, different for each `seed`.
    pub(crate) fn new(dir: &Path, seed: u64, size: usize) -> Self {
        let layout = dir.join(format!("layout-{seed}"));
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let mut image = Self { layout, layers: Vec::new(), manifests: Vec::new() };
        let mut children = Vec::new();
        for (architecture, number) in [("amd64", 1), ("arm64", 2)] {
            let common = image.layer(seed * 10, size / 4, "common");
            let own = image.layer(seed * 10 + number, size, architecture);
            if number == 1 {
                image.layers = vec![common.named(), own.named()];
            }
            let child = image.manifest(architecture, &[common, own]);
            image.manifests.push(child.named());
            children.push(child.text);
        }
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
            children.join(",")
        );
        let top = image.put(index.as_bytes(), INDEX, "");
        image.manifests.push(top.named());
        let top = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, top.text);
        std::fs::write(image.layout.join("index.json"), top).unwrap();
        image
    }

    fn manifest(&self, architecture: &str, layers: &[Put]) -> Put {
        let ids: Vec<String> =
            layers.iter().map(|layer| format!(r#""sha256:{}""#, layer.inner)).collect();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let config = self.put(config.as_bytes(), CONFIG, "");
        let layers: Vec<&str> = layers.iter().map(|layer| &*layer.text).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{},"layers":[{}]}}"#,
            config.text,
            layers.join(",")
        );
        let platform = format!(r#","platform":{{"architecture":"{architecture}","os":"linux"}}"#);
        self.put(manifest.as_bytes(), IMAGE, &platform)
    }

    fn layer(&self, seed: u64, size: usize, name: &str) -> Put {
        let tar = tar(name, &noise(seed, size));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&tar).unwrap();
        let put = self.put(&packed.finish().unwrap(), LAYER, "");
        Put { inner: hex(Algorithm::Sha256, &tar), ..put }
    }

    fn put(&self, bytes: &[u8], kind: &str, more: &str) -> Put {
        let digest = hex(Algorithm::Sha256, bytes);
        std::fs::write(self.layout.join("blobs/sha256").join(&digest), bytes).unwrap();
        let size = bytes.len();
        let text =
            format!(r#"{{"mediaType":"{kind}","digest":"sha256:{digest}","size":{size}{more}}}"#);
        Put { text, digest, inner: String::new() }
    }
}

/// A file of a layout.
struct Put {
    /// Its descriptor.
    text: String,
    digest: String,
    /// The digest of its uncompressed content.
    inner: String,
}

impl Put {
    fn named(&self) -> String {
        format!("sha256:{}", self.digest)
    }
}

/// An archive of one file (POSIX ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut set =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    set(0, name);
    set(100, "0000644\0");
    set(108, "0000000\0");
    set(116, "0000000\0");
    set(124, &format!("{:011o}\0", content.len()));
    set(136, "00000000000\0");
    set(148, "        ");
    set(156, "0");
    set(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut all = header.to_vec();
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(512) + 1024, 0);
    all
}
