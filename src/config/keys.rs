//! Every key, once: its name, its explanation, how it is read, set and shown.
//!
//! The TOML reader, the names of environment variables, `larder config` and the reference in the documents are all
//! derived from [`KEYS`]; adding a key is a line here and a field in [`Config`].

use std::fmt::Write as _;

use super::Config;
use super::login;
use super::value::{self, Form};

/// One thing that can be set.
#[derive(Debug)]
pub struct Key {
    /// Its name in `larder.toml`: the tables that lead to it, with dots between.
    pub name: &'static str,
    /// What it decides, in a sentence or two.
    pub doc: &'static str,
    /// What its value, or each of its values, has to be.
    pub expected: &'static str,
    /// Whether it takes a list.
    pub list: bool,
    /// When a change acts.
    pub acts: Acts,
    /// Other programs' environment variables that set it when nothing of larder's does.
    pub others: &'static [&'static str],
    /// Whether a password may stand in it.
    pub secret: bool,
    /// Shows a value without its secret.
    hidden: fn(&str) -> String,
    bare: bool,
    set: fn(&mut Config, &[String]) -> Result<(), Wrong>,
    get: fn(&Config) -> Vec<String>,
}

/// When a changed value acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acts {
    /// As soon as the configuration is read again.
    AtOnce,
    /// When larder is started again.
    AtRestart,
}

/// A value that is not what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

/// A row of the table. What stands above a key is its explanation; the name of a key is its place in [`Config`].
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

/// Every key there is: what it decides, whether it takes one value or a list, its name, how values are written.
pub const KEYS: &[Key] = keys! {
    /// Where clients connect. 3142 is where programs that look for a proxy for apt look.
    list listen: value::ADDRESS, at_restart();
    /// Whether larder tells the local network where it is: `_apt_proxy._tcp` by DNS-SD, on the interfaces it listens
    /// at.
    one announce: value::SWITCH, at_restart();
    /// The directory of the CA (`state/`) and the cache (`v1/`). By default `$XDG_CACHE_HOME/larder`, `~/.cache/larder`
    /// or, without a home, `/var/cache/larder`.
    one data: value::PATH, at_restart();
    /// Networks that origins may be in although larder keeps them shut: loopback, link-local, metadata services.
    list allow_nets: value::NET;
    /// PEM files with further roots that vouch for origins and for proxies on the way to them.
    list upstream_ca: value::PATH;
    /// Indexes whose word holds for the files of another origin.
    list speaks_for: value::SPEAKS_FOR;
    /// Networks that may use larder.
    list clients.allow: value::NET;
    /// Connections at a time. One that finds no seat closes quiet ones of the address that has most, waits a few seconds,
    /// and then hears 503. Each takes up to 100 KiB of memory; half of the open files that the system allows (`ulimit -n`)
    /// bounds it as well.
    one clients.max_connections: value::COUNT, at_restart();
    /// Of these, connections from one address (IPv6: one network of 64 bits). Enough for a CI host with 500 containers
    /// behind one address and four connections each; never more than seven eighths of all, so that nobody shuts the others
    /// out.
    one clients.connections_per_address: value::COUNT, at_restart();
    /// Requests of one address that are being answered at a time, HTTP/2 streams included; more wait a few seconds, and
    /// then hear 503. Enough for 500 containers with eight downloads each.
    one clients.requests_per_address: value::COUNT, at_restart();
    /// Memory for bytes that clients were not quick enough to take: an answer waits while there is more. An answer has up
    /// to 128 KiB of it.
    one clients.max_buffered: value::SIZE, at_restart();
    /// Of this, for the clients of one address: a thousand slow downloads at once.
    one clients.buffered_per_address: value::SIZE, at_restart();
    /// From CONNECT to the end of the TLS handshake.
    one clients.handshake_timeout: value::SPAN;
    /// For the header of a request, once it has begun.
    one clients.header_timeout: value::SPAN;
    /// A connection or tunnel on which nothing moves is closed after this.
    one clients.idle_timeout: value::SPAN;
    /// An answer of which its client takes nothing for this long is broken off. Longer than pulls are paused while a layer
    /// is unpacked or a laptop changes its network; short enough that who only holds on is gone in minutes.
    one clients.stall_timeout: value::SPAN;
    /// How long a stop waits for running transfers.
    one clients.drain_timeout: value::SPAN;
    /// Whether clients may ask what is stored, and what was refused or failed (`larder why --proxy` and its like). They hear of
    /// what everybody may fetch, and nothing of each other.
    one clients.queries: value::SWITCH;
    /// Whether larder serves clients that cannot use a proxy: `http://larder:3142/https/HOST/PATH` and apt-cacher-ng's
    /// forms.
    one mirror.enabled: value::SWITCH;
    /// Names of this larder in such requests, besides addresses, names without a dot, and those that are given out
    /// inside networks alone (`.internal`, `.local`, `.svc`, `.lan` and the like).
    list mirror.names: value::HOST;
    /// Container registries that are mirrored at `/v2/`: one without a name for clients that name none (dockerd's
    /// `registry-mirrors`), others by the name that clients put into `?ns=` (containerd).
    list mirror.registries: value::REGISTRY;
    /// Hosts whose connections are copied through unread: for clients that pin certificates.
    list hosts.tunnel: value::HOST;
    /// The names that a CA which larder makes is limited to, with all below them (name constraints); none are all
    /// hosts. Acts when a CA is made: at the first start, and by `larder ca rotate`.
    list ca.permitted: value::NAME, at_restart();
    /// Hosts that are answered 403.
    list hosts.refuse: value::HOST;
    /// Whether a CONNECT that carries neither TLS nor HTTP is copied through.
    one hosts.tunnel_unknown_protocols: value::SWITCH;
    /// Ports that requests may name.
    list hosts.ports: value::PORTS;
    /// Request headers, besides those larder knows, that change nothing in an answer. A request with any other header
    /// is passed on and its answer is not kept.
    list http.harmless_headers: value::HEADER;
    /// Request headers that go on with what is fetched for everybody, though nothing keeps its answers apart by them. For
    /// test suites that count their requests at the origin, and for nothing else: whoever sends such a header decides what
    /// others are given.
    list http.forwarded_headers: value::HEADER;
    /// The proxy through which https origins are reached.
    one upstream.https_proxy: value::PROXY, password(value::without_secrets), or(&["https_proxy", "HTTPS_PROXY"]);
    /// The proxy through which http origins are reached.
    one upstream.http_proxy: value::PROXY, password(value::without_secrets), or(&["http_proxy", "HTTP_PROXY"]);
    /// larder's own logins at upstreams, used to fetch for clients that bring none: whatever a login may read there,
    /// everyone who may use this larder may then read, and the word `everyone` in each entry says so. A login is shown
    /// to the named host by https only, never to where it redirects, and to no client.
    list upstream.logins: login::LOGIN, password(login::without_secret);
    /// Origins that are reached without a proxy.
    one upstream.no_proxy: value::NO_PROXY, or(&["no_proxy", "NO_PROXY"]);
    /// Which roots vouch for origins: those compiled in and the system's, one of the two, or only `upstream_ca`.
    one upstream.roots: value::ROOTS;
    /// For one connection to an origin, TLS included.
    one upstream.connect_timeout: value::SPAN;
    /// How long a client waits for the header of an answer where there is a stored copy to give in its place, and never less
    /// than four times what this origin usually takes. Then it is given the copy, and the question goes on without it; until the
    /// origin answers, others wait a second. Short enough for clients, the most of which give up after half a minute.
    one upstream.patience: value::SPAN;
    /// From a request to the header of its answer, where there is a stored copy to give in its place; without one it is waited
    /// for as long as a client does, while the connection lives.
    one upstream.header_timeout: value::SPAN;
    /// For the next byte of a body: then it is resumed, where its origin gives parts, and given up after twice as long. What
    /// larder does not know, an event stream or a log, may be silent for as long as its client reads.
    one upstream.idle_timeout: value::SPAN;
    /// Bytes a second, measured over a minute, below which a transfer is broken off and resumed.
    one upstream.min_rate: value::SIZE;
    /// Idle connections kept to one origin.
    one upstream.connections_per_origin: value::COUNT;
    /// Interim answers (1xx) before an answer; an origin that sends more is answered 502. Most send none, or one or two; 512 are
    /// one every ten seconds for more than an hour. Together with the answer's header they have 128 KiB.
    one upstream.interim_answers: value::COUNT;
    /// The most that the cache takes on disk, unfinished files included.
    one store.max_size: value::SIZE;
    /// What stays free on the file system, whatever else fills it.
    one store.min_free: value::SIZE;
    /// The most that one body may take of `store.max_size`, or of what the file system leaves of that. A larger one is
    /// passed on to its readers and not kept. What arrives displaces bodies that were asked for again only as far as this
    /// share goes.
    one store.max_body_share: value::SHARE;
    /// How long signed indexes still serve after their Valid-Until when their origin fails.
    one stale.signed: value::SPAN;
    /// How long copies without a signature or a strong digest still serve when their origin fails.
    one stale.unsigned: value::SPAN;
    /// Whether the keys compiled in are trusted: Debian's, Ubuntu's and Alpine's, npm's registry's. Other keys are
    /// those of `keys.system`, and what `larder keys add` was given.
    one keys.built_in: value::SWITCH;
    /// Files and directories in which this machine keeps keys of package archives; in files of apt's sources, the keys that
    /// stand there in `Signed-By`.
    list keys.system: value::PATH;
    /// For people, or one JSON object a line.
    one log.format: value::LOG_FORMAT, at_restart();
    /// What is logged.
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

    /// Its name in the environment: `LARDER_`, and its path in capitals with `_`.
    pub fn variable(&self) -> String {
        format!("LARDER_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// Sets it from texts: one, or for a list any number.
    pub fn set(&self, config: &mut Config, values: &[String]) -> Result<(), Wrong> {
        (self.set)(config, values)
    }

    /// Copies its value from one configuration to another.
    pub fn copy(&self, from: &Config, to: &mut Config) {
        // What `get` writes, `set` reads: a test holds every key to that.
        let _same = self.set(to, &(self.get)(from));
    }

    /// Whether it has the same value in both.
    pub fn is_same(&self, one: &Config, other: &Config) -> bool {
        (self.get)(one) == (self.get)(other)
    }

    /// Its value as TOML, without secrets.
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

/// The reference of every key, as Markdown: what the documents show.
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

    /// The control of the test above: a key whose setter did nothing would pass it.
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
