//! The forms of values: one [`Form`] for each kind, with its syntax, its meaning and how it is shown.
//!
//! Parsing what a form shows gives the same value; a test in `keys` checks that for every key. Nothing here resolves
//! a name or touches a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{HostPattern, LogFormat, Registry, Roots, SpeaksFor};

/// The form of one kind of values.
pub(super) struct Form<T> {
    /// What is expected, to complete the sentence "… is not …".
    pub(super) expected: &'static str,
    /// Parses a value; `None` if it does not have the form.
    pub(super) parse: fn(&str) -> Option<T>,
    /// Formats a value so that `parse` reads the same.
    pub(super) show: fn(&T) -> String,
    /// Whether TOML has a type for it, so that it is shown without quotes.
    pub(super) bare: bool,
}

impl<T> Form<T> {
    const fn quoted(
        expected: &'static str,
        parse: fn(&str) -> Option<T>,
        show: fn(&T) -> String,
    ) -> Self {
        Self { expected, parse, show, bare: false }
    }
}

/// A number of bytes.
pub(super) const SIZE: Form<u64> = Form::quoted(
    "a size such as \"20GiB\", \"500MB\" or a number of bytes",
    |text| scaled(text, &SIZE_UNITS),
    |bytes| largest_unit(*bytes, &SIZE_UNITS),
);

/// A size in the largest unit in which it is a whole number, as in a configuration file.
pub fn size(bytes: u64) -> String {
    largest_unit(bytes, &SIZE_UNITS)
}

/// A span of time.
pub(super) const SPAN: Form<Duration> = Form::quoted(
    "a span of time such as \"30s\", \"5m\", \"12h\" or \"7d\"",
    // A bare number is refused: its unit would be ambiguous.
    |text| scaled(text, &SPAN_UNITS).map(Duration::from_millis),
    |span| largest_unit(u64::try_from(span.as_millis()).unwrap_or(u64::MAX), &SPAN_UNITS),
);

/// A share of a whole, in hundredths: more than nothing, at most all.
pub(super) const SHARE: Form<u8> = Form::quoted(
    "a share such as \"25%\", at most \"100%\"",
    |text| {
        let hundredths = text.strip_suffix('%')?.trim_end().parse().ok()?;
        (1..=100).contains(&hundredths).then_some(hundredths)
    },
    |hundredths| format!("{hundredths}%"),
);

/// A count, at least one.
pub(super) const COUNT: Form<usize> = Form {
    expected: "a whole number above 0",
    parse: |text| text.parse().ok().filter(|count| *count > 0),
    show: usize::to_string,
    bare: true,
};

/// Yes or no.
pub(super) const SWITCH: Form<bool> = Form {
    expected: "true or false",
    parse: |text| match text {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    },
    show: bool::to_string,
    bare: true,
};

/// A network.
pub(super) const NET: Form<IpNet> = Form::quoted(
    "a network such as \"10.0.0.0/8\" or an address",
    |text| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)),
    IpNet::to_string,
);

/// An address to listen on.
pub(super) const ADDRESS: Form<SocketAddr> = Form::quoted(
    "an address such as \"127.0.0.1:3142\", \"[::]:3142\" or \":3142\" for all of the machine's",
    |text| {
        let everywhere = |port: u16| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
        text.parse().ok().or_else(|| port.map(everywhere))
    },
    SocketAddr::to_string,
);

/// A file or directory.
pub(super) const PATH: Form<PathBuf> = Form::quoted(
    "a path",
    |text| (!text.is_empty()).then(|| PathBuf::from(text)),
    |path| path.display().to_string(),
);

/// A host, or `*.` and a domain for all hosts below it.
pub(super) const HOST: Form<HostPattern> = Form::quoted(
    "a host such as \"example.org\", or \"*.example.org\" for every host below it",
    |text| {
        // An address has many spellings; the canonical one is stored for comparison.
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
            return Some(HostPattern(match address.to_ipv4_mapped() {
                Some(v4) => v4.to_string(),
                None => format!("[{address}]"),
            }));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let host = name.strip_prefix("*.").unwrap_or(&name);
        // A port is refused: hosts are compared without one, and a pattern that never matches would go unnoticed.
        let bytes_fit = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let labels_fit = !host.is_empty() && host.split('.').all(|label| !label.is_empty());
        (bytes_fit && labels_fit).then_some(HostPattern(name))
    },
    |pattern| pattern.0.clone(),
);

/// A host name that also covers all names below it.
pub(super) const NAME: Form<HostPattern> = Form::quoted(
    "a name such as \"example.org\", with all below it; no address",
    |text| {
        let is_name =
            |host: &HostPattern| !host.0.starts_with('[') && host.0.parse::<Ipv4Addr>().is_err();
        (HOST.parse)(text).filter(is_name)
    },
    |pattern| pattern.0.clone(),
);

/// An inclusive range of ports.
pub(super) const PORTS: Form<(u16, u16)> = Form::quoted(
    "a port such as \"443\" or a range such as \"1024-65535\"",
    |text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (range.0 <= range.1).then_some(range)
    },
    |(first, last)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    },
);

/// The name of a header, or a prefix and `*`.
pub(super) const HEADER: Form<String> = Form::quoted(
    "the name of a header, or its beginning and \"*\"",
    |text| {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('*').unwrap_or(&lower);
        let token =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b));
        // A bare `*` would make every header harmless, those with credentials included.
        (token && !name.is_empty()).then_some(lower)
    },
    String::clone,
);

/// A proxy between larder and the origins. It may contain a password: use [`without_secrets`] to show it.
pub(super) const PROXY: Form<Option<String>> = Form::quoted(
    "a proxy such as \"http://user:password@proxy.example.org:3128\", or nothing",
    |text| {
        if text.is_empty() {
            return Some(None);
        }
        // Without a scheme, http is meant, as in curl and in the files that set these variables.
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let parsed = Url::parse(&url).ok()?;
        let known = matches!(parsed.scheme(), "http" | "https");
        (known && parsed.has_host()).then_some(Some(url))
    },
    |proxy| proxy.clone().unwrap_or_default(),
);

/// Hosts that are reached without a proxy.
pub(super) const NO_PROXY: Form<Option<String>> = Form::quoted(
    "hosts, domains and networks with commas between them, as curl reads NO_PROXY",
    |text| Some(Some(text.to_owned()).filter(|text| !text.is_empty())),
    |hosts| hosts.clone().unwrap_or_default(),
);

/// Which CA certificates are trusted for origins.
pub(super) const ROOTS: Form<Roots> = Form::quoted(
    "\"both\", \"webpki\", \"system\" or \"only\"",
    |text| {
        [Roots::Both, Roots::Webpki, Roots::System, Roots::Only]
            .into_iter()
            .find(|roots| roots_name(*roots) == text)
    },
    |roots| roots_name(*roots).to_owned(),
);

/// The format of log lines.
pub(super) const LOG_FORMAT: Form<LogFormat> = Form::quoted(
    "\"human\" or \"json\"",
    |text| match text {
        "human" => Some(LogFormat::Human),
        "json" => Some(LogFormat::Json),
        _ => None,
    },
    |format| match format {
        LogFormat::Human => "human".to_owned(),
        LogFormat::Json => "json".to_owned(),
    },
);

/// Which events are logged.
pub(super) const FILTER: Form<String> = Form::quoted(
    "a filter such as \"info\" or \"warn,larder::request=info\"",
    |text| EnvFilter::builder().parse(text).is_ok().then(|| text.to_owned()),
    String::clone,
);

/// An index's root and the origin of its files.
pub(super) const SPEAKS_FOR: Form<SpeaksFor> = Form::quoted(
    "two URLs with a space between them: an index's root and the origin of its files, such as \
     \"https://index.example.org/ https://files.example.org\"",
    |text| {
        let (index, files) = text.split_once(' ')?;
        let web = |text: &str| {
            let url = Url::parse(text.trim()).ok()?;
            let plain = url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none();
            (matches!(url.scheme(), "https" | "http") && plain).then_some(url)
        };
        let (index, files) = (web(index)?, web(files)?);
        (files.path() == "/").then(|| SpeaksFor {
            index: format!("{}/", index.as_str().trim_end_matches('/')),
            files: files.as_str().trim_end_matches('/').to_owned(),
        })
    },
    |pair| format!("{} {}", pair.index, pair.files),
);

/// A container registry that is mirrored.
pub(super) const REGISTRY: Form<Registry> = Form::quoted(
    "a registry's URL such as \"https://registry.example.org\", or NAME=URL",
    |text| {
        let (name, url) = match text.split_once('=') {
            // In a URL without a query, no equals sign precedes `://`.
            Some((name, url)) if !name.contains(':') || url.contains("://") => (Some(name), url),
            Some(_) | None => (None, text),
        };
        let name_fits = name.is_none_or(|name| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
        });
        let url = Url::parse(url).ok()?;
        let fits = matches!(url.scheme(), "https" | "http")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        (fits && name_fits).then(|| Registry {
            name: name.map(str::to_owned),
            url: url.as_str().trim_end_matches('/').to_owned(),
        })
    },
    |registry| match &registry.name {
        Some(name) => format!("{name}={}", registry.url),
        None => registry.url.clone(),
    },
);

/// A proxy's URL with its password replaced: `http://user:…@proxy.example.org:3128`.
pub(super) fn without_secrets(proxy: &str) -> String {
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", proxy));
    match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _password)) => format!("{scheme}://{user}:…@{host}"),
            // The user part may be a token.
            None => format!("{scheme}://…@{host}"),
        },
        None => proxy.to_owned(),
    }
}

const fn roots_name(roots: Roots) -> &'static str {
    match roots {
        Roots::Both => "both",
        Roots::Webpki => "webpki",
        Roots::System => "system",
        Roots::Only => "only",
    }
}

/// Largest first. Binary units before decimal ones.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("", 1),
];

/// In milliseconds, largest first.
const SPAN_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a whole number and its unit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    if number == 0 && unit.is_empty() {
        return Some(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    number.checked_mul(*factor)
}

/// Formats the value in the largest unit, binary or decimal, in which it is a whole number.
fn largest_unit(value: u64, units: &[(&str, u64)]) -> String {
    let whole =
        units.iter().filter(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    let unit = whole.max_by_key(|(_, factor)| *factor);
    match unit {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_something_and_at_most_all() {
        assert_eq!(["1%", "25 %", "100%"].map(SHARE.parse), [Some(1), Some(25), Some(100)]);
        for wrong in ["0%", "101%", "25", "-1%", "2.5%", "%", ""] {
            assert_eq!((SHARE.parse)(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in
            [("20GiB", 20 << 30), ("1 MiB", 1 << 20), ("500MB", 500_000_000), ("17", 17), ("0", 0)]
        {
            assert_eq!((SIZE.parse)(text), Some(bytes), "{text}");
        }
        for wrong in ["", "GiB", "-1", "1.5GiB", "20 gigs", "99999999TiB"] {
            assert_eq!((SIZE.parse)(wrong), None, "{wrong}");
        }
        assert_eq!((SIZE.show)(&(20 << 30)), "20GiB");
        assert_eq!((SIZE.show)(&1025), "1025");
    }

    #[test]
    fn spans_need_a_unit() {
        for (text, millis) in [("30s", 30_000), ("7d", 604_800_000), ("250ms", 250), ("0", 0)] {
            assert_eq!((SPAN.parse)(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["30", "s", "1y", "1h30"] {
            assert_eq!((SPAN.parse)(wrong), None, "{wrong}");
        }
        assert_eq!((SPAN.show)(&Duration::from_mins(90)), "90m");
    }

    #[test]
    fn an_address_among_hosts_is_put_in_one_spelling() {
        for (written, kept) in [
            ("2001:DB8:0::1", "[2001:db8::1]"),
            ("[2001:db8:0:0::1]", "[2001:db8::1]"),
            ("[::ffff:192.0.2.1]", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("*.Example.org.", "*.example.org"),
        ] {
            let parsed = (HOST.parse)(written);
            assert_eq!(parsed, Some(HostPattern(kept.into())), "{written}");
        }
        // Patterns that would never match, so that the operator relies on a rule without effect.
        for wrong in ["example.org:443", "[example.org]", "192.0.2.1:443", "[2001:db8::1]:443", ""]
        {
            assert_eq!((HOST.parse)(wrong), None, "{wrong}");
        }
        assert_eq!((NAME.parse)("*.example.org"), Some(HostPattern("*.example.org".into())));
        for wrong in ["192.0.2.1", "[2001:db8::1]", "2001:db8::1"] {
            assert_eq!((NAME.parse)(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_lone_port_listens_everywhere() {
        assert_eq!((ADDRESS.parse)(":3142"), "[::]:3142".parse().ok());
        assert_eq!((ADDRESS.parse)("localhost:3142"), None, "names are not resolved");
    }

    #[test]
    fn no_pattern_calls_every_header_harmless() {
        assert_eq!((HEADER.parse)("X-Build-*"), Some("x-build-*".into()));
        for wrong in ["*", "", "a b", "a*b"] {
            assert_eq!((HEADER.parse)(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_declared_pair_is_put_in_one_spelling() {
        let pair =
            (SPEAKS_FOR.parse)("https://index.example.org/simple https://files.example.org/")
                .unwrap();
        assert_eq!(pair.index, "https://index.example.org/simple/");
        assert_eq!(pair.files, "https://files.example.org");
        for wrong in [
            "https://index.example.org/",
            "https://index.example.org/ https://files.example.org/path",
            "ftp://index.example.org/ https://files.example.org",
            "https://:password@index.example.org/ https://files.example.org",
        ] {
            assert_eq!((SPEAKS_FOR.parse)(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_proxy_is_shown_without_its_password() {
        for (proxy, shown) in [
            ("http://u:p@proxy.example.org:3128", "http://u:…@proxy.example.org:3128"),
            ("http://u:p@ss@proxy.example.org", "http://u:…@proxy.example.org"),
            ("u:p@proxy.example.org", "http://u:…@proxy.example.org"),
            ("http://token@proxy.example.org", "http://…@proxy.example.org"),
            ("http://proxy.example.org", "http://proxy.example.org"),
        ] {
            assert_eq!(without_secrets(proxy), shown);
        }
    }
}
