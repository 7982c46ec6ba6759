//! The command line that repairs a client, for a POSIX shell. It changes only this user's files, except where the
//! client reads only the system's.
//!
//! A line sets everything that the client needs for its cause, wherever the wrong setting is: it writes the setting
//! with the highest precedence, and later lines of a file win. Running it twice does no harm.

use std::path::PathBuf;

use super::bypass::hides;
use super::cause::Cause;
use super::client::{AROUND, By, Client};
use super::facts::system;
use super::larder::Larder;
use super::shell::Shell;
use crate::outcome::witness::AWAY;

/// Where a line writes, and for which larder.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) shell: &'a Shell,
    pub(super) larder: &'a Larder,
    /// The directory for the files that settings name. Other users must be able to read it: apt drops its privileges.
    pub(super) directory: PathBuf,
    /// Whether curl is installed to fetch the CA with; otherwise wget is used.
    pub(super) curl: bool,
}

impl Place<'_> {
    /// The line for `client`. `None` if no line helps.
    pub(super) fn line(&self, client: &Client, cause: &Cause) -> Option<String> {
        let steps = match cause {
            Cause::Pinned(_) if matches!(client.by, By::Inspection { own_roots: true }) => {
                self.trust(client)
            }
            Cause::Expired(_)
            | Cause::Pinned(_)
            | Cause::Foreign(_)
            | Cause::Broken(_)
            | Cause::Silent => return None,
            Cause::Untrusted(_) | Cause::Changed(_) => self.trust(client),
            Cause::Around(_, index) => self.around(client, index.as_deref()),
            Cause::Unset
            | Cause::Unread(..)
            | Cause::OneCase(_)
            | Cause::Elsewhere(_)
            | Cause::Direct(_)
            | Cause::Ignored => self.proxy(client, cause),
        };
        let line = steps.join(" && ");
        Some(match &self.shell.root {
            Some(root) => {
                format!(
                    "chroot {} env HOME={} sh -c {}",
                    quoted(&root.display().to_string()),
                    quoted(self.shell.get("HOME").unwrap_or("/root")),
                    quoted(&line)
                )
            }
            None => line,
        })
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// The command that fetches one of larder's pages into a file. `to` is a word of the shell.
    fn fetch(&self, from: &str, to: &str) -> String {
        let url = format!("{}{from}", self.larder.proxy);
        if self.curl {
            format!("curl -q -fsS --noproxy '*' {url} -o {to}")
        } else {
            // GNU wget understands busybox's option for bypassing a proxy; busybox does not understand GNU's.
            format!("wget -q -Y off {url} -O {to}")
        }
    }

    /// Runs, as root, the script that adds the CA to the system's roots, after checking its SHA-256 as larder's own
    /// page does.
    fn machine(&self) -> Vec<String> {
        let run = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
        vec![
            "f=$(mktemp)".to_owned(),
            self.fetch("/setup", "\"$f\""),
            format!("echo \"{}  $f\" | sha256sum -c -", self.larder.setup),
            format!("{run}sh \"$f\" --ca-only"),
        ]
    }

    /// Writes the CA, and a bundle of the CA and the system's roots.
    fn roots(&self) -> Vec<String> {
        let (ca, bundle) = (self.file("ca.pem"), self.file("bundle.pem"));
        let system =
            system(self.shell).map(|file| format!(" {}", quoted(&file.display().to_string())));
        vec![
            format!("mkdir -p {}", quoted(&self.directory.display().to_string())),
            self.fetch("/ca.crt", &quoted(&ca)),
            format!("cat {}{} > {}", quoted(&ca), system.unwrap_or_default(), quoted(&bundle)),
        ]
    }

    fn trust(&self, client: &Client) -> Vec<String> {
        if client.is_machines() {
            return self.machine();
        }
        let (mut steps, bundle) = (self.roots(), self.file("bundle.pem"));
        match client.name {
            "wget" => steps.push(wgetrc(&[format!("ca_certificate = {bundle}")])),
            "apt" => steps.extend(self.apt(&bundle, false)),
            "java" | "maven" | "gradle" => steps.extend(self.java(true)),
            _ => {
                // Each version of Yarn since 2 refuses to run if another version's variable is set. So only a variable that is
                // set already is corrected.
                let is_wanted = |name: &&&str| {
                    !client.is_modern_yarn()
                        || !name.starts_with("YARN_")
                        || self.shell.get(name).is_some()
                };
                let names = client.roots.iter().filter(is_wanted);
                let mut pairs: Vec<_> = names.map(|name| (*name, bundle.clone())).collect();
                if pairs.is_empty() {
                    pairs.push(("SSL_CERT_FILE", bundle));
                }
                steps.push(self.export(&pairs));
            }
        }
        steps
    }

    fn proxy(&self, client: &Client, cause: &Cause) -> Vec<String> {
        let proxy = &self.larder.proxy;
        match (client.name, cause) {
            ("apt", _) => {
                let mut steps = self.roots();
                steps.extend(self.apt(&self.file("bundle.pem"), true));
                return steps;
            }
            ("java" | "maven" | "gradle", _) => return self.java(false),
            ("git", Cause::Elsewhere(_) | Cause::Ignored) => {
                return vec![format!("git config --global http.proxy {proxy}")];
            }
            ("curl", Cause::Ignored) => {
                return vec![format!("printf '%s\\n' 'proxy = \"{proxy}\"' >> \"$HOME/.curlrc\"")];
            }
            ("wget", Cause::Ignored) => {
                return vec![wgetrc(&[
                    "use_proxy = on".to_owned(),
                    format!("http_proxy = {proxy}"),
                    format!("https_proxy = {proxy}"),
                ])];
            }
            _ => {}
        }
        let everybodys = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
        let own = client.proxies.iter().filter(|name| !everybodys.contains(name));
        let names = everybodys.iter().chain(own);
        let mut pairs: Vec<_> = names.map(|name| (*name, proxy.clone())).collect();
        if client.is_modern_yarn() {
            pairs.push(("YARN_HTTP_PROXY", proxy.clone()));
        }
        if client.name == "node" {
            pairs.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
        }
        vec![self.export(&pairs)]
    }

    /// Sets the lists without the entries that make the client's index bypass larder, or everything. All other
    /// entries stay.
    fn around(&self, client: &Client, index: Option<&str>) -> Vec<String> {
        let host = index.unwrap_or(AWAY);
        let keep = |entry: &&str| !entry.is_empty() && !hides(entry, host);
        let mut kept: Vec<&str> = Vec::new();
        for entry in AROUND
            .iter()
            .filter_map(|name| self.shell.get(name))
            .flat_map(|list| list.split([',', ' ']))
        {
            if keep(&entry) && !kept.contains(&entry) {
                kept.push(entry);
            }
        }
        let list = kept.join(",");
        if client.name == "wget" {
            return vec![
                self.export(&[("no_proxy", list.clone())]),
                wgetrc(&[format!("no_proxy = {list}")]),
            ];
        }
        vec![self.export(&AROUND.map(|name| (name, list.clone())))]
    }

    /// A file for apt that overrides those of the machine: apt moves settings below a binary's name into place after
    /// it has read all files (apt.conf(5)). `alone`: apt asks no program for another proxy.
    fn apt(&self, bundle: &str, alone: bool) -> Vec<String> {
        let (file, proxy) = (self.file("apt.conf"), &self.larder.proxy);
        let lines = ["", "Binary::apt::", "Binary::apt-get::", "Binary::apt-helper::"].map(|tree| {
            quoted(&format!(
                "{tree}Acquire::http::Proxy \"{proxy}/\"; {tree}Acquire::https::Proxy \"{proxy}/\"; \
                 {tree}Acquire::https::CaInfo \"{bundle}\";{}",
                if alone { asks_nobody(tree) } else { String::new() }
            ))
        });
        vec![
            format!("printf '%s\\n' {} > {}", lines.join(" "), quoted(&file)),
            self.export(&[("APT_CONFIG", file)]),
        ]
    }

    /// Java's proxy and, if `trust`, a trust store with Java's own roots and larder's CA.
    fn java(&self, trust: bool) -> Vec<String> {
        let address = self.larder.proxy.trim_start_matches("http://");
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "3142"));
        let store = self.file("truststore.p12");
        let mut options: Vec<String> = Vec::new();
        let given = self.shell.get("JAVA_TOOL_OPTIONS").unwrap_or_default();
        let ours = |word: &str| {
            ["-Dhttp.proxy", "-Dhttps.proxy"].iter().any(|start| word.starts_with(start))
                || trust && word.starts_with("-Djavax.net.ssl.trustStore")
        };
        options.extend(given.split_whitespace().filter(|word| !ours(word)).map(str::to_owned));
        for scheme in ["http", "https"] {
            options.push(format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}"));
        }
        let mut steps = Vec::new();
        if trust {
            let (ca, to) = (quoted(&self.file("ca.pem")), quoted(&store));
            steps.push(
                "h=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java.home = //p')"
                    .to_owned(),
            );
            steps.push(format!("rm -f {to}"));
            steps.push(format!(
                "keytool -importkeystore -noprompt -srckeystore \"$h/lib/security/cacerts\" -srcstorepass changeit \
                 -destkeystore {to} -deststoretype PKCS12 -deststorepass changeit >/dev/null 2>&1"
            ));
            steps.push(format!(
                "keytool -importcert -noprompt -alias larder-doctor -file {ca} -keystore {to} -storetype PKCS12 \
                 -storepass changeit 2>/dev/null"
            ));
            options.push(format!(
                "-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStoreType=PKCS12 \
                 -Djavax.net.ssl.trustStorePassword=changeit"
            ));
        }
        steps.push(self.export(&[("JAVA_TOOL_OPTIONS", options.join(" "))]));
        steps
    }

    /// Sets variables for this shell, or for all shells that start from now on.
    fn export(&self, pairs: &[(&str, String)]) -> String {
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        let line = format!("export {}", pairs.join(" "));
        if self.shell.here {
            return line;
        }
        let profile = quoted(&self.shell.profile.display().to_string());
        format!("printf '%s\\n' {} >> {profile}", quoted(&line))
    }
}

/// Takes back what tells apt to ask a program for its proxy.
fn asks_nobody(tree: &str) -> String {
    let lines = ["http", "https"]
        .map(|scheme| format!(" {tree}Acquire::{scheme}::Proxy-Auto-Detect \"\";"));
    lines.concat()
}

fn wgetrc(lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| quoted(line)).collect();
    format!("printf '%s\\n' {} >> \"${{WGETRC:-$HOME/.wgetrc}}\"", lines.join(" "))
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"/:._,@%+=-".contains(&c);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::super::client::CLIENTS;
    use super::*;

    #[test]
    fn every_cause_that_a_setting_makes_has_a_line_for_every_client() {
        let shell = Shell { profile: "/home/o'hara/.profile".into(), ..Shell::default() };
        let larder = Larder::named("http://192.0.2.1:3142");
        let place = Place {
            shell: &shell,
            larder: &larder,
            directory: "/home/o'hara/x".into(),
            curl: true,
        };
        for client in CLIENTS {
            for cause in
                [Cause::Unset, Cause::Ignored, Cause::Untrusted(None), Cause::Changed(None)]
            {
                let line = place.line(client, &cause).unwrap();
                let read =
                    std::process::Command::new("sh").args(["-n", "-c", &line]).status().unwrap();
                assert!(read.success(), "{}: {line}", client.name);
                assert!(!line.contains('\n'), "{line}");
            }
        }
    }

    #[test]
    fn a_list_keeps_what_was_the_users() {
        let shell = Shell::here(
            &[("NO_PROXY", "a.example.org,*,10.0.0.0/8,.internal"), ("no_proxy", ".example.net")]
                .into_iter()
                .collect(),
        );
        let larder = Larder::named("http://192.0.2.1:3142");
        let place = Place { shell: &shell, larder: &larder, directory: "/x".into(), curl: true };
        let curl = CLIENTS.first().unwrap();
        let line = place.around(curl, None).join(" ");
        assert!(
            line.contains("NO_PROXY=.example.net,a.example.org,10.0.0.0/8,.internal "),
            "{line}"
        );
        let line = place.around(curl, Some("files.example.net")).join(" ");
        assert!(line.contains("NO_PROXY=a.example.org,10.0.0.0/8,.internal "), "{line}");
    }
}
