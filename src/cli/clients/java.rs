//! Java: it reads neither proxy nor roots from the variables that others read, so that it is given properties, and a trust store
//! with larder's CA and the machine's roots.
//!
//! The store is a JKS file. All versions of Java read that format, and nothing but SHA-1 is needed to write it: no Java has to be
//! there when the command begins, and no keytool. It holds certificates only, which are public, so that its password is the usual one.

use std::fmt::Write as _;
use std::path::Path;

use super::no_proxy;
use crate::config::environment::Environment;

/// The variable that every Java reads, however it is started.
pub(in crate::cli) const VARIABLE: &str = "JAVA_TOOL_OPTIONS";

/// Variables that say how some Java is started.
const STARTING: [&str; 8] = [
    VARIABLE,
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "JAVA_OPTS",
    "MAVEN_OPTS",
    "GRADLE_OPTS",
    "SBT_OPTS",
    "LEIN_JVM_OPTS",
];

/// Before larder's own properties: a command inside another `larder exec` replaces them.
const MARK: &str = "-Dlarder.exec=true";

const PASSWORD: &str = "changeit";

/// Whether the user gave a Java a trust store of its own. larder cannot add to that, and the last of two counts: with larder as
/// proxy, that Java would trust nobody.
pub(super) fn has_own_store(environment: &Environment) -> bool {
    STARTING.iter().filter_map(|name| environment.get(name)).any(|options| {
        let users = options.split_once(MARK).map_or(options, |(users, _)| users);
        users.contains("javax.net.ssl.trustStore=")
    })
}

/// The value of [`VARIABLE`]: what the user set, then larder's properties. `None` where Java is left alone.
pub(super) fn options(proxy: &str, store: &Path, environment: &Environment) -> Option<String> {
    let store = store.to_str().filter(|path| !path.contains(['"', '\'']))?;
    if has_own_store(environment) {
        return None;
    }
    let url = url::Url::parse(proxy).ok()?;
    // Java wants an IPv6 address without brackets there.
    let host = url.host_str()?.trim_matches(['[', ']']);
    let port = url.port_or_known_default()?;
    let users = environment.get(VARIABLE).unwrap_or_default();
    let users = users.split_once(MARK).map_or(users, |(users, _)| users).trim_end();
    let mut options = if users.is_empty() { MARK.to_owned() } else { format!("{users} {MARK}") };
    for scheme in ["http", "https"] {
        // Writing to a String cannot fail.
        let _infallible =
            write!(options, " -D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}");
    }
    // Maven asks Java for its proxy only when it is told to, by one name until version 3 and by another since.
    let _infallible = write!(
        options,
        " -Dhttp.nonProxyHosts={} -Daether.connector.http.useSystemProperties=true \
         -Daether.transport.apache.useSystemProperties=true -Djavax.net.ssl.trustStore={} \
         -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword={PASSWORD}",
        around(environment),
        if store.contains(char::is_whitespace) { format!("\"{store}\"") } else { store.to_owned() },
    );
    Some(options)
}

/// The hosts that go around the proxy, as Java reads them: patterns, no ranges. A range that is none is left out.
fn around(environment: &Environment) -> String {
    let mut patterns = Vec::new();
    for host in no_proxy::merged(environment).split(',') {
        let pattern = match host {
            // A list of somebody's that no client reads; to Java, some characters end the value.
            _ if host.contains(|c: char| !c.is_ascii_alphanumeric() && !"._:*/[]-".contains(c)) => {
                continue;
            }
            _ if host.starts_with('.') => format!("*{host}"),
            _ if host.contains('/') => match glob(host) {
                Some(glob) => glob,
                None => continue,
            },
            _ if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]"),
            _ => host.to_owned(),
        };
        patterns.push(pattern);
    }
    patterns.join("|")
}

/// A range of IPv4 addresses whose end lies between two parts.
fn glob(range: &str) -> Option<String> {
    let range: ipnet::Ipv4Net = range.parse().ok()?;
    let parts = usize::from(range.prefix_len() / 8);
    if !range.prefix_len().is_multiple_of(8) || parts == 0 || parts == 4 {
        return None;
    }
    let octets = range.network().octets();
    let kept: Vec<String> = octets.iter().take(parts).map(u8::to_string).collect();
    Some(format!("{}.*", kept.join(".")))
}

/// A trust store with every certificate of `bundle` (PEM). What cannot be read there is left out.
pub(super) fn trust_store(bundle: &str) -> Vec<u8> {
    let certificates: Vec<Vec<u8>> = pem::parse_many(bundle)
        .unwrap_or_default()
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(pem::Pem::into_contents)
        .collect();
    let mut store = vec![0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2];
    store.extend(count(certificates.len()));
    for (number, certificate) in certificates.iter().enumerate() {
        // A trusted certificate, its name, when it was taken in, its kind.
        store.extend([0, 0, 0, 2]);
        store.extend(text(&format!("larder-{number}")));
        store.extend([0; 8]);
        store.extend(text("X.509"));
        store.extend(count(certificate.len()));
        store.extend(certificate);
    }
    // The format's own way of noticing a change; no secret is kept by it.
    let mut hashing = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    for unit in PASSWORD.encode_utf16() {
        hashing.update(&unit.to_be_bytes());
    }
    hashing.update(b"Mighty Aphrodite");
    hashing.update(&store);
    store.extend(hashing.finish().as_ref());
    store
}

fn count(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
}

/// A text behind its length.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    length.to_be_bytes().into_iter().chain(text.bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of(pairs: &[(&str, &str)]) -> Option<String> {
        options("http://127.0.0.1:3142", Path::new("/run/t.jks"), &pairs.iter().copied().collect())
    }

    #[test]
    fn java_is_told_proxy_and_trust_store_behind_what_the_user_said() {
        let told = options_of(&[
            (VARIABLE, "-Xmx1g"),
            ("NO_PROXY", ".example.org,10.0.0.0/8,172.16.0.0/12"),
        ]);
        let told = told.unwrap();
        assert!(
            told.starts_with("-Xmx1g -Dlarder.exec=true -Dhttp.proxyHost=127.0.0.1 "),
            "{told}"
        );
        assert!(told.contains(" -Dhttps.proxyPort=3142 "), "{told}");
        assert!(told.contains("=*.example.org|10.*|localhost|127.0.0.1|[::1] "), "{told}");
        assert!(told.contains(" -Djavax.net.ssl.trustStore=/run/t.jks "), "{told}");
        // Inside another `larder exec`: once.
        let again = options_of(&[(VARIABLE, &told)]).unwrap();
        assert_eq!(again.matches("-Dhttps.proxyHost").count(), 1);
        assert!(again.starts_with("-Xmx1g "), "{again}");
    }

    #[test]
    fn a_java_with_a_trust_store_of_the_users_is_left_alone() {
        for name in [VARIABLE, "MAVEN_OPTS", "GRADLE_OPTS"] {
            assert_eq!(options_of(&[(name, "-Djavax.net.ssl.trustStore=/mine")]), None, "{name}");
        }
        assert!(options_of(&[("MAVEN_OPTS", "-Xmx1g")]).is_some(), "the control");
    }

    #[test]
    fn a_path_with_a_blank_is_quoted() {
        let told = options("http://[::1]:1", Path::new("/a b/t.jks"), &Environment::default());
        let told = told.unwrap();
        assert!(told.contains("=\"/a b/t.jks\" ") && told.contains("proxyHost=::1 "), "{told}");
    }
}
