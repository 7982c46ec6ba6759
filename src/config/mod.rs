//! What the operator decided: typed, complete, checked.
//!
//! [`Config`] is what the rest of larder sees. How it comes about (file, environment, flags) is `load`'s business, and
//! the list of keys with their names, defaults and explanations is `keys`'.
//!
//! ```text
//! larder.toml ─┐
//! environment ─┼─▶ load: every value through the one table of keys ─▶ Loaded { Config, where each value came from }
//! flags ───────┘
//! ```

pub mod environment;
pub mod keys;
pub mod load;
pub mod login;
pub mod service;
mod suggest;
mod value;

pub use self::value::size;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use self::login::Login;

/// The configuration in force; a reload swaps it, and who holds the old one keeps it.
#[derive(Clone, Debug)]
pub struct Live(Arc<ArcSwap<Config>>);

impl Live {
    /// Puts `config` in force.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// What is in force now.
    pub fn get(&self) -> Arc<Config> {
        self.0.load_full()
    }

    /// Replaces what is in force.
    pub fn set(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `listen`: where clients connect.
    pub listen: Vec<SocketAddr>,
    /// `announce`: whether the local network is told where larder is.
    pub announce: bool,
    /// `data`: the directory of state and cache.
    pub data: PathBuf,
    /// `allow_nets`: networks that are reached although the guard would refuse them.
    pub allow_nets: Vec<IpNet>,
    /// `upstream_ca`: PEM files with further roots for origins and upstream proxies.
    pub upstream_ca: Vec<PathBuf>,
    /// `clients.*`.
    pub clients: Clients,
    /// `mirror.*`.
    pub mirror: Mirror,
    /// `hosts.*`.
    pub hosts: Hosts,
    /// `http.*`.
    pub http: Http,
    /// `upstream.*`.
    pub upstream: Upstream,
    /// `store.*`.
    pub store: StoreLimits,
    /// `stale.*`.
    pub stale: Stale,
    /// `keys.*`.
    pub keys: Keys,
    /// `ca.*`.
    pub ca: Ca,
    /// `log.*`.
    pub log: Log,
    /// `speaks_for`: pairs of an index's root URL and an origin whose files it speaks for, as the operator declares.
    pub speaks_for: Vec<SpeaksFor>,
}

impl Config {
    /// [`Ca::permitted`] as names: in a certificate a name stands for all below it.
    pub fn ca_permitted(&self) -> Vec<String> {
        let names = self.ca.permitted.iter().map(|HostPattern(name)| name.trim_start_matches("*."));
        names.map(str::to_owned).collect()
    }
}

/// What a CA which larder makes may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Ca {
    /// `ca.permitted`: the hosts that it may speak for; all, if none is named.
    pub permitted: Vec<HostPattern>,
}

/// Who may use larder, and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// `clients.allow`: networks that may connect. IPv4-mapped addresses count as IPv4.
    pub allow: Vec<IpNet>,
    /// `clients.max_connections`: of all clients.
    pub max_connections: usize,
    /// `clients.connections_per_address`: of one address.
    pub connections_per_address: usize,
    /// `clients.requests_per_address`: that are being answered for one address.
    pub requests_per_address: usize,
    /// `clients.max_buffered`: bytes that wait to be taken by clients.
    pub max_buffered: u64,
    /// `clients.buffered_per_address`: likewise, of one address.
    pub buffered_per_address: u64,
    /// `clients.handshake_timeout`: from CONNECT to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// `clients.header_timeout`: for the header of a request, once it has begun.
    pub header_timeout: Duration,
    /// `clients.idle_timeout`: a connection or tunnel on which nothing moves.
    pub idle_timeout: Duration,
    /// `clients.stall_timeout`: an answer of which nothing is taken.
    pub stall_timeout: Duration,
    /// `clients.drain_timeout`: how long a stop waits for running transfers.
    pub drain_timeout: Duration,
    /// `clients.queries`: whether clients may ask what is stored and what failed.
    pub queries: bool,
}

/// How larder serves clients that cannot use a proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// `mirror.enabled`: whether `/https/host/path` is served.
    pub enabled: bool,
    /// `mirror.names`: names of this larder that clients use in such requests.
    pub names: Vec<HostPattern>,
    /// `mirror.registries`: what is mirrored at `/v2/`.
    pub registries: Vec<Registry>,
}

/// A container registry that is mirrored at `/v2/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// What clients call it in `?ns=`; without a name it is meant where they call none.
    pub name: Option<String>,
    /// Its URL, without `/v2/`.
    pub url: String,
}

/// What is done with which host.
#[derive(Clone, Debug, PartialEq)]
pub struct Hosts {
    /// `hosts.tunnel`: copied through, nothing read.
    pub tunnel: Vec<HostPattern>,
    /// `hosts.refuse`: answered 403.
    pub refuse: Vec<HostPattern>,
    /// `hosts.tunnel_unknown_protocols`: whether a CONNECT that carries neither TLS nor HTTP is copied through.
    pub tunnel_unknown_protocols: bool,
    /// `hosts.ports`: ports that CONNECT and absolute-form requests may name, as inclusive ranges.
    pub ports: Vec<(u16, u16)>,
}

impl Hosts {
    /// Why the operator shuts `port` of `host`, which is in its one spelling: to clients, and to redirects.
    pub fn shut(&self, host: &str, port: u16) -> Option<String> {
        if self.refuse.iter().any(|pattern| pattern.matches(host)) {
            return Some(format!("{host} is refused by hosts.refuse"));
        }
        let is_open = |(first, last): &(u16, u16)| (*first..=*last).contains(&port);
        let text =
            || format!("port {port} of {host} is shut; hosts.ports lists those that are open");
        (!self.ports.iter().any(is_open)).then(text)
    }
}

/// A host, or `*.example.org` for every host below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(pub String);

impl HostPattern {
    /// Whether `host`, in its one spelling, is meant. An IPv4 address inside an IPv6 one is judged as what it is: it leads
    /// to the same machine.
    pub fn matches(&self, host: &str) -> bool {
        let mapped = host
            .strip_prefix("[::ffff:")
            .and_then(|rest| rest.strip_suffix(']'))
            .filter(|v4| v4.contains('.'));
        let host = mapped.unwrap_or(host);
        match self.0.strip_prefix("*.") {
            Some(parent) => {
                host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
            }
            None => self.0 == host,
        }
    }
}

/// How requests are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `http.harmless_headers`: request headers that make no pass of a request, besides those larder knows; lower
    /// case, a trailing `*` stands for anything.
    pub harmless_headers: Vec<String>,
    /// `http.forwarded_headers`: request headers that fills send on, for tests; as `harmless_headers`.
    pub forwarded_headers: Vec<String>,
}

/// How origins are reached. `Debug` hides the passwords of proxies and logins.
#[derive(Clone, PartialEq)]
pub struct Upstream {
    /// `upstream.https_proxy`: for https origins; user and password may stand in it.
    pub https_proxy: Option<String>,
    /// `upstream.http_proxy`: for http origins.
    pub http_proxy: Option<String>,
    /// `upstream.logins`: larder's own logins, for clients that have none.
    pub logins: Vec<Login>,
    /// `upstream.no_proxy`: as curl reads `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// `upstream.roots`: which roots vouch for origins.
    pub roots: Roots,
    /// `upstream.connect_timeout`: for one connection, TLS included.
    pub connect_timeout: Duration,
    /// `upstream.patience`: how long a client waits that can be given a stored copy.
    pub patience: Duration,
    /// `upstream.header_timeout`: from the request to the answer's header.
    pub header_timeout: Duration,
    /// `upstream.idle_timeout`: for the next byte of a body.
    pub idle_timeout: Duration,
    /// `upstream.min_rate`: bytes a second, measured over a minute, below which a fill is broken off and resumed.
    pub min_rate: u64,
    /// `upstream.connections_per_origin`: idle connections kept for fills.
    pub connections_per_origin: usize,
    /// `upstream.interim_answers`: 1xx answers before an answer.
    pub interim_answers: usize,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |proxy: &Option<String>| proxy.as_deref().map(value::without_secrets);
        f.debug_struct("Upstream")
            .field("https_proxy", &shown(&self.https_proxy))
            .field("http_proxy", &shown(&self.http_proxy))
            .field("no_proxy", &self.no_proxy)
            .field("logins", &self.logins)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// Which roots vouch for origins; `upstream_ca` is always added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those compiled in and the system's.
    Both,
    /// Those compiled in.
    Webpki,
    /// The system's.
    System,
    /// None but `upstream_ca`.
    Only,
}

/// How much the store may take.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreLimits {
    /// `store.max_size`: bytes, spool files included; the hard cap.
    pub max_size: u64,
    /// `store.min_free`: bytes that stay free on the file system.
    pub min_free: u64,
    /// `store.max_body_share`: what one body may take of what all may take, in hundredths.
    pub max_body_share: u8,
}

/// How long copies serve when their origin fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Stale {
    /// `stale.signed`: past the `Valid-Until` of signed indexes.
    pub signed: Duration,
    /// `stale.unsigned`: indexes without a signature, and everything with no proof but its origin.
    pub unsigned: Duration,
}

/// Which keys are trusted, besides those in `DATA/state/keys`.
#[derive(Clone, Debug, PartialEq)]
pub struct Keys {
    /// `keys.built_in`: whether the keys compiled in are.
    pub built_in: bool,
    /// `keys.system`: files and directories in which this machine keeps its own.
    pub system: Vec<PathBuf>,
}

/// Where systems keep the keys that their administrator trusts for package archives.
const SYSTEM_KEYS: [&str; 6] = [
    "/usr/share/keyrings",
    "/etc/apt/keyrings",
    "/etc/apt/trusted.gpg",
    "/etc/apt/trusted.gpg.d",
    "/etc/apt/sources.list.d",
    "/etc/apk/keys",
];

/// What is logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `log.format`.
    pub format: LogFormat,
    /// `log.filter`: as `tracing-subscriber` reads it.
    pub filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The operator's word that an index speaks for another origin's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeaksFor {
    /// The index's root, as a URL that ends with a slash.
    pub index: String,
    /// The origin of the files, as a URL without a path.
    pub files: String,
}

/// Reads a span of time as keys take it: `30s`, `5m`, `12h`, `7d`.
pub fn parse_span(text: &str) -> Option<Duration> {
    (value::SPAN.parse)(text)
}

/// The port that larder listens on: apt-cacher-ng's, so that what looks for one finds it.
pub const PORT: u16 = 3142;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT)],
            announce: false,
            ca: Ca { permitted: Vec::new() },
            data: PathBuf::from("larder-data"),
            allow_nets: Vec::new(),
            upstream_ca: Vec::new(),
            clients: Clients {
                allow: private_nets(),
                max_connections: 4096,
                connections_per_address: 2048,
                requests_per_address: 4096,
                max_buffered: 512 << 20,
                buffered_per_address: 128 << 20,
                handshake_timeout: Duration::from_secs(10),
                header_timeout: Duration::from_secs(15),
                idle_timeout: Duration::from_mins(2),
                stall_timeout: Duration::from_mins(5),
                drain_timeout: Duration::from_secs(30),
                queries: true,
            },
            mirror: Mirror { enabled: true, names: Vec::new(), registries: Vec::new() },
            hosts: Hosts {
                tunnel: Vec::new(),
                refuse: Vec::new(),
                tunnel_unknown_protocols: true,
                ports: vec![(80, 80), (443, 443), (1024, u16::MAX)],
            },
            http: Http { harmless_headers: Vec::new(), forwarded_headers: Vec::new() },
            upstream: Upstream {
                https_proxy: None,
                http_proxy: None,
                no_proxy: None,
                logins: Vec::new(),
                roots: Roots::Both,
                connect_timeout: Duration::from_secs(10),
                patience: Duration::from_secs(10),
                header_timeout: Duration::from_mins(1),
                idle_timeout: Duration::from_secs(30),
                min_rate: 1024,
                connections_per_origin: 16,
                interim_answers: 512,
            },
            store: StoreLimits { max_size: 20 << 30, min_free: 1 << 30, max_body_share: 25 },
            stale: Stale {
                signed: Duration::from_hours(7 * 24),
                unsigned: Duration::from_hours(7 * 24),
            },
            keys: Keys { built_in: true, system: SYSTEM_KEYS.map(PathBuf::from).to_vec() },
            log: Log { format: LogFormat::Human, filter: "info".to_owned() },
            speaks_for: Vec::new(),
        }
    }
}

/// Whether an address, v4-mapped ones normalised, is in [`private_nets`].
pub fn is_private(address: IpAddr) -> bool {
    private_nets().iter().any(|net| net.contains(&address))
}

/// Loopback, RFC 1918, RFC 6598, link-local and unique local addresses.
pub fn private_nets() -> Vec<IpNet> {
    let v4 = |a, b, prefix| IpNet::new(Ipv4Addr::new(a, b, 0, 0).into(), prefix);
    let v6 = |first, prefix| IpNet::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(), prefix);
    let loopback6 = IpNet::new(Ipv6Addr::LOCALHOST.into(), 128);
    [
        v4(127, 0, 8),
        v4(10, 0, 8),
        v4(172, 16, 12),
        v4(192, 168, 16),
        v4(100, 64, 10),
        v4(169, 254, 16),
        loopback6,
        v6(0xfe80, 10),
        v6(0xfc00, 7),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_labels() {
        let below = HostPattern("*.example.org".into());
        assert!(below.matches("a.example.org") && below.matches("a.b.example.org"));
        assert!(
            !below.matches("example.org")
                && !below.matches("badexample.org")
                && !below.matches(".example.org")
        );
        assert!(HostPattern("example.org".into()).matches("example.org"));
    }

    #[test]
    fn an_address_is_matched_in_its_ipv6_clothes_too() {
        let pattern = HostPattern("192.0.2.1".into());
        assert!(pattern.matches("192.0.2.1") && pattern.matches("[::ffff:192.0.2.1]"));
        assert!(!pattern.matches("[::ffff:192.0.2.2]") && !pattern.matches("[64:ff9b::c000:201]"));
    }

    #[test]
    fn nine_networks_are_private() {
        assert_eq!(private_nets().len(), 9);
    }
}
