//! The table of all configuration keys: name, explanation, and how each value is read, set and shown.
//!
//! The TOML reader, the names of environment variables, `larder config` and the reference (`larder config
//! --reference`) are all derived from [`KEYS`]. To add a key, add a line here and a field in [`Config`].

use std::fmt::Write as _;

use super::Config;
use super::login;
use super::value::{self, Form};

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// Its name in `larder.toml`: the tables that lead to it, with dots between.
    pub name: &'static str,
    /// What the key does, in a sentence or two.
    pub doc: &'static str,
    /// What form the value, or each value of a list, must have.
    pub expected: &'static str,
    /// Whether it takes a list.
    pub list: bool,
    /// When a change takes effect.
    pub acts: Acts,
    /// Environment variables of other programs, used if neither the file, nor a `LARDER_` variable, nor a flag sets
    /// the key.
    pub others: &'static [&'static str],
    /// Whether a value may contain a password.
    pub secret: bool,
    /// Formats a value without its secret.
    hidden: fn(&str) -> String,
    bare: bool,
    set: fn(&mut Config, &[String]) -> Result<(), Wrong>,
    get: fn(&Config) -> Vec<String>,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acts {
    /// As soon as the configuration is reloaded.
    AtOnce,
    /// After larder is restarted.
    AtRestart,
}

/// A value that does not have the expected form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

/// A row of the table. The doc comment above a key is its explanation; the key's name is its path of fields in
/// [`Config`].
macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $takes:ident $table:ident $(. $field:ident)*: $form:path $(, $also:ident($($said:expr),*))*;)+) => {
        &[$(key!(
            $takes $form, concat!(stringify!($table) $(, ".", stringify!($field))*), concat!($($doc),+), $table $(. $field)*
        )$(.$also($($said),*))*),+]
    };
}

macro_rules! key {
    (one $form:path, $name:expr, $doc:expr, $($place:tt)+) => {
        Key {
            set: |config, values| {
                config.$($place)+ = single(&$form, values)?;
                Ok(())
            },
            get: |config| vec![($form.show)(&config.$($place)+)],
            ..Key::new($name, $doc, $form.expected, $form.bare)
        }
    };
    (list $form:path, $name:expr, $doc:expr, $($place:tt)+) => {
        Key {
            list: true,
            set: |config, values| {
                config.$($place)+ = several(&$form, values)?;
                Ok(())
            },
            get: |config| config.$($place)+.iter().map($form.show).collect(),
            ..Key::new($name, $doc, $form.expected, $form.bare)
        }
    };
}

/// All keys. Each row: its explanation, one value or a list, its name, the form of its values.
pub const KEYS: &[Key] = keys! {
    /// The addresses on which larder listens; `[::]:3142` lets other machines in. Programs that look for an apt proxy try
    /// port 3142.
    list listen: value::ADDRESS, at_restart();
    /// Whether larder announces itself to the local network: `_apt_proxy._tcp` by DNS-SD, on the interfaces that it
    /// listens on.
    one announce: value::SWITCH, at_restart();
    /// The directory of the CA (`state/`) and the cache (`v1/`). By default `$XDG_CACHE_HOME/larder`, `~/.cache/larder`
    /// or, without a home, `/var/cache/larder`.
    one data: value::PATH, at_restart();
    /// Networks in which origins may be, although larder blocks them by default: loopback, link-local, metadata
    /// services.
    list allow_nets: value::NET;
    /// PEM files with additional CA certificates that larder trusts for origins, and for proxies on the way to them.
    list upstream_ca: value::PATH;
    /// Indexes that are trusted for the files of another origin: what they state about those files counts.
    list speaks_for: value::SPEAKS_FOR;
    /// Networks whose clients may use larder.
    list clients.allow: value::NET;
    /// Open client connections at a time. When the limit is reached, a new connection closes idle ones, of its own
    /// address or of the one that has the most; if that does not help, it waits a few seconds and is answered 503.
    /// Each connection takes up to 100 KiB of memory. Half of the process's limit on open files (`ulimit -n`) bounds
    /// it as well.
    one clients.max_connections: value::COUNT, at_restart();
    /// Open connections from one address at a time (IPv6: from one /64 network). Enough for a CI host with 500
    /// containers behind one address and four connections each; never more than seven eighths of
    /// `clients.max_connections`, so that one address cannot lock the others out.
    one clients.connections_per_address: value::COUNT, at_restart();
    /// Requests from one address that are being answered at a time, HTTP/2 streams included; further ones wait a few
    /// seconds and are then answered 503. Enough for 500 containers with eight downloads each.
    one clients.requests_per_address: value::COUNT, at_restart();
    /// Memory for bytes that larder has read and clients have not yet taken; above it, larder stops reading until
    /// clients catch up. One answer may have up to 128 KiB of it.
    one clients.max_buffered: value::SIZE, at_restart();
    /// The part of `clients.max_buffered` that the clients of one address may use: a thousand slow downloads at once.
    one clients.buffered_per_address: value::SIZE, at_restart();
    /// How long a client may take from CONNECT to the end of the TLS handshake.
    one clients.handshake_timeout: value::SPAN;
    /// How long a client may take to send the header of a request, from its first byte on.
    one clients.header_timeout: value::SPAN;
    /// A connection or tunnel that transfers nothing for this long is closed.
    one clients.idle_timeout: value::SPAN;
    /// An answer of which the client takes nothing for this long is aborted. Long enough for a pull that pauses while a
    /// layer is unpacked, or for a laptop that changes its network; short enough that a client that only holds its
    /// connection open is gone in minutes.
    one clients.stall_timeout: value::SPAN;
    /// How long a shutdown waits for running transfers.
    one clients.drain_timeout: value::SPAN;
    /// Whether clients may ask what is stored, and what was refused or failed (`larder why --proxy`, `larder recent
    /// --proxy`). They see public entries and events only, never those of another client's credentials.
    one clients.queries: value::SWITCH;
    /// Whether larder serves clients that cannot use a proxy: `http://larder:3142/https/HOST/PATH` and the URL forms
    /// of apt-cacher-ng.
    one mirror.enabled: value::SWITCH;
    /// Names of this larder that are accepted in such requests. Always accepted are addresses, names without a dot,
    /// and names that only exist in private networks (`.internal`, `.local`, `.svc`, `.lan` and the like).
    list mirror.names: value::HOST;
    /// Container registries that are mirrored at `/v2/`: one without a name for clients that name none (dockerd's
    /// `registry-mirrors`), others by the name that clients send in `?ns=` (containerd).
    list mirror.registries: value::REGISTRY;
    /// Hosts whose connections are tunnelled without interception: for clients that pin certificates.
    list hosts.tunnel: value::HOST;
    /// The DNS names, with all names below them, for which larder's CA may sign (name constraints); an empty list
    /// permits all hosts. Takes effect when a CA is made: at the first start, and by `larder ca rotate`.
    list ca.permitted: value::NAME, at_restart();
    /// Hosts to which every request is answered 403.
    list hosts.refuse: value::HOST;
    /// Whether a CONNECT tunnel that carries neither TLS nor HTTP is passed through.
    one hosts.tunnel_unknown_protocols: value::SWITCH;
    /// Ports to which requests may go.
    list hosts.ports: value::PORTS;
    /// Request headers that do not change the answer, in addition to those that larder knows. A request with any
    /// other header is passed on, and its answer is not kept.
    list http.harmless_headers: value::HEADER;
    /// Request headers that are forwarded in requests whose answers are shared, although the cache key does not
    /// contain them. Use it only for test suites that count their requests at the origin: a client that sends such a
    /// header influences what other clients are given.
    list http.forwarded_headers: value::HEADER;
    /// The proxy through which larder reaches https origins.
    one upstream.https_proxy: value::PROXY, password(value::without_secrets), or(&["https_proxy", "HTTPS_PROXY"]);
    /// The proxy through which larder reaches http origins.
    one upstream.http_proxy: value::PROXY, password(value::without_secrets), or(&["http_proxy", "HTTP_PROXY"]);
    /// larder's own logins at upstreams, used for clients that send no credential. Everything that a login may read
    /// there, every client of this larder may then read; the word `everyone` in each entry confirms that. larder
    /// sends a login to the named host only, over https only, never to the target of a redirect, and shows it to no
    /// client.
    list upstream.logins: login::LOGIN, password(login::without_secret);
    /// Origins that larder reaches without a proxy.
    one upstream.no_proxy: value::NO_PROXY, or(&["no_proxy", "NO_PROXY"]);
    /// Which CA certificates larder trusts for origins: those compiled in and the system's, one of the two, or only
    /// `upstream_ca`.
    one upstream.roots: value::ROOTS;
    /// How long a connection to an origin may take, TLS handshake included.
    one upstream.connect_timeout: value::SPAN;
    /// How long a client waits for the header of an answer if there is a stored copy, and at least four times as long
    /// as this origin usually takes. After that the client gets the stored copy, and larder's request continues
    /// without it; until the origin answers, further clients wait one second. Shorter than the half minute after
    /// which most clients give up.
    one upstream.patience: value::SPAN;
    /// How long an origin may take from a request to the header of its answer if there is a stored copy to serve
    /// instead. Without a stored copy, larder waits as long as the client does, while the connection lives.
    one upstream.header_timeout: value::SPAN;
    /// How long an origin may send nothing in the middle of a body. After that the download is resumed if the origin
    /// supports ranges, and given up after twice as long. An answer that larder does not recognise (an event stream,
    /// a log) may be silent for as long as its client reads.
    one upstream.idle_timeout: value::SPAN;
    /// Bytes a second, measured over a minute, below which a download from an origin is aborted and resumed.
    one upstream.min_rate: value::SIZE;
    /// Idle connections that are kept open to one origin.
    one upstream.connections_per_origin: value::COUNT;
    /// Interim answers (1xx) that an origin may send before its answer; if it sends more, the client is answered 502.
    /// Most origins send none, or one or two; 512 are one every ten seconds for more than an hour. Together with the
    /// answer's header they may take 128 KiB.
    one upstream.interim_answers: value::COUNT;
    /// The most disk space that the cache takes, unfinished files included.
    one store.max_size: value::SIZE;
    /// How much space the cache leaves free on its file system, whatever else uses it.
    one store.min_free: value::SIZE;
    /// The largest body that is kept, as a share of `store.max_size` or of the space that the file system leaves for
    /// it. A larger body is passed on to its clients and not kept. New bodies may displace bodies that were requested
    /// more than once up to this share only.
    one store.max_body_share: value::SHARE;
    /// How long a signed index is still served after its Valid-Until while its origin fails.
    one stale.signed: value::SPAN;
    /// How long a copy without a signature or a strong digest is still served while its origin fails.
    one stale.unsigned: value::SPAN;
    /// Whether the keys that are compiled in are trusted: those of Debian, Ubuntu, Alpine and the npm registry. Other
    /// trusted keys are those found through `keys.system` and those added with `larder keys add`.
    one keys.built_in: value::SWITCH;
    /// Files and directories in which this machine keeps the keys of package archives. Of apt's source files, the
    /// keys in `Signed-By` are used.
    list keys.system: value::PATH;
    /// Log lines for people, or one JSON object a line.
    one log.format: value::LOG_FORMAT, at_restart();
    /// Which events are logged.
    one log.filter: value::FILTER, at_restart();
};

/// The key called `name`.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    const fn new(
        name: &'static str,
        doc: &'static str,
        expected: &'static str,
        bare: bool,
    ) -> Self {
        Self {
            name,
            // Each line of a doc comment begins with a space.
            doc: doc.trim_ascii_start(),
            expected,
            list: false,
            acts: Acts::AtOnce,
            others: &[],
            secret: false,
            hidden: str::to_owned,
            bare,
            set: |_, _| Ok(()),
            get: |_| Vec::new(),
        }
    }

    const fn at_restart(mut self) -> Self {
        self.acts = Acts::AtRestart;
        self
    }

    const fn password(mut self, hidden: fn(&str) -> String) -> Self {
        self.secret = true;
        self.hidden = hidden;
        self
    }

    const fn or(mut self, others: &'static [&'static str]) -> Self {
        self.others = others;
        self
    }

    /// The key's environment variable: `LARDER_`, then the name in capitals with `_` for each dot.
    pub fn variable(&self) -> String {
        format!("LARDER_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// Sets the key from texts: one, or any number for a list.
    pub fn set(&self, config: &mut Config, values: &[String]) -> Result<(), Wrong> {
        (self.set)(config, values)
    }

    /// Copies the key's value from one configuration to another.
    pub fn copy(&self, from: &Config, to: &mut Config) {
        // `set` reads what `get` writes: a test checks that for every key.
        let _same = self.set(to, &(self.get)(from));
    }

    /// Whether the key has the same value in both configurations.
    pub fn is_same(&self, one: &Config, other: &Config) -> bool {
        (self.get)(one) == (self.get)(other)
    }

    /// The key's value as TOML, without secrets.
    pub fn shown(&self, config: &Config) -> String {
        let texts = (self.get)(config).into_iter().map(|text| {
            let text = (self.hidden)(&text);
            if self.bare { text } else { quoted(&text) }
        });
        let all = texts.collect::<Vec<_>>().join(", ");
        if self.list { format!("[{all}]") } else { all }
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _infallible = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn single<T>(form: &Form<T>, values: &[String]) -> Result<T, Wrong> {
    match values {
        [value] => (form.parse)(value).ok_or_else(|| Wrong(value.clone())),
        _ => Err(Wrong(format!("a list of {}", values.len()))),
    }
}

fn several<T>(form: &Form<T>, values: &[String]) -> Result<Vec<T>, Wrong> {
    values.iter().map(|value| (form.parse)(value).ok_or_else(|| Wrong(value.clone()))).collect()
}

/// The reference of all keys, as Markdown.
pub fn reference() -> String {
    let defaults = Config::default();
    let mut text = String::new();
    for key in KEYS {
        let default =
            if key.name == "data" { "see below".to_owned() } else { key.shown(&defaults) };
        let several = if key.list { "A list; each is" } else { "Takes" };
        let restart = match key.acts {
            Acts::AtOnce => "",
            Acts::AtRestart => " Acts after a restart.",
        };
        let others = match key.others {
            [] => String::new(),
            names => format!(" When nothing else sets it, `{}` does.", names.join("` or `")),
        };
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            "### `{}`\n\n`{}` · default `{default}`\n\n{} {several} {}.{restart}{others}\n\n",
            key.name,
            key.variable(),
            key.doc,
            key.expected,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_has_its_own_names_and_an_explanation() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        let variables: BTreeSet<_> = KEYS.iter().map(Key::variable).collect();
        assert_eq!((names.len(), variables.len()), (KEYS.len(), KEYS.len()));
        for key in KEYS {
            assert!(key.doc.ends_with('.') && !key.expected.ends_with('.'), "{}", key.name);
            assert!(key.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'));
        }
    }

    #[test]
    fn every_default_reads_back_as_itself() {
        let defaults = Config::default();
        for key in KEYS {
            let mut config = Config::default();
            key.copy(&defaults, &mut config);
            assert_eq!(config, defaults, "{}", key.name);
        }
    }

    /// Control for the test above, which a key whose setter does nothing would pass.
    #[test]
    fn every_key_sets_what_it_shows() {
        let other = |key: &Key| -> Vec<String> {
            let value = match key.name {
                "listen" => "127.0.0.1:1",
                "allow_nets" | "clients.allow" => "203.0.113.0/24",
                "clients.max_connections"
                | "clients.connections_per_address"
                | "clients.requests_per_address"
                | "upstream.connections_per_origin"
                | "upstream.interim_answers" => "3",
                "hosts.tunnel" | "hosts.refuse" | "mirror.names" | "ca.permitted" => {
                    "*.example.org"
                }
                "announce" => "true",
                "hosts.tunnel_unknown_protocols"
                | "keys.built_in"
                | "mirror.enabled"
                | "clients.queries" => "false",
                "hosts.ports" => "1-2",
                "mirror.registries" => "hub.example.org=https://registry.example.org",
                "http.harmless_headers" | "http.forwarded_headers" => "x-build",
                "upstream.https_proxy" | "upstream.http_proxy" => "http://proxy.example.org:3128",
                "upstream.roots" => "only",
                "upstream.min_rate"
                | "store.max_size"
                | "store.min_free"
                | "clients.max_buffered"
                | "clients.buffered_per_address" => "7MiB",
                "log.format" => "json",
                "upstream.logins" => "example.org everyone bearer s3cret",
                "speaks_for" => "https://example.org/simple/ https://files.example.org",
                "store.max_body_share" => "77%",
                "upstream.patience" => "77s",
                name if name.ends_with("_timeout") || name.starts_with("stale.") => "77s",
                _ => "else",
            };
            vec![value.to_owned()]
        };
        let defaults = Config::default();
        for key in KEYS {
            let mut config = Config::default();
            key.set(&mut config, &other(key)).unwrap();
            assert!(!key.is_same(&config, &defaults), "{} was not set", key.name);
            assert_eq!((key.get)(&config), other(key), "{}", key.name);
            assert!(
                KEYS.iter().filter(|other| !other.is_same(&config, &defaults)).count() == 1,
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn the_reference_names_every_key_and_variable() {
        let text = reference();
        for key in KEYS {
            assert!(text.contains(&format!("### `{}`\n\n`{}`", key.name, key.variable())));
        }
    }

    #[test]
    fn strings_are_shown_as_toml_reads_them() {
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000A\"");
    }
}
