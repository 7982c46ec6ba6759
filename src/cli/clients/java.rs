//! Java reads neither the proxy nor the root certificates from the common variables. It is given properties, and a
//! trust store with larder's CA and the machine's roots.
//!
//! The store is a JKS file. All versions of Java read that format, and writing it needs only SHA-1: neither a Java
//! nor keytool has to be installed when the command starts. The store holds only certificates, which are public, so
//! its password is the usual default.

use std::fmt::Write as _;
use std::path::Path;

use super::no_proxy;
use crate::config::environment::Environment;

/// The variable that every Java reads, however it is started.
pub(in crate::cli) const VARIABLE: &str = "JAVA_TOOL_OPTIONS";

/// Variables with options for starting some Java program.
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

/// Marks the start of larder's own properties, which a nested `larder exec` replaces.
const MARK: &str = "-Dlarder.exec=true";

const PASSWORD: &str = "changeit";

/// Whether the user set a trust store for some Java. larder cannot add to that store, and Java uses the last of two
/// settings: behind larder, that Java would trust no server.
pub(super) fn has_own_store(environment: &Environment) -> bool {
    STARTING.iter().filter_map(|name| environment.get(name)).any(|options| {
        let users = options.split_once(MARK).map_or(options, |(users, _)| users);
        users.contains("javax.net.ssl.trustStore=")
    })
}

/// The value of [`VARIABLE`]: the user's options, then larder's properties. `None` if Java must not be changed.
pub(super) fn options(proxy: &str, store: &Path, environment: &Environment) -> Option<String> {
    let store = store.to_str().filter(|path| !path.contains(['"', '\'']))?;
    if has_own_store(environment) {
        return None;
    }
    let url = url::Url::parse(proxy).ok()?;
    // Java expects an IPv6 address without brackets here.
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
    // Maven takes the proxy from Java's properties only if told to, by one property up to version 3 and by another
    // since.
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

/// The hosts that bypass the proxy, in Java's form: patterns, no address ranges. A range that cannot be written as a
/// pattern is left out.
fn around(environment: &Environment) -> String {
    let mut patterns = Vec::new();
    for host in no_proxy::merged(environment).split(',') {
        let pattern = match host {
            // Not a form that clients read; to Java, some of these characters end the value.
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

/// The pattern for a range of IPv4 addresses whose prefix ends between two octets.
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

/// A trust store with every certificate of `bundle` (PEM). If it cannot be parsed, the store is empty.
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
        // The fields of an entry: tag for a trusted certificate, alias, creation time, certificate type.
        store.extend([0, 0, 0, 2]);
        store.extend(text(&format!("larder-{number}")));
        store.extend([0; 8]);
        store.extend(text("X.509"));
        store.extend(count(certificate.len()));
        store.extend(certificate);
    }
    // The format's checksum, keyed with the password; it protects no secret.
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

/// A string preceded by its length.
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
        // Nested in another `larder exec`, they are set once.
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
