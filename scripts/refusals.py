#!/usr/bin/env python3
"""What clients print when larder refuses a file, and what they print without larder: from an origin on loopback whose files have
one byte flipped, by `larder exec`. Clients that are not installed are left out.

    refusals.py LARDER [--client NAME]... [--svg FILE]      prints Markdown

Each client is asked for a small file, all of which larder holds back until it is verified, and for a large one, of which the most
has been given before the end shows what it is. --svg draws the terminal of the first client's small file.

A client that ends well with a tampered file, or leaves one behind, ends this with an error. As root: the origin's name is put into
/etc/hosts in a mount namespace, and nothing of the machine is changed.
"""

import argparse
import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = {"small": 20_000, "large": 3_000_000}
NAME = "files.example.org"


def authority(directory):
    """The origin's, for its name: origin.py makes one for its address alone."""
    path = lambda name: os.path.join(directory, name)
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *key, "-days", "2", "-subj", "/CN=origin", "-keyout", path("ca.key"), "-out", path("ca.pem"))
    run("req", "-new", *key, "-subj", f"/CN={NAME}", "-keyout", path("leaf.key"), "-out", path("leaf.csr"))
    write(path("leaf.ext"), f"subjectAltName=DNS:{NAME}\n")
    run("x509", "-req", "-in", path("leaf.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key"), "-CAcreateserial", "-days", "2",
        "-extfile", path("leaf.ext"), "-out", path("leaf.pem"))


def with_own_hosts():
    """Starts this again where the origin's name leads to loopback."""
    if os.environ.get("LARDER_REFUSALS_HOSTS"):
        return
    if os.getuid() != 0:
        sys.exit("skipped: a mount namespace wants root")
    hosts = tempfile.NamedTemporaryFile("w", suffix=".hosts", delete=False)
    with open("/etc/hosts") as file:
        hosts.write(file.read() + f"\n127.0.0.2 {NAME}\n")
    hosts.close()
    line = f'mount --bind {hosts.name} /etc/hosts && rm {hosts.name}; exec "$@"'
    os.environ["LARDER_REFUSALS_HOSTS"] = "1"
    os.execvp("unshare", ["unshare", "-m", "sh", "-c", line, "sh", sys.executable, *sys.argv])


def noise(seed, length):
    blocks = (hashlib.sha256(b"%d %d" % (seed, at)).digest() for at in range(length // 32 + 1))
    return b"".join(blocks)[:length]


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Site:
    """What the origin serves, and under which paths the tampered files lie."""

    def __init__(self, work, url):
        self.root, self.url, self.work = os.path.join(work, "site"), url, work
        self.tampered = []
        for seed, (size, length) in enumerate(SIZES.items()):
            self.wheel(size, noise(seed, length))
            self.tarball(size, noise(seed, length))
            self.crate(size, noise(seed, length))
            self.package(size, noise(seed, length))
        write(os.path.join(self.root, "index", "config.json"), json.dumps({"dl": f"{url}/index/crates"}))
        write(os.path.join(self.root, ".tampered"), "".join(path + "\n" for path in self.tampered))

    def put(self, path, content, tampered=False):
        write(self.root + path, content)
        if tampered:
            self.tampered.append(path)

    def wheel(self, size, content):
        name = f"gear_{size}"
        file = os.path.join(self.work, f"{name}-1.0-py3-none-any.whl")
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr(f"{name}/data", content)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: gear-{size}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{name}/data,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        with open(file, "rb") as whole:
            body = whole.read()
        path = f"/files/{os.path.basename(file)}"
        self.put(path, body, True)
        page = f'<!doctype html><a href="{self.url}{path}#sha256={sha256(body)}">{os.path.basename(file)}</a>'
        self.put(f"/simple/gear-{size}/index.html", page)

    def archive(self, name, files):
        top = os.path.join(self.work, name)
        for path, content in files.items():
            write(os.path.join(top, path), content)
        made = subprocess.run(["tar", "-C", self.work, "--sort=name", "--mtime=@0", "-czf", "-", name], check=True, capture_output=True)
        shutil.rmtree(top)
        return made.stdout

    def tarball(self, size, content):
        about = json.dumps({"name": f"gear-{size}", "version": "1.0.0"})
        body = self.archive("package", {"package.json": about, "data": content})
        path = f"/npm/gear-{size}/-/gear-{size}-1.0.0.tgz"
        self.put(path, body, True)
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(body).digest()).decode()
        dist = {"tarball": self.url + path, "integrity": integrity, "shasum": hashlib.sha1(body).hexdigest()}
        version = {"name": f"gear-{size}", "version": "1.0.0", "dist": dist}
        document = {"name": f"gear-{size}", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        self.put(f"/npm/gear-{size}/index.json", json.dumps(document))

    def crate(self, size, content):
        name = f"gear-{size}"
        manifest = f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n'
        body = self.archive(f"{name}-1.0.0", {"Cargo.toml": manifest, "src/lib.rs": "", "data": content})
        self.put(f"/index/crates/{name}/1.0.0/download", body, True)
        line = {"name": name, "vers": "1.0.0", "deps": [], "cksum": sha256(body), "features": {}, "yanked": False}
        self.put(f"/index/ge/ar/{name}", json.dumps(line) + "\n")

    def package(self, size, content):
        # apt looks at the digest before it looks at the package.
        path = f"/apt/pool/gear-{size}_1.0_all.deb"
        self.put(path, content, True)
        stanza = (f"Package: gear-{size}\nVersion: 1.0\nArchitecture: all\nMaintainer: x\nDescription: x\nFilename: {path[len('/apt/'):]}\n"
                  f"Size: {len(content)}\nSHA256: {sha256(content)}\n\n")
        with open(os.path.join(self.work, "stanzas"), "a") as file:
            file.write(stanza)
        with open(os.path.join(self.work, "stanzas"), "rb") as file:
            packages = file.read()
        digests = f" {sha256(packages)} {len(packages)} main/binary-amd64/Packages\n"
        self.put("/apt/dists/stable/main/binary-amd64/Packages", packages)
        self.put("/apt/dists/stable/Release", f"Suite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64\nDate: Sat, 01 Jan 2000 00:00:00 UTC\nSHA256:\n{digests}")
        named = f"/apt/dists/stable/main/by-hash/SHA256/{sha256(content)}"
        self.put(named, content, True)
        write(os.path.join(self.work, f"named-{size}"), named)


class Client:
    """A program, and how it is called: a shell's line, with $URL, $SIZE, $NAMED and an empty directory $IN."""

    def __init__(self, name, program, line, prepare=""):
        self.name, self.program, self.line, self.prepare = name, program, line, prepare


APT = ('-o Dir::State="$IN/state" -o Dir::Cache="$IN/cache" -o Dir::Etc::SourceList="$IN/list" -o Dir::Etc::SourceParts=/dev/null '
       '-o APT::Architecture=amd64 -o APT::Sandbox::User=root')
CLIENTS = [
    Client("pip", "pip", 'pip install --no-cache-dir --no-deps --target "$IN/out" --index-url "$URL/simple/" gear-$SIZE'),
    Client("uv", "uv", 'uv pip install --no-cache --no-deps --target "$IN/out" --index-url "$URL/simple/" gear-$SIZE'),
    Client("npm", "npm", 'npm install --fetch-retry-mintimeout=100 --fetch-retry-maxtimeout=200 --cache "$IN/cache" --registry "$URL/npm/" gear-$SIZE',
           'cd "$IN" && echo "{}" > package.json'),
    Client("cargo", "cargo", "cargo fetch",
           'mkdir -p "$IN/src" "$IN/.cargo" && cd "$IN" && : > src/lib.rs && export CARGO_HOME="$IN/home" && '
           'printf "[package]\\nname = \\"mine\\"\\nversion = \\"1.0.0\\"\\nedition = \\"2021\\"\\n[dependencies]\\n'
           'gear-%s = { version = \\"1\\", registry = \\"own\\" }\\n" "$SIZE" > Cargo.toml && '
           'printf "[registries.own]\\nindex = \\"sparse+%s/index/\\"\\n" "$URL" > .cargo/config.toml'),
    Client("apt", "apt-get", f'apt-get {APT} download gear-$SIZE',
           'cd "$IN" && mkdir -p state/lists/partial cache/archives/partial && echo "deb [trusted=yes] $URL/apt stable main" > list && '
           f'apt-get {APT} -o Debug::NoLocking=1 update > update 2>&1'),
    Client("curl", "curl", 'curl -fsS -o "$IN/out" "$URL$NAMED"'),
    Client("curl --http1.1", "curl", 'curl --http1.1 -fsS -o "$IN/out" "$URL$NAMED"'),
    Client("wget", "wget", 'wget -nv --tries=2 --waitretry=1 -O "$IN/out" "$URL$NAMED"'),
]


class Trial:
    def __init__(self, larder, work, site):
        self.larder, self.work, self.site = larder, work, site

    def run(self, client, size, through):
        """The output of a client, both streams as a terminal shows them, and its exit code."""
        inside = tempfile.mkdtemp(dir=self.work)
        with open(os.path.join(self.work, f"named-{size}")) as file:
            named = file.read()
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and not name.startswith("LARDER")}
        environment.setdefault("RUSTUP_HOME", os.path.expanduser("~/.rustup"))
        environment["PIP_CONFIG_FILE"] = os.devnull
        environment.pop("PIP_FIND_LINKS", None)
        roots = os.path.join(self.work, "authority", "ca.pem")
        environment.update(URL=self.site.url, SIZE=size, NAMED=named, IN=inside, HOME=inside, NO_COLOR="1", CARGO_TERM_COLOR="never",
                           PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_PROGRESS_BAR="off", PIP_ROOT_USER_ACTION="ignore", npm_config_update_notifier="false",
                           npm_config_progress="false", CARGO_TERM_PROGRESS_WHEN="never", LC_ALL="C.UTF-8")
        if not through:
            for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO", "NODE_EXTRA_CA_CERTS",
                         "npm_config_cafile"):
                environment[name] = roots
            write(os.path.join(inside, "conf"), f'Acquire::https::CaInfo "{roots}";\n')
            environment["APT_CONFIG"] = os.path.join(inside, "conf")
            write(os.path.join(inside, "wgetrc"), f"ca_certificate = {roots}\n")
            environment["WGETRC"] = os.path.join(inside, "wgetrc")
        script = f"{client.prepare or ':'} || exit 9; {client.line}; code=$?; exit $code"
        command = ["sh", "-c", script]
        if through:
            data = os.path.join(inside, "larder")
            command = [self.larder, "--data", data, "exec", "--allow-nets", "127.0.0.0/8", "--upstream-ca", roots, "--"] + command
        ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
        text = ended.stdout.decode(errors="replace").replace("\r", "\n")
        out = os.path.join(inside, "out")
        whole = os.path.isfile(out) and os.path.getsize(out) == SIZES[size]
        return self.clean(text, inside), ended.returncode, whole

    def clean(self, text, inside):
        """Without what is another each time."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        text = text.replace(inside, "/tmp/work").replace(self.site.url, f"https://{NAME}")
        text = re.sub(r"\[IP: [^]]*\]", "[IP: …]", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+Z)?", "2000-01-01 00:00:00", text)
        text = re.sub(r"\b(\d[\d.]*)(ms|s)\b", r"…\2", text)
        lines, trace = [], False
        for line in text.split("\n"):
            line = line.rstrip()
            trace = line.startswith("Traceback") or trace and line.startswith(" ")
            if trace:
                line = "…" if line.startswith("Traceback") else ""
            if line and not (line == "…" and lines[-1:] == ["…"]):
                lines.append(line if len(line) < 400 else line[:400] + "…")
        return "\n".join(lines)


def picture(command, text, file):
    """A terminal that is read in light and in dark."""
    lines = [("$ " + command, "typed")]
    for line in text.split("\n"):
        kind = "larder" if line.startswith("larder:") or line.startswith("  larder") else "error" if line.startswith(("ERROR", "error")) else "plain"
        while line:
            lines.append((line[:104], kind))
            line = line[104:]
    height = 20 * len(lines) + 56
    rows = "\n".join(f'<text class="{kind}" x="20" y="{54 + 20 * at}" xml:space="preserve">{html.escape(line)}</text>' for at, (line, kind) in enumerate(lines))
    write(file, f"""<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" viewBox="0 0 900 {height}" role="img">
<title>A terminal: {html.escape(command)}</title>
<style>
  :root {{ color-scheme: light dark; }}
  .back {{ fill: #f6f8fa; stroke: #d0d7de; }} text {{ font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; }}
  .typed {{ font-weight: bold; }} .error {{ fill: #cf222e; }} .larder {{ fill: #0550ae; }}
  @media (prefers-color-scheme: dark) {{
    .back {{ fill: #0d1117; stroke: #30363d; }} text {{ fill: #e6edf3; }} .error {{ fill: #ff7b72; }} .larder {{ fill: #79c0ff; }}
  }}
</style>
<rect class="back" x="0.5" y="0.5" width="899" height="{height - 1}" rx="8"/>
<circle cx="20" cy="20" r="6" fill="#ff5f57"/><circle cx="40" cy="20" r="6" fill="#febc2e"/><circle cx="60" cy="20" r="6" fill="#28c840"/>
{rows}
</svg>
""")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larder")
    parser.add_argument("--client", action="append")
    parser.add_argument("--svg")
    arguments = parser.parse_args()
    with_own_hosts()
    larder = os.path.abspath(arguments.larder)
    wrong = []
    with tempfile.TemporaryDirectory() as work:
        for name in ("site", "authority"):
            os.makedirs(os.path.join(work, name))
        authority(os.path.join(work, "authority"))
        origin = subprocess.Popen([sys.executable, os.path.join(HERE, "origin.py"), "--directory", os.path.join(work, "site"), "--authority",
                                   os.path.join(work, "authority"), "--log", os.path.join(work, "log")], stdout=subprocess.PIPE, text=True)
        try:
            port = origin.stdout.readline().strip().rsplit(":", 1)[1]
            site = Site(work, f"https://{NAME}:{port}")
            trial = Trial(larder, work, site)
            for client in CLIENTS:
                if arguments.client and client.name not in arguments.client:
                    continue
                if not shutil.which(client.program):
                    print(f"<!-- {client.name} is not installed -->")
                    continue
                version = subprocess.run([client.program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
                print(f"\n### {client.name}\n\n`{version[:60].strip()}`")
                for size in SIZES:
                    for through in (False, True):
                        text, code, whole = trial.run(client, size, through)
                        how = "through larder" if through else "without larder"
                        print(f"\n{size.capitalize()} file, {how}, exit code {code}:\n\n```text\n{text}\n```", flush=True)
                        if through and (code == 0 or whole):
                            wrong.append(f"{client.name}, {size}: exit code {code}{', and it has the whole file' if whole else ''}")
                        if arguments.svg and through and size == "small":
                            line = client.line.replace("$URL/", f"https://{NAME}/").replace("$SIZE", size)
                            picture("larder exec -- " + re.sub(r' --(no-cache-dir|no-deps|target "[^"]*")', "", line).replace('"', ""), text, arguments.svg)
                            arguments.svg = None
        finally:
            origin.terminate()
            origin.wait()
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
