//! The settings of a client, as far as they can be read without a request through larder.

use std::path::PathBuf;

use rustls::pki_types::CertificateDer;

use super::bypass::{Set, around};
use super::client::{ANY, AROUND, Client};
use super::detector::detected;
use super::larder::Larder;
use super::names::Probe;
use super::shell::Shell;
use crate::cli::clients::bundle::SYSTEM_FILES;

/// A client's settings.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) proxy: Option<Set>,
    /// What a program says that the client asks for its proxy. It comes before every other setting.
    pub(super) detected: Option<Set>,
    /// A variable that holds a proxy but is in the case that the client does not read.
    pub(super) other_case: Option<Set>,
    /// A variable that holds a proxy and that only other clients read, and the variable that this client reads instead.
    pub(super) unread: Option<(Set, &'static str)>,
    /// An entry that makes the probe bypass every proxy.
    pub(super) around: Option<Set>,
    /// The index for which the probe stands, if one is known.
    pub(super) index: Option<String>,
    pub(super) roots: Option<Set>,
    /// Whether the file of roots contains larder's CA.
    pub(super) trust: Trust,
}

/// What a file of root certificates contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// The file cannot be read.
    #[default]
    Missing,
    /// No CA of a larder.
    Strange,
    /// The CA of a larder, but not of this one or not all of them.
    Former,
    /// All CAs of this larder.
    Full,
}

impl Facts {
    /// Gathers everything that can be known without a request through larder.
    pub(super) async fn of(client: &Client, shell: &Shell, larder: &Larder, probe: &Probe) -> Self {
        let host = &probe.suffix;
        let mut facts = Self {
            detected: detected(client, shell, probe).await,
            proxy: client.proxies.iter().find_map(|name| variable(shell, name)),
            other_case: client.proxies.iter().find_map(|name| other_case(shell, client, name)),
            unread: unread(shell, client),
            around: AROUND
                .iter()
                .filter(|_| client.reads_lists())
                .find_map(|name| around(shell, name, host)),
            index: probe.index.clone(),
            roots: client.roots.iter().find_map(|name| variable(shell, name)),
            trust: Trust::default(),
        };
        if let Some([proxy, roots]) = client.asks.filter(|_| shell.runs) {
            // A setting of the program's own overrides the common variables.
            facts.proxy = asked(shell, proxy).await.or(facts.proxy);
            if facts.roots.is_none() {
                facts.roots = asked(shell, roots).await;
            }
        }
        facts.proxy = facts.detected.clone().or(facts.proxy);
        let named = facts.roots.as_ref().map(|set| PathBuf::from(&set.value));
        let file = named.or_else(|| system(shell));
        facts.trust = file
            .and_then(|file| shell.read(&file))
            .map_or(Trust::Missing, |text| trust(&text, larder));
        facts
    }
}

/// The system's file of root certificates.
pub(super) fn system(shell: &Shell) -> Option<PathBuf> {
    SYSTEM_FILES.iter().map(PathBuf::from).find(|file| shell.has(file))
}

/// What a file of root certificates contains.
fn trust(text: &[u8], larder: &Larder) -> Trust {
    let blocks = pem::parse_many(text).unwrap_or_default();
    let roots: Vec<_> =
        blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
    // During a rotation both CAs must be there, also the one that signs next.
    if larder.roots.iter().all(|root| roots.contains(root)) {
        Trust::Full
    } else if roots.iter().any(crate::authority::is_larder_ca) {
        Trust::Former
    } else {
        Trust::Strange
    }
}

fn variable(shell: &Shell, name: &str) -> Option<Set> {
    let value = shell.get(name)?;
    let value = if name == "JAVA_TOOL_OPTIONS" { of_java(value)? } else { value.to_owned() };
    Some(Set { whence: name.to_owned(), value })
}

/// The proxy in Java's options, as a URL.
fn of_java(options: &str) -> Option<String> {
    let option = |name: &str| options.split_whitespace().find_map(|word| word.strip_prefix(name));
    let host = option("-Dhttps.proxyHost=")?;
    // The JDK's default port for a proxy of https is 443.
    Some(format!("http://{host}:{}", option("-Dhttps.proxyPort=").unwrap_or("443")))
}

fn other_case(shell: &Shell, client: &Client, name: &str) -> Option<Set> {
    let turned = if name.bytes().any(|c| c.is_ascii_lowercase()) {
        name.to_ascii_uppercase()
    } else {
        name.to_ascii_lowercase()
    };
    if client.proxies.contains(&&*turned) {
        return None;
    }
    variable(shell, &turned)
}

fn unread(shell: &Shell, client: &Client) -> Option<(Set, &'static str)> {
    let own = client.proxies.first()?;
    let mut others = ANY.iter().filter(|name| !client.proxies.contains(name));
    others.find_map(|name| variable(shell, name)).map(|set| (set, *own))
}

async fn asked(shell: &Shell, words: &[&str]) -> Option<Set> {
    let (program, arguments) = words.split_first()?;
    let said = shell.said(&shell.find(program)?, arguments).await?;
    let value = said.lines().next()?.trim();
    // npm prints these if nothing is set.
    let is_set = !value.is_empty() && value != "null" && value != "undefined";
    is_set.then(|| Set { whence: format!("`{}`", words.join(" ")), value: value.to_owned() })
}

/// Whether two proxy addresses are the same, as far as the text shows.
pub(super) fn is_same(value: &str, proxy: &str) -> bool {
    let bare = |text: &str| {
        let text = text.trim().trim_end_matches('/').to_ascii_lowercase();
        let text = text.strip_prefix("http://").unwrap_or(&text).to_owned();
        text.replace("localhost", "127.0.0.1")
    };
    bare(value) == bare(proxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(pairs: &[(&str, &str)]) -> Shell {
        let environment = pairs.iter().copied().collect();
        Shell::here(&environment)
    }

    #[test]
    fn an_entry_that_leads_around_is_found() {
        let host = "0.probe.larder.internal";
        let found =
            |list| around(&shell(&[("NO_PROXY", list)]), "NO_PROXY", host).map(|set| set.value);
        assert_eq!(found("a.example.org, *").as_deref(), Some("*"));
        assert_eq!(found("localhost,.internal").as_deref(), Some(".internal"));
        assert_eq!(found("larder.internal").as_deref(), Some("larder.internal"));
        assert_eq!(found("localhost,127.0.0.1,rnal,arder.internal"), None);
    }

    #[test]
    fn letters_matter_to_some() {
        let wget =
            super::super::client::CLIENTS.iter().find(|client| client.name == "wget").unwrap();
        let shell = shell(&[("HTTPS_PROXY", "http://192.0.2.1:3142")]);
        assert_eq!(other_case(&shell, wget, "https_proxy").unwrap().whence, "HTTPS_PROXY");
        let curl =
            super::super::client::CLIENTS.iter().find(|client| client.name == "curl").unwrap();
        assert_eq!(other_case(&shell, curl, "https_proxy"), None, "the control: curl reads both");
    }

    #[test]
    fn java_says_its_proxy_in_two_words() {
        let options = "-Xmx1g -Dhttps.proxyHost=192.0.2.1 -Dhttps.proxyPort=3142";
        assert_eq!(of_java(options).as_deref(), Some("http://192.0.2.1:3142"));
        assert_eq!(of_java("-Xmx1g"), None);
        assert!(is_same("192.0.2.1:3142/", "http://192.0.2.1:3142"));
        assert!(!is_same("http://192.0.2.1:3143", "http://192.0.2.1:3142"));
    }
}
