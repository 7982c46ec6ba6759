//! The known clients: where each finds its proxy and its roots, and how to make it request a URL.
//!
//! Sources: each program's manual. `ca/README.md` lists which variable was tested with which program.

use std::path::Path;

/// A program that downloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) name: &'static str,
    /// The first of these that exists is run.
    pub(super) programs: &'static [&'static str],
    /// The variables from which it takes the proxy for https, in order of precedence.
    pub(super) proxies: &'static [&'static str],
    /// The variables that name its root certificates, in order of precedence.
    pub(super) roots: &'static [&'static str],
    /// How it is examined.
    pub(super) by: By,
    /// The commands that print the proxy and the roots of its own settings.
    pub(super) asks: Option<[&'static [&'static str]; 2]>,
}

/// How a client is examined.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// By a real request, with these arguments.
    Request(fn(url: &str, directory: &Path) -> Vec<String>),
    /// By its variables and the system's roots. `own_roots`: the system's roots alone are not enough.
    Inspection { own_roots: bool },
    /// Not at all: a daemon with an environment of its own fetches for it. The text says where that is explained.
    Daemon(&'static str),
}

/// Variables with hosts that bypass the proxy; some clients read one more.
pub(super) const AROUND: [&str; 3] = ["no_proxy", "NO_PROXY", "npm_config_noproxy"];

/// The variables from which most clients take the proxy.
pub(super) const ANY: &[&str] = &["https_proxy", "HTTPS_PROXY"];

/// Written to a file, to be run as `java Probe.java URL`.
pub(super) const JAVA: &str = "\
public class Probe {
    public static void main(String[] arguments) throws Exception {
        var connection = (java.net.HttpURLConnection) new java.net.URL(arguments[0]).openConnection();
        connection.setConnectTimeout(15000);
        connection.setReadTimeout(15000);
        System.out.println(connection.getResponseCode());
    }
}
";

/// Uses Node's own `fetch` if it supports proxies (22.21, 24). Older versions use Node's TLS and roots behind a
/// CONNECT: there every program brings its own proxy support.
const NODE: &str = "\
const url = process.argv[1], [major, minor] = process.versions.node.split('.').map(Number);
const fail = (e) => { console.error(String(e.cause || e)); process.exit(1); };
if (major >= 24 || (major === 22 && minor >= 21)) fetch(url).then((r) => r.text()).catch(fail);
else {
  const at = process.env.https_proxy || process.env.HTTPS_PROXY;
  if (!at) fail('no proxy is set');
  const host = new URL(url).hostname, p = new URL(at);
  require('http').request({ host: p.hostname, port: p.port || 80, method: 'CONNECT', path: host + ':443' })
    .on('error', fail).on('connect', (_, socket) => {
      const createConnection = () => require('tls').connect({ socket, servername: host });
      require('https').get(url, { createConnection, defaultPort: 443 }, (r) => r.resume().on('end', () => process.exit()))
        .on('error', fail);
    }).end();
}";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// All known clients. The URL has no slash at its end.
pub(super) const CLIENTS: &[Client] = &[
    Client {
        name: "curl",
        programs: &["curl"],
        proxies: ANY,
        roots: &["CURL_CA_BUNDLE", "SSL_CERT_FILE"],
        by: By::Request(|url, _| words(&["-sS", "-o", "/dev/null", "--max-time", "20", url])),
        asks: None,
    },
    Client {
        name: "wget",
        programs: &["wget"],
        // Only in small letters.
        proxies: &["https_proxy"],
        roots: &[],
        by: By::Request(|url, _| words(&["-nv", "-T", "15", "-t", "1", "-O", "/dev/null", url])),
        asks: None,
    },
    Client {
        name: APT,
        programs: &["/usr/lib/apt/apt-helper"],
        proxies: &["https_proxy"],
        roots: &[],
        by: By::Request(|url, directory| {
            let file = directory.join("apt").display().to_string();
            words(&["-o", "Acquire::Retries=0", "download-file", url, &file])
        }),
        asks: Some([
            &["apt-config", "dump", "--format", "%v%n", "Acquire::https::Proxy"],
            &["apt-config", "dump", "--format", "%v%n", "Acquire::https::CaInfo"],
        ]),
    },
    Client {
        name: "git",
        programs: &["git"],
        proxies: ANY,
        roots: &["GIT_SSL_CAINFO"],
        by: By::Request(|url, _| words(&["ls-remote", &format!("{url}/probe.git")])),
        asks: Some([
            &["git", "config", "--get", "http.proxy"],
            &["git", "config", "--get", "http.sslCAInfo"],
        ]),
    },
    Client {
        name: "pip",
        programs: &["pip", "pip3"],
        proxies: &["PIP_PROXY", "https_proxy", "HTTPS_PROXY"],
        // pip's HTTP library prefers its own variables to pip's.
        roots: &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"],
        by: By::Request(|url, directory| {
            let (index, into) =
                (format!("{url}/simple/"), directory.join("pip").display().to_string());
            words(&[
                "download",
                "--no-deps",
                "--no-input",
                "--no-cache-dir",
                "--disable-pip-version-check",
                "--retries",
                "0",
                "--timeout",
                "15",
                "--index-url",
                &index,
                "-d",
                &into,
                "larder-probe",
            ])
        }),
        asks: Some([
            &["pip", "config", "get", "global.proxy"],
            &["pip", "config", "get", "global.cert"],
        ]),
    },
    Client {
        name: "npm",
        programs: &["npm"],
        proxies: &["npm_config_https_proxy", "HTTPS_PROXY", "https_proxy"],
        roots: &["npm_config_cafile", "NODE_EXTRA_CA_CERTS"],
        by: By::Request(|url, directory| {
            let (registry, cache) =
                (format!("{url}/"), directory.join("npm").display().to_string());
            words(&[
                "ping",
                "--registry",
                &registry,
                "--cache",
                &cache,
                "--fetch-retries=0",
                "--fetch-timeout=15000",
                "--no-update-notifier",
            ])
        }),
        asks: Some([&["npm", "config", "get", "https-proxy"], &["npm", "config", "get", "cafile"]]),
    },
    Client {
        name: "node",
        programs: &["node"],
        proxies: ANY,
        roots: &["NODE_EXTRA_CA_CERTS"],
        by: By::Request(|url, _| words(&["-e", NODE, url])),
        asks: None,
    },
    Client {
        name: "cargo",
        programs: &["cargo"],
        proxies: &["CARGO_HTTP_PROXY", "https_proxy", "HTTPS_PROXY"],
        roots: &["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"],
        by: By::Request(|url, _| {
            words(&["search", "larder-probe", "--index", &format!("sparse+{url}/index/")])
        }),
        asks: None,
    },
    Client {
        name: "java",
        programs: &["java"],
        proxies: &["JAVA_TOOL_OPTIONS"],
        roots: &[],
        by: By::Request(|url, directory| {
            words(&[&directory.join("Probe.java").display().to_string(), url])
        }),
        asks: None,
    },
    inspected("apk", &["apk"], ANY, &[], false),
    inspected("dnf", &["dnf", "microdnf", "yum"], ANY, &[], false),
    inspected("zypper", &["zypper"], ANY, &[], false),
    inspected("pacman", &["pacman"], ANY, &[], false),
    inspected("uv", &["uv"], ANY, &["SSL_CERT_FILE"], true),
    inspected("poetry", &["poetry"], ANY, &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"], true),
    // Yarn 1. For later versions see the function `yarn`.
    inspected(
        YARN,
        &["yarn"],
        &["npm_config_https_proxy", "HTTPS_PROXY", "https_proxy"],
        &["npm_config_cafile", "NODE_EXTRA_CA_CERTS"],
        true,
    ),
    inspected(
        "pnpm",
        &["pnpm"],
        &["npm_config_https_proxy", "HTTPS_PROXY", "https_proxy"],
        &["npm_config_cafile", "NODE_EXTRA_CA_CERTS"],
        true,
    ),
    inspected("go", &["go"], &["HTTPS_PROXY", "https_proxy"], &["SSL_CERT_FILE"], false),
    inspected("maven", &["mvn"], &["JAVA_TOOL_OPTIONS"], &[], false),
    inspected("gradle", &["gradle"], &["JAVA_TOOL_OPTIONS"], &[], false),
    inspected("composer", &["composer"], ANY, &["COMPOSER_CAFILE", "SSL_CERT_FILE"], false),
    inspected("gem", &["gem"], ANY, &["SSL_CERT_FILE"], false),
    inspected(
        "conda",
        &["conda", "mamba"],
        &["HTTPS_PROXY", "https_proxy"],
        &["CONDA_SSL_VERIFY", "REQUESTS_CA_BUNDLE"],
        true,
    ),
    inspected("podman", &["podman"], ANY, &["SSL_CERT_FILE"], false),
    inspected("buildah", &["buildah"], ANY, &["SSL_CERT_FILE"], false),
    inspected("skopeo", &["skopeo"], ANY, &["SSL_CERT_FILE"], false),
    Client {
        name: "docker",
        programs: &["docker"],
        proxies: &[],
        roots: &[],
        by: By::Daemon(
            "its daemon fetches, with an environment and roots of its own: docs/docker.md",
        ),
        asks: None,
    },
];

/// The wget of many small images. It reads one variable for every scheme, has no list of hosts that bypass the proxy,
/// and sends https URLs to the proxy as they are: TLS begins at larder, so it needs no root certificate.
pub(super) const BUSYBOX_WGET: Client = Client {
    name: "busybox wget",
    programs: &["wget"],
    proxies: &["http_proxy"],
    roots: &[],
    // Not every build of it supports a timeout.
    by: By::Request(|url, _| words(&["-O", "/dev/null", url])),
    asks: None,
};

/// Yarn 2 and 3. Since version 2, Yarn reads none of the proxy variables that other clients read (`Configuration.ts` of Yarn
/// Berry), and no list of hosts that bypass the proxy. Its TLS is Node's.
pub(super) const YARN_2: Client = Client {
    name: YARN,
    programs: &["yarn"],
    proxies: &["YARN_HTTPS_PROXY"],
    roots: &["YARN_CA_FILE_PATH", "NODE_EXTRA_CA_CERTS"],
    by: By::Inspection { own_roots: true },
    asks: Some([
        &["yarn", "config", "get", "httpsProxy"],
        &["yarn", "config", "get", "caFilePath"],
    ]),
};

/// Yarn 4 and later, in which the variable for the roots has another name. It refuses to run if the former variable is set.
pub(super) const YARN_4: Client = Client {
    roots: &["YARN_HTTPS_CA_FILE_PATH", "NODE_EXTRA_CA_CERTS"],
    asks: Some([
        &["yarn", "config", "get", "httpsProxy"],
        &["yarn", "config", "get", "httpsCaFilePath"],
    ]),
    ..YARN_2
};

/// A Yarn whose version is not known.
const YARN_UNKNOWN: Client = Client {
    roots: &["YARN_HTTPS_CA_FILE_PATH", "YARN_CA_FILE_PATH", "NODE_EXTRA_CA_CERTS"],
    asks: None,
    ..YARN_2
};

pub(super) const YARN: &str = "yarn";

pub(super) const APT: &str = "apt";

/// The Yarn of this version; `None` if it did not print its version. Then it is taken for a later version than 1, because the
/// proxy variable of version 2 works with every version.
pub(super) fn yarn(version: Option<&str>) -> Option<&'static Client> {
    let major = version.map(|version| version.split('.').next().unwrap_or_default());
    match major.map(str::parse::<u32>) {
        Some(Ok(0 | 1)) => CLIENTS.iter().find(|client| client.name == YARN),
        Some(Ok(2 | 3)) => Some(&YARN_2),
        Some(Ok(_)) => Some(&YARN_4),
        Some(Err(_)) | None => Some(&YARN_UNKNOWN),
    }
}

impl Client {
    /// Whether it reads the lists of hosts that bypass the proxy.
    pub(super) fn reads_lists(&self) -> bool {
        self.name != BUSYBOX_WGET.name && !self.is_modern_yarn()
    }

    /// Whether it is Yarn 2 or later.
    pub(super) fn is_modern_yarn(&self) -> bool {
        self.name == YARN && self.proxies == YARN_2.proxies
    }

    /// Whether it is a system tool that uses the system's roots only, and no setting of a user.
    pub(super) fn is_machines(&self) -> bool {
        ["apk", "dnf", "zypper", "pacman"].contains(&self.name)
    }
}

/// A client that is not run.
const fn inspected(
    name: &'static str,
    programs: &'static [&'static str],
    proxies: &'static [&'static str],
    roots: &'static [&'static str],
    own_roots: bool,
) -> Client {
    Client { name, programs, proxies, roots, by: By::Inspection { own_roots }, asks: None }
}

/// Variables that keep clients from retrying, and from prompting.
pub(super) const QUIET: [(&str, &str); 3] =
    [("GIT_TERMINAL_PROMPT", "0"), ("CARGO_NET_RETRY", "0"), ("CARGO_TERM_COLOR", "never")];
