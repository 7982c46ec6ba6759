//! Real clients as they are installed: they accept larder's certificates, and none of them ends with a wrong or a silently
//! truncated file, however it resumes or gives up by itself.

use std::path::PathBuf;
use std::process::Output;

use futures_util::future::join_all;

use crate::world::archive::{by_hash, flipped};
use crate::world::tools::{client, installed, run, text, trusted_file};
use crate::world::{Page, World, noise};

/// A client that downloads `$URL` to `$OUT`, with the usual arguments.
struct Downloader {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
}

/// Python's own client, and the copy loop that most scripts use.
const URLLIB: &str = "import os, shutil, urllib.request
with urllib.request.urlopen(os.environ['URL']) as answer, open(os.environ['OUT'], 'wb') as out:
    shutil.copyfileobj(answer, out)";

/// pip's vendored requests and urllib3, with which pip downloads.
const REQUESTS: &str = "import os
from pip._vendor import requests
with requests.get(os.environ['URL'], stream=True, timeout=60) as answer:
    answer.raise_for_status()
    with open(os.environ['OUT'], 'wb') as out:
        for piece in answer.iter_content(65536):
            out.write(piece)";

const DOWNLOADERS: &[Downloader] = &[
    Downloader {
        name: "curl",
        program: "curl",
        arguments: &["-fsS", "--http1.1", "-o", "$OUT", "$URL"],
    },
    Downloader {
        name: "curl h2",
        program: "curl",
        arguments: &["-fsS", "--http2", "-o", "$OUT", "$URL"],
    },
    Downloader {
        name: "curl that retries",
        program: "curl",
        arguments: &[
            "-fsS",
            "--retry",
            "2",
            "--retry-all-errors",
            "--retry-delay",
            "1",
            "-C",
            "-",
            "-o",
            "$OUT",
            "$URL",
        ],
    },
    Downloader {
        name: "wget",
        program: "wget",
        arguments: &["-q", "--tries=3", "--waitretry=1", "-O", "$OUT", "$URL"],
    },
    Downloader {
        name: "wget -c",
        program: "wget",
        arguments: &["-qc", "--tries=3", "--waitretry=1", "-O", "$OUT", "$URL"],
    },
    // Requests https URLs without CONNECT, and shuts down its sending side after the request.
    Downloader {
        name: "busybox wget",
        program: "busybox",
        arguments: &["wget", "-q", "-O", "$OUT", "$URL"],
    },
    Downloader {
        name: "apt-helper",
        program: "/usr/lib/apt/apt-helper",
        arguments: &["download-file", "$URL", "$OUT"],
    },
    Downloader { name: "urllib", program: "python3", arguments: &["-c", URLLIB] },
    Downloader { name: "requests", program: "python3", arguments: &["-c", REQUESTS] },
];

impl Downloader {
    /// Downloads `url`; returns the output, and the path where the file would be.
    async fn run(&self, world: &World, ca: &str, url: &str) -> (Output, PathBuf) {
        let out = world.dir().join("out");
        let _none = std::fs::remove_file(&out);
        let mut command = client(world, self.program, ca);
        let conf = world.dir().join("apt.conf");
        std::fs::write(
            &conf,
            format!("Acquire::https::CaInfo \"{ca}\";\nAPT::Sandbox::User \"root\";\n"),
        )
        .unwrap();
        command.env("APT_CONFIG", conf).env("URL", url).env("OUT", &out);
        if self.name.starts_with("wget") {
            command.arg(format!("--ca-certificate={ca}"));
        }
        command.args(self.arguments.iter().map(|argument| match *argument {
            "$URL" => url,
            "$OUT" => out.to_str().unwrap(),
            other => other,
        }));
        (run(command).await, out)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_downloads_what_is_right() {
    let world = World::new().await;
    let ca = trusted_file(&world).await;
    let body = noise(1, 1_000_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()).etag("v1"));
    for downloader in DOWNLOADERS.iter().filter(|downloader| installed(downloader.program)) {
        let (output, out) = downloader.run(&world, &ca, &url).await;
        assert!(output.status.success(), "{}: {}", downloader.name, text(&output));
        assert!(std::fs::read(out).unwrap() == body, "{}", downloader.name);
    }
    assert_eq!(world.origin.total(), 1);
}

/// Observed: `wget` and `apt-helper` resume by themselves after a broken transfer, and end with exit code 0 and a complete file.
/// After an orderly close, urllib and pip's urllib3 return the truncated body without an error.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_ends_with_a_wrong_or_silently_short_file() {
    let found = DOWNLOADERS.iter().filter(|downloader| installed(downloader.program));
    // In parallel, each in an environment of its own: most of the time is the clients' waiting before they retry.
    join_all(found.map(async |downloader| {
        for len in [100_000, 3_000_000] {
            let world = World::new().await;
            let ca = trusted_file(&world).await;
            let right = noise(2, len);
            let wrong = flipped(&right);
            let url = world.origin.put(&by_hash(&right), Page::new(wrong.clone()).etag("v1"));
            let (output, out) = downloader.run(&world, &ca, &url).await;
            let file = std::fs::read(out).unwrap_or_default();
            let told =
                format!("{}: {} of {len} bytes: {}", downloader.name, file.len(), text(&output));
            assert!(!output.status.success(), "{told}");
            assert!(file != wrong, "{} has the whole wrong file", downloader.name);
        }
    }))
    .await;
}

/// The control: without a promise, the same bytes reach the same clients.
#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_the_same_bytes_where_nothing_is_promised() {
    let world = World::new().await;
    let ca = trusted_file(&world).await;
    let wrong = flipped(&noise(2, 3_000_000));
    let url = world.origin.put("/some/file.bin", Page::new(wrong.clone()).etag("v1"));
    for downloader in DOWNLOADERS.iter().filter(|downloader| installed(downloader.program)) {
        let (output, out) = downloader.run(&world, &ca, &url).await;
        assert!(output.status.success(), "{}: {}", downloader.name, text(&output));
        assert!(std::fs::read(out).unwrap() == wrong, "{}", downloader.name);
    }
}

/// Python 3.13 checks strictly by default: it refuses a leaf without an authority key identifier.
#[tokio::test(flavor = "multi_thread")]
async fn pythons_strict_check_accepts_names_and_addresses() {
    // The tunnel is opened by hand, because http.client writes IPv6 addresses without brackets into CONNECT.
    const STRICT: &str = "import os, socket, ssl, urllib.parse as parse
context = ssl.create_default_context(cafile=os.environ['SSL_CERT_FILE'])
context.verify_flags |= ssl.VERIFY_X509_STRICT
url, proxy = parse.urlsplit(os.environ['URL']), parse.urlsplit(os.environ['https_proxy'])
tunnel = socket.create_connection((proxy.hostname, proxy.port))
tunnel.sendall(f'CONNECT {url.netloc} HTTP/1.1\\r\\nHost: {url.netloc}\\r\\n\\r\\n'.encode())
assert b' 200 ' in tunnel.recv(4096)
with context.wrap_socket(tunnel, server_hostname=url.hostname) as inside:
    inside.sendall(f'GET {url.path} HTTP/1.1\\r\\nHost: {url.netloc}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
    print(b''.join(iter(lambda: inside.recv(4096), b'')).decode())";
    let world = World::new().await;
    let ca = trusted_file(&world).await;
    for host in ["127.0.0.1", "::1", "localhost"] {
        let origin = world.another(host).await;
        let url = origin.put("/x", Page::new("strict"));
        let mut command = client(&world, "python3", &ca);
        let output = run({
            command.args(["-c", STRICT]).env("URL", url);
            command
        })
        .await;
        assert!(text(&output).contains("strict"), "{host}: {}", text(&output));
    }
    // The control: without larder's CA nothing is accepted.
    let other = world.dir().join("origins.pem");
    let mut command = client(&world, "python3", other.to_str().unwrap());
    command.args(["-c", STRICT]).env("URL", world.origin.put("/x", Page::new("strict")));
    assert!(!run(command).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_resumed_in_both_versions_of_tls() {
    if !installed("openssl") {
        return;
    }
    let world = World::new().await;
    let ca = trusted_file(&world).await;
    world.origin.put("/x", Page::new("x").fresh(60));
    let authority = world.origin.authority();
    for version in ["-tls1_2", "-tls1_3"] {
        let session = world.dir().join("session");
        let call = |option: &str| {
            format!(
                "printf 'GET /x HTTP/1.1\\r\\nHost: {authority}\\r\\nConnection: close\\r\\n\\r\\n' | \
                 openssl s_client -proxy {} -connect {authority} -CAfile '{ca}' -verify_return_error {version} \
                 -ign_eof {option} '{}'",
                world.proxy.address,
                session.display()
            )
        };
        let mut told = String::new();
        for option in ["-sess_out", "-sess_in"] {
            let mut command = client(&world, "sh", &ca);
            command.args(["-c", &call(option)]);
            told = text(&run(command).await);
            assert!(told.contains("HTTP/1.1 200"), "{version} {option}: {told}");
        }
        assert!(told.contains("Reused, TLS"), "{version}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_negotiates_what_it_is_told() {
    let world = World::new().await;
    let ca = trusted_file(&world).await;
    let url = world.origin.put("/x", Page::new("x").fresh(60));
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for tls in ["--tlsv1.2", "--tlsv1.3"] {
            let mut command = client(&world, "curl", &ca);
            command.args(["-fsS", option, tls, "-o", "/dev/null", "-w", "%{http_version}", &url]);
            let output = run(command).await;
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                version,
                "{option} {tls}: {}",
                text(&output)
            );
        }
    }
}

/// The key is readable only by larder, and a certificate is written only after its key.
#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_made_once_and_its_key_is_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new().await;
    let before = world.proxy.own("/ca.crt").await;
    let state = world.proxy.data.join("state");
    let keys = crate::world::holding(&state, b"PRIVATE KEY");
    assert!(!keys.is_empty(), "{:?}", crate::world::files(&state));
    for key in keys {
        assert_eq!(
            key.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            key.display()
        );
    }
    world.restart(|data| std::fs::remove_dir_all(data.join("v1")).unwrap()).await;
    assert_eq!(world.proxy.own("/ca.crt").await, before, "the cache went, the authority did not");
}
