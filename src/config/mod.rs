//! The operator's configuration: typed, complete, checked.
//!
//! The rest of larder sees only [`Config`]. `load` makes it from file, environment and flags; `keys` lists the keys
//! with their names, defaults and explanations.
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

/// The configuration in force. A reload replaces it; code that still holds the old one keeps using that.
#[derive(Clone, Debug)]
pub struct Live(Arc<ArcSwap<Config>>);

impl Live {
    /// Puts `config` in force.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// The configuration in force now.
    pub fn get(&self) -> Arc<Config> {
        self.0.load_full()
    }

    /// Replaces the configuration in force.
    pub fn set(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `listen`: the addresses on which larder listens.
    pub listen: Vec<SocketAddr>,
    /// `announce`: whether larder announces itself to the local network.
    pub announce: bool,
    /// `data`: the directory of state and cache.
    pub data: PathBuf,
    /// `allow_nets`: networks to which larder may connect although it blocks them by default.
    pub allow_nets: Vec<IpNet>,
    /// `upstream_ca`: PEM files with additional CA certificates for origins and upstream proxies.
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
    /// `speaks_for`: pairs of an index's root URL and an origin, for whose files the index is trusted.
    pub speaks_for: Vec<SpeaksFor>,
}

impl Config {
    /// [`Ca::permitted`] as names: a name constraint covers all names below it.
    pub fn ca_permitted(&self) -> Vec<String> {
        let names = self.ca.permitted.iter().map(|HostPattern(name)| name.trim_start_matches("*."));
        names.map(str::to_owned).collect()
    }
}

/// Restrictions of a CA that larder makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Ca {
    /// `ca.permitted`: the hosts for which it may sign; all, if the list is empty.
    pub permitted: Vec<HostPattern>,
}

/// Which clients may use larder, and their limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// `clients.allow`: networks that may connect. IPv4-mapped addresses count as IPv4.
    pub allow: Vec<IpNet>,
    /// `clients.max_connections`: for all clients together.
    pub max_connections: usize,
    /// `clients.connections_per_address`: for one address.
    pub connections_per_address: usize,
    /// `clients.requests_per_address`: requests being answered for one address.
    pub requests_per_address: usize,
    /// `clients.max_buffered`: bytes that clients have not yet taken.
    pub max_buffered: u64,
    /// `clients.buffered_per_address`: the same, for one address.
    pub buffered_per_address: u64,
    /// `clients.handshake_timeout`: from CONNECT to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// `clients.header_timeout`: for the header of a request, from its first byte on.
    pub header_timeout: Duration,
    /// `clients.idle_timeout`: for a connection or tunnel that transfers nothing.
    pub idle_timeout: Duration,
    /// `clients.stall_timeout`: for an answer of which the client takes nothing.
    pub stall_timeout: Duration,
    /// `clients.drain_timeout`: how long a shutdown waits for running transfers.
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
    /// `mirror.registries`: the registries that are mirrored at `/v2/`.
    pub registries: Vec<Registry>,
}

/// A container registry that is mirrored at `/v2/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// Its name in `?ns=`; a registry without a name is used for clients that send none.
    pub name: Option<String>,
    /// Its URL, without `/v2/`.
    pub url: String,
}

/// The rules for hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Hosts {
    /// `hosts.tunnel`: tunnelled without interception.
    pub tunnel: Vec<HostPattern>,
    /// `hosts.refuse`: answered 403.
    pub refuse: Vec<HostPattern>,
    /// `hosts.tunnel_unknown_protocols`: whether a CONNECT tunnel that carries neither TLS nor HTTP is passed
    /// through.
    pub tunnel_unknown_protocols: bool,
    /// `hosts.ports`: ports that CONNECT and absolute-form requests may name, as inclusive ranges.
    pub ports: Vec<(u16, u16)>,
}

impl Hosts {
    /// Why the configuration forbids `port` of `host`, which is in canonical form. Applies to clients' requests and
    /// to redirects.
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
    /// Whether the pattern matches `host`, which is in canonical form. An IPv4-mapped IPv6 address is compared as the
    /// IPv4 address, which leads to the same machine.
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

/// How request headers are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `http.harmless_headers`: request headers, in addition to those that larder knows, with which a request need
    /// not be passed on. Lower case; a trailing `*` matches anything.
    pub harmless_headers: Vec<String>,
    /// `http.forwarded_headers`: request headers that are forwarded in fills, for tests. Same form as
    /// `harmless_headers`.
    pub forwarded_headers: Vec<String>,
}

/// How origins are reached. `Debug` hides the passwords of proxies and logins.
#[derive(Clone, PartialEq)]
pub struct Upstream {
    /// `upstream.https_proxy`: for https origins; may contain user and password.
    pub https_proxy: Option<String>,
    /// `upstream.http_proxy`: for http origins.
    pub http_proxy: Option<String>,
    /// `upstream.logins`: larder's own logins, for clients that send none.
    pub logins: Vec<Login>,
    /// `upstream.no_proxy`: in the form of curl's `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// `upstream.roots`: which CA certificates are trusted for origins.
    pub roots: Roots,
    /// `upstream.connect_timeout`: for one connection, TLS handshake included.
    pub connect_timeout: Duration,
    /// `upstream.patience`: how long a client waits if there is a stored copy for it.
    pub patience: Duration,
    /// `upstream.header_timeout`: from the request to the header of the answer.
    pub header_timeout: Duration,
    /// `upstream.idle_timeout`: for the next byte of a body.
    pub idle_timeout: Duration,
    /// `upstream.min_rate`: bytes a second, measured over a minute, below which a fill is aborted and resumed.
    pub min_rate: u64,
    /// `upstream.connections_per_origin`: idle connections kept for fills.
    pub connections_per_origin: usize,
    /// `upstream.interim_answers`: the most 1xx answers before an answer.
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

/// Which CA certificates are trusted for origins, in addition to `upstream_ca`.
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

/// The limits of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreLimits {
    /// `store.max_size`: bytes on disk, spool files included; a hard limit.
    pub max_size: u64,
    /// `store.min_free`: bytes that stay free on the file system.
    pub min_free: u64,
    /// `store.max_body_share`: the share of the total that one body may take, in hundredths.
    pub max_body_share: u8,
}

/// How long copies are served while their origin fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Stale {
    /// `stale.signed`: signed indexes, past their `Valid-Until`.
    pub signed: Duration,
    /// `stale.unsigned`: indexes without a signature, and everything that only its origin vouches for.
    pub unsigned: Duration,
}

/// Which keys are trusted, in addition to those in `DATA/state/keys`.
#[derive(Clone, Debug, PartialEq)]
pub struct Keys {
    /// `keys.built_in`: whether the keys that are compiled in are trusted.
    pub built_in: bool,
    /// `keys.system`: files and directories in which this machine keeps keys.
    pub system: Vec<PathBuf>,
}

/// The directories and files in which systems keep the keys that their administrator trusts for package archives.
const SYSTEM_KEYS: [&str; 6] = [
    "/usr/share/keyrings",
    "/etc/apt/keyrings",
    "/etc/apt/trusted.gpg",
    "/etc/apt/trusted.gpg.d",
    "/etc/apt/sources.list.d",
    "/etc/apk/keys",
];

/// Logging.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `log.format`.
    pub format: LogFormat,
    /// `log.filter`: in the form of `tracing-subscriber`.
    pub filter: String,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The operator's statement that an index is trusted for another origin's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeaksFor {
    /// The index's root, as a URL that ends with a slash.
    pub index: String,
    /// The origin of the files, as a URL without a path.
    pub files: String,
}

/// Parses a span of time as in keys: `30s`, `5m`, `12h`, `7d`.
pub fn parse_span(text: &str) -> Option<Duration> {
    (value::SPAN.parse)(text)
}

/// larder's default port. It is apt-cacher-ng's, so that programs that look for one find larder.
pub const PORT: u16 = 3142;

impl Default for Config {
    fn default() -> Self {
        Self {
            // Other machines get in only where somebody says so: a proxy for all is opened on purpose.
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)],
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

/// Whether an address is in [`private_nets`]. IPv4-mapped addresses must have been converted to IPv4.
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
