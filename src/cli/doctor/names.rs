//! Chooses the host that a client is made to request. If the client's index is known, it is a name below that index,
//! because lists of hosts that bypass a proxy refer to it; otherwise it is a name that no such list matches by
//! accident.
//!
//! The index is taken from the client's own settings, and only if there is such a list: without one every name goes
//! the same way. No registry's name is built in.

use url::Url;

use super::bypass::around;
use super::client::{AROUND, Client};
use super::shell::Shell;
use crate::outcome::witness::{AWAY, BELOW, PROBES};

/// Where a client's settings name its indexes.
struct Sources {
    variables: &'static [&'static str],
    /// The commands that print them.
    asks: &'static [&'static [&'static str]],
}

/// The host that a client is made to request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// The name after the token.
    pub(super) suffix: String,
    /// The client's index to which the name belongs, if one is known.
    pub(super) index: Option<String>,
}

impl Probe {
    /// The probe's full host name.
    pub(super) fn host(&self, token: &str) -> String {
        format!("{token}.{}", self.suffix)
    }

    /// Chooses for `client`; an index that a list makes bypass the proxy comes first.
    pub(super) async fn of(client: &Client, shell: &Shell) -> Self {
        let lists = AROUND.iter().any(|name| shell.get(name).is_some_and(|list| !list.is_empty()));
        if !lists || !client.reads_lists() {
            return Self { suffix: PROBES.to_owned(), index: None };
        }
        let hosts = indexes(client, shell).await;
        let hidden = hosts.iter().find(|host| is_around(shell, host));
        if let Some(index) = hidden.or_else(|| hosts.first()) {
            return Self { suffix: format!("{BELOW}.{index}"), index: Some(index.clone()) };
        }
        // A company's own `.internal` entry does not concern larder.
        let suffix = if is_around(shell, PROBES) { AWAY } else { PROBES };
        Self { suffix: suffix.to_owned(), index: None }
    }
}

fn is_around(shell: &Shell, host: &str) -> bool {
    AROUND.iter().any(|name| around(shell, name, host).is_some())
}

/// The hosts of a client's indexes.
async fn indexes(client: &Client, shell: &Shell) -> Vec<String> {
    let Sources { variables, asks } = sources(client.name);
    let mut texts: Vec<String> =
        variables.iter().filter_map(|name| shell.get(name)).map(str::to_owned).collect();
    for words in asks.iter().filter(|_| shell.runs) {
        let Some((program, arguments)) = words.split_first() else { continue };
        if let Some(program) = shell.find(program) {
            texts.extend(shell.said(&program, arguments).await);
        }
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in texts.iter().flat_map(|text| urls(text)) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

fn sources(client: &str) -> Sources {
    let (variables, asks): (&[&str], &[&[&str]]) = match client {
        "pip" => (
            &["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"],
            // The second command prints the default index.
            &[&["pip", "config", "list"], &["pip", "help", "download"]],
        ),
        "npm" | "pnpm" | "yarn" => {
            (&["npm_config_registry"], &[&["npm", "config", "get", "registry"]])
        }
        "apt" => (&[], &[&["apt-get", "indextargets", "--format", "$(SITE)"]]),
        "uv" => (&["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"], &[]),
        "go" => (&["GOPROXY"], &[]),
        "cargo" => (&["CARGO_REGISTRIES_CRATES_IO_INDEX", "CARGO_REGISTRY_INDEX"], &[]),
        "gem" => (&["BUNDLE_MIRROR__ALL"], &[]),
        _ => (&[], &[]),
    };
    Sources { variables, asks }
}

/// The host names in the URLs of a text. Loopback names and addresses are left out.
fn urls(text: &str) -> Vec<String> {
    /// The token and the label in front of the host must still fit into a name of 253 bytes.
    const LONGEST: usize = 200;
    let words = text.split(|c: char| c.is_whitespace() || "'\"()<>,;|".contains(c));
    let names = words.filter_map(|word| {
        let word = word.strip_prefix("sparse+").unwrap_or(word);
        let url = Url::parse(word).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let url::Host::Domain(name) = url.host()? else { return None };
        let usable = name.contains('.') && name.len() <= LONGEST && !name.ends_with(".localhost");
        usable.then(|| name.trim_end_matches('.').to_owned())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::super::client::CLIENTS;
    use super::*;

    fn shell(pairs: &[(&str, &str)]) -> Shell {
        Shell::here(&pairs.iter().copied().collect())
    }

    async fn of(client: &str, pairs: &[(&str, &str)]) -> Probe {
        let client = CLIENTS.iter().find(|known| known.name == client).unwrap();
        Probe::of(client, &shell(pairs)).await
    }

    /// Issue 13 row 6: an entry for a company's own names does not concern larder.
    #[tokio::test]
    async fn a_list_that_speaks_of_internal_names_does_not_hide_the_probe() {
        let plain = of("curl", &[]).await;
        assert_eq!((&*plain.suffix, plain.index), (PROBES, None));
        let company = [("NO_PROXY", ".internal,10.0.0.0/8")];
        let probe = of("curl", &company).await;
        assert_eq!((&*probe.suffix, &probe.index), (AWAY, &None));
        assert!(!is_around(&shell(&company), &probe.host("0")));
        assert!(is_around(&shell(&company), PROBES), "the control");
        // A star makes everything bypass the proxy.
        let star = [("NO_PROXY", "*")];
        assert!(is_around(&shell(&star), &of("curl", &star).await.host("0")));
    }

    #[tokio::test]
    async fn the_index_that_a_list_hides_is_the_one_that_is_asked_for() {
        let indexes = ("PIP_INDEX_URL", "https://user:secret@index.example.org/simple");
        let more = ("PIP_EXTRA_INDEX_URL", "https://files.example.net/simple http://127.0.0.1/x");
        let probe = of("pip", &[indexes, more, ("NO_PROXY", ".internal")]).await;
        assert_eq!(probe.index.as_deref(), Some("index.example.org"));
        assert_eq!(probe.host("00"), "00.larder-probe.index.example.org");
        let probe = of("pip", &[indexes, more, ("NO_PROXY", ".example.net")]).await;
        assert_eq!(probe.index.as_deref(), Some("files.example.net"));
        let probe = of("pip", &[indexes, more]).await;
        assert_eq!(probe.index, None, "without a list every name goes the same way");
    }

    #[test]
    fn names_are_found_in_what_clients_print() {
        let text = "global.index-url='https://index.example.org/simple'\n (default https://example.net/simple) \
                    sparse+https://example.com/index/ https://localhost/x ftp://example.org https://[::1]/";
        assert_eq!(urls(text), ["index.example.org", "example.net", "example.com"]);
    }
}
