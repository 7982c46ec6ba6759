//! Makes unmodified clients use larder, by environment variables and the files that some of them name.
//!
//! Tools whose variable *replaces* their root certificates are given a bundle that contains the machine's roots;
//! tools whose variable *adds* to their roots are given the CA and the user's earlier additions. Lists of hosts that
//! bypass the proxy are extended, never replaced.
//!
//! Java is given properties and a trust store (`java.rs`). Daemons (docker, containerd, the Nix daemon) have an
//! environment of their own: `ca/` describes how to set them up. dnf, zypper, pacman, aria2 and apk read their roots
//! only from the system's files: `cli/exec/roots.rs` is what `larder exec` does for them.
//!
//! Sources: each tool's manual. The repository's `ca/README.md` lists what was tested and what was only read.

pub(super) mod bundle;
pub(super) mod containers;
mod files;
pub(super) mod java;
mod no_proxy;
pub(super) mod place;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) use self::files::{Files, put};
use crate::config::environment::Environment;

/// What a variable is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// larder's address, as `http://HOST:PORT`.
    Proxy,
    /// The hosts that bypass the proxy.
    NoProxy,
    /// The file with larder's CA, the machine's roots and the user's, for tools whose variable replaces their roots.
    Bundle,
    /// The same file, but only if the user set the variable: versions of the tool that do not know it refuse to run.
    BundleIfSet,
    /// The file with larder's CA and the user's own additions, for tools whose variable adds to their roots.
    Extra,
    /// The configuration file for apt.
    Apt,
    /// The configuration file for wget.
    Wget,
    /// The properties for Java.
    Java,
    /// A fixed text.
    Just(&'static str),
}

/// Clients that read root certificates only from the system's own files, and would refuse larder's certificate.
pub(super) const SYSTEMS_ROOTS: &[&str] =
    &["dnf", "microdnf", "yum", "zypper", "pacman", "apk", "rpm", "aria2c"];

/// Every variable that is set, and what to.
const VARIABLES: &[(&str, Value)] = &[
    // Both cases: curl reads http_proxy in small letters only, others read capitals only.
    ("HTTPS_PROXY", Value::Proxy),
    ("https_proxy", Value::Proxy),
    ("HTTP_PROXY", Value::Proxy),
    ("http_proxy", Value::Proxy),
    ("NO_PROXY", Value::NoProxy),
    ("no_proxy", Value::NoProxy),
    // ALL_PROXY stays as it is: programs that read it prefer the two above for http and https.
    //
    // OpenSSL, Python's ssl, Ruby, Go, .NET, uv, rustup; the platform verifier of rustls.
    ("SSL_CERT_FILE", Value::Bundle),
    ("CURL_CA_BUNDLE", Value::Bundle),
    ("REQUESTS_CA_BUNDLE", Value::Bundle),
    ("PIP_CERT", Value::Bundle),
    ("HTTPLIB2_CA_CERTS", Value::Bundle),
    ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", Value::Bundle),
    ("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", Value::Bundle),
    ("AWS_CA_BUNDLE", Value::Bundle),
    ("CARGO_HTTP_CAINFO", Value::Bundle),
    ("GIT_SSL_CAINFO", Value::Bundle),
    ("NIX_SSL_CERT_FILE", Value::Bundle),
    ("PERL_LWP_SSL_CA_FILE", Value::Bundle),
    ("COMPOSER_CAFILE", Value::Bundle),
    ("HEX_CACERTS_PATH", Value::Bundle),
    ("CONDA_SSL_VERIFY", Value::Bundle),
    // npm prefers its own settings to the common variables: a line in an .npmrc would bypass larder.
    ("npm_config_cafile", Value::Bundle),
    ("npm_config_proxy", Value::Proxy),
    ("npm_config_https_proxy", Value::Proxy),
    ("npm_config_noproxy", Value::NoProxy),
    // Yarn since 2 reads only these. It refuses to run if it does not know a setting: there is none for hosts that
    // bypass the proxy, and the one for roots has one name up to 3 and another since 4. It uses Node's roots, to
    // which the variables below add.
    ("YARN_HTTP_PROXY", Value::Proxy),
    ("YARN_HTTPS_PROXY", Value::Proxy),
    ("YARN_HTTPS_CA_FILE_PATH", Value::BundleIfSet),
    ("YARN_CA_FILE_PATH", Value::BundleIfSet),
    // Node, npm, pnpm, Yarn, Bun.
    ("NODE_EXTRA_CA_CERTS", Value::Extra),
    ("DENO_CERT", Value::Extra),
    // Node's fetch reads HTTPS_PROXY only if this is set; older Node needs the global-agent package for it.
    ("NODE_USE_ENV_PROXY", Value::Just("1")),
    ("GLOBAL_AGENT_HTTP_PROXY", Value::Proxy),
    ("GLOBAL_AGENT_NO_PROXY", Value::NoProxy),
    ("APT_CONFIG", Value::Apt),
    ("WGETRC", Value::Wget),
    (java::VARIABLE, Value::Java),
];

/// The variables, with their values, for a client of the larder at `proxy`.
pub(super) fn variables(
    proxy: &str,
    files: &Files,
    environment: &Environment,
) -> Vec<(&'static str, String)> {
    let around = no_proxy::merged(environment);
    let value = |name: &str, value: &Value| {
        Some(match value {
            Value::Proxy => proxy.to_owned(),
            Value::NoProxy => around.clone(),
            Value::BundleIfSet => {
                environment.get(name)?;
                files.bundle.display().to_string()
            }
            Value::Bundle => files.bundle.display().to_string(),
            Value::Extra => files.extra.display().to_string(),
            Value::Apt => files.apt.display().to_string(),
            Value::Wget => files.wget.display().to_string(),
            Value::Java => java::options(proxy, &files.java, environment)?,
            Value::Just(text) => (*text).to_owned(),
        })
    };
    VARIABLES.iter().filter_map(|(name, kind)| Some((*name, value(name, kind)?))).collect()
}

/// The URL at which a client on this machine reaches a larder that listens at `addresses`.
pub(super) fn proxy_at(addresses: &[SocketAddr]) -> Option<String> {
    let reachable = |address: &SocketAddr| match address.ip() {
        // A socket for all addresses, IPv6 included, also accepts IPv4.
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        _ => *address,
    };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses: Vec<SocketAddr> = addresses.iter().map(reachable).collect();
    addresses
        .iter()
        .find(|address| loopback.contains(&address.ip()))
        .or_else(|| addresses.first())
        .map(|address| format!("http://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn variables_of(environment: &[(&str, &str)]) -> BTreeMap<&'static str, String> {
        let files = Files {
            bundle: "/run/bundle.pem".into(),
            extra: "/run/extra.pem".into(),
            apt: "/run/apt.conf".into(),
            wget: "/run/wgetrc".into(),
            java: "/run/truststore.jks".into(),
        };
        variables("http://127.0.0.1:3142", &files, &environment.iter().copied().collect())
            .into_iter()
            .collect()
    }

    #[test]
    fn every_variable_is_set_once() {
        let names: BTreeSet<_> = VARIABLES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), VARIABLES.len());
    }

    #[test]
    fn tools_that_replace_get_the_bundle_and_tools_that_add_the_extra_roots() {
        let set = variables_of(&[]);
        for replaces in [
            "SSL_CERT_FILE",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "CARGO_HTTP_CAINFO",
            "npm_config_cafile",
        ] {
            assert_eq!(set[replaces], "/run/bundle.pem", "{replaces}");
        }
        for adds in ["NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
            assert_eq!(set[adds], "/run/extra.pem", "{adds}");
        }
        assert_eq!(set["APT_CONFIG"], "/run/apt.conf");
    }

    #[test]
    fn the_scripts_for_machines_and_images_set_the_same_variables() {
        let set_up = include_str!("../../../ca/setup/1-call.sh");
        let images = include_str!("../../../ca/images/run");
        let ours = |kind| -> BTreeSet<&str> {
            VARIABLES.iter().filter(|(_, of)| *of == kind).map(|(name, _)| *name).collect()
        };
        for script in [set_up, images] {
            let listed = |list: &str| -> BTreeSet<&str> {
                let (_, rest) = script.split_once(&format!("\n{list}='")).unwrap();
                rest.split_once('\'').unwrap().0.split_whitespace().collect()
            };
            assert_eq!(listed("proxy_names"), ours(Value::Proxy));
            assert_eq!(listed("around_names"), ours(Value::NoProxy));
            assert_eq!(listed("bundle_names"), ours(Value::Bundle));
            assert_eq!(listed("extra_names"), ours(Value::Extra));
        }
    }

    #[test]
    fn the_proxy_is_named_in_both_cases() {
        let set = variables_of(&[
            ("HTTPS_PROXY", "http://other.example.org"),
            ("NO_PROXY", "internal.example.org"),
        ]);
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "npm_config_proxy"] {
            assert_eq!(set[name], "http://127.0.0.1:3142", "{name}");
        }
        for name in ["NO_PROXY", "no_proxy", "npm_config_noproxy"] {
            assert_eq!(set[name], "internal.example.org,localhost,127.0.0.1,::1", "{name}");
        }
        assert!(set["JAVA_TOOL_OPTIONS"].contains("-Dhttps.proxyPort=3142 "));
        for name in ["YARN_HTTP_PROXY", "YARN_HTTPS_PROXY"] {
            assert_eq!(set[name], "http://127.0.0.1:3142", "{name}");
        }
    }

    /// Yarn 2 and 3 refuse to run if they find Yarn 4's variable for roots, and vice versa.
    #[test]
    fn yarn_is_given_roots_by_its_own_variable_only_where_the_user_did() {
        let set = variables_of(&[]);
        assert!(!set.keys().any(|name| name.starts_with("YARN_") && !name.ends_with("_PROXY")));
        assert!(!set.contains_key("YARN_NO_PROXY"), "no version of Yarn knows it");
        let set = variables_of(&[("YARN_CA_FILE_PATH", "/mine.pem")]);
        assert_eq!(set["YARN_CA_FILE_PATH"], "/run/bundle.pem");
        assert!(!set.contains_key("YARN_HTTPS_CA_FILE_PATH"));
    }

    #[test]
    fn a_larder_that_listens_everywhere_is_reached_on_loopback() {
        let at = |addresses: &[&str]| {
            proxy_at(&addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(at(&["[::]:3142"]).as_deref(), Some("http://127.0.0.1:3142"));
        assert_eq!(at(&["192.0.2.1:1", "[::1]:2"]).as_deref(), Some("http://[::1]:2"));
        assert_eq!(at(&["192.0.2.1:1"]).as_deref(), Some("http://192.0.2.1:1"));
        assert_eq!(at(&[]), None);
    }
}
