//! The larder against which clients are examined. It is queried over HTTP, as any client can, and without a proxy
//! between.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use crate::cli::remote::get;
use crate::clock::Time;
use crate::outcome::witness::Sight;

/// The longest answer that is read: any program may listen at the address.
const MAX_ANSWER: usize = 1024 * 1024;

/// A larder that answered.
#[derive(Clone, Debug)]
pub(super) struct Larder {
    /// `http://HOST:PORT`.
    pub(super) proxy: String,
    /// The CAs that clients must trust.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// When the last of them expired, if all have.
    pub(super) expired: Option<Time>,
    /// The SHA-256 of its set-up script, in hexadecimal digits.
    pub(super) setup: String,
}

impl Larder {
    /// Fetches the CA and the set-up script of the larder at `proxy`.
    pub(super) fn at(proxy: &str, now: Time) -> Result<Self, String> {
        let pem = get(proxy, "/ca.crt", MAX_ANSWER)?;
        let blocks = pem::parse_many(&pem).map_err(|error| format!("{proxy}/ca.crt: {error}"))?;
        let roots: Vec<_> =
            blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
        if roots.is_empty() {
            return Err(format!("{proxy} answers, but is no larder: it has no CA at /ca.crt"));
        }
        let script = get(proxy, "/setup", MAX_ANSWER)?;
        let setup = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &script);
        Ok(Self {
            proxy: proxy.to_owned(),
            expired: expired(&roots, now),
            roots,
            setup: crate::digest::hex(setup.as_ref()),
        })
    }

    /// A larder of which only the address is known.
    #[cfg(test)]
    pub(super) fn named(proxy: &str) -> Self {
        Self { proxy: proxy.to_owned(), roots: Vec::new(), expired: None, setup: String::new() }
    }

    /// The SHA-256 of the CA, as `larder ca show` prints it.
    pub(super) fn fingerprint(&self) -> String {
        self.roots.first().map(|root| crate::authority::fingerprint(root)).unwrap_or_default()
    }

    /// What larder saw of a probe.
    pub(super) fn saw(&self, token: &str) -> Result<Vec<Sight>, String> {
        let body = get(&self.proxy, &format!("/-/probe/{token}"), MAX_ANSWER)?;
        serde_json::from_slice(&body).map_err(|error| {
            format!(
                "{} is a larder of another version, which does not support probes ({error})",
                self.proxy
            )
        })
    }
}

/// When the last of these certificates expired, if all have.
fn expired(roots: &[CertificateDer<'_>], now: Time) -> Option<Time> {
    let ends = roots.iter().filter_map(|root| {
        let (_, certificate) = x509_parser::parse_x509_certificate(root).ok()?;
        Some(Time::from(SystemTime::from(certificate.validity().not_after.to_datetime())))
    });
    ends.max().filter(|end| *end <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_has_expired_when_none_is_left() {
        let certificate = |days: i64| {
            let mut params = rcgen::CertificateParams::default();
            params.not_before = time::OffsetDateTime::UNIX_EPOCH;
            params.not_after = params.not_before + time::Duration::days(days);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let day = |count: i64| Time::from_millis(count * 86_400_000);
        let (early, late) = (certificate(10), certificate(20));
        assert_eq!(expired(&[early.clone(), late.clone()], day(15)), None);
        assert_eq!(expired(&[early, late], day(25)), Some(day(20)));
        assert_eq!(expired(&[], day(25)), None);
    }
}
