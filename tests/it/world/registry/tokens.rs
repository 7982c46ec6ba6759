//! A token service as registries use them: a challenge names it, it issues short-lived JSON web tokens, and the registry trusts
//! tokens that its certificate verifies (Docker's token authentication specification; RFC 7515, RFC 7518 §3.4).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Response};
use larder::clock::Clock;
use rcgen::{CertificateParams, DnType, KeyPair};

use crate::world::page::whole;
use crate::world::registry::NAME;
use crate::world::{Ca, Origin};

/// Its host name.
const REALM: &str = "token.example.org";
const SERVICE: &str = "gears";
const ISSUER: &str = "the test's tokens";

/// The user and password of the owner, who may do everything.
pub(crate) const OWNER: (&str, &str) = ("owner", "planted-password");

/// A member, who may pull everything.
pub(crate) const MEMBER: (&str, &str) = ("member", "planted-second-password");

/// A guest, who has a login and no further right.
pub(crate) const GUEST: (&str, &str) = ("guest", "planted-third-password");

/// The prefix of repositories that everybody may pull. The others are for the owner and the members.
pub(crate) const PUBLIC: &str = "public/";

/// Signs rights to what a `scope` names (`repository:<name>:<actions>`).
#[derive(Clone)]
struct Signer {
    key: Arc<EcdsaKeyPair>,
    certificate: String,
    count: Arc<AtomicU64>,
}

/// A running token service.
pub(crate) struct Tokens {
    /// The host that its clients use.
    pub(crate) front: Origin,
    bundle: PathBuf,
    signer: Signer,
}

impl Tokens {
    pub(super) async fn new(ca: &Ca, dir: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, ISSUER);
        let certificate = params.self_signed(&key).unwrap();
        let bundle = dir.join("tokens.pem");
        std::fs::write(&bundle, certificate.pem()).unwrap();
        let der = key.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
        let signer = Signer {
            key: Arc::new(key),
            certificate: base64(certificate.der(), STANDARD, true),
            count: Arc::default(),
        };
        let front = Origin::named(ca, REALM).await;
        let giving = signer.clone();
        front.otherwise(move |request| {
            let giving = giving.clone();
            async move {
                let said = Said::of(request).await;
                let body = match said.who() {
                    Ok(who) => {
                        let token = giving.token(&said.scopes(), who);
                        format!(r#"{{"{}":"{token}","expires_in":300}}"#, said.answered_as)
                    }
                    Err(()) => String::from(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#),
                };
                let status = if said.who().is_ok() { 200 } else { 401 };
                let answer = Response::builder().status(status);
                answer.header("content-type", "application/json").body(whole(body)).unwrap()
            }
        });
        Self { front, bundle, signer }
    }

    /// The registry's settings that make it trust the tokens.
    pub(super) fn settings(&self) -> String {
        let bundle = self.bundle.display();
        format!(
            "auth:\n  token:\n    realm: https://{REALM}/token\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
             rootcertbundle: {bundle}\n"
        )
    }

    /// A token to pull from `repository`, as the service would issue it to `who`, as a value of `Authorization`.
    pub(crate) fn bearer(&self, repository: &str, who: Option<(&str, &str)>) -> String {
        let scope = format!("repository:{repository}:pull");
        format!("Bearer {}", self.signer.token(&[&scope], who))
    }

    /// How many tokens were issued over the network.
    pub(crate) fn given(&self) -> usize {
        self.front.total()
    }
}

/// A client's request to the service: a GET with its login in a header field (the registry's token protocol), or a POST with its
/// login in the body (OAuth 2), as containerd sends it.
struct Said {
    /// `name=value`, decoded.
    pairs: Vec<String>,
    authorization: Option<String>,
    /// The name of the token in the answer.
    answered_as: &'static str,
}

impl Said {
    async fn of(request: Request<Incoming>) -> Self {
        let authorization = request.headers().get(AUTHORIZATION);
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        let (text, answered_as) = if request.method() == Method::POST {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            (String::from_utf8(body.to_vec()).unwrap(), "access_token")
        } else {
            (request.uri().query().unwrap_or_default().to_owned(), "token")
        };
        let decoded = |pair: &str| {
            let pair = pair.replace('+', " ").replace("%20", " ");
            pair.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")
        };
        let pairs = text.split('&').map(decoded).collect();
        Self { pairs, authorization, answered_as }
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    fn scopes(&self) -> Vec<&str> {
        self.all("scope").flat_map(|scopes| scopes.split(' ')).collect()
    }

    /// The user whose login the request has, if it has one; an error if the login is wrong.
    fn who(&self) -> Result<Option<(&'static str, &'static str)>, ()> {
        let shown = match (&self.authorization, self.all("username").next()) {
            (Some(value), _) => value.clone(),
            (None, Some(user)) => {
                let password = self.all("password").next().unwrap_or_default();
                format!("Basic {}", basic((user, password)))
            }
            (None, None) => return Ok(None),
        };
        let known = [OWNER, MEMBER, GUEST].into_iter();
        known
            .map(Some)
            .find(|who| who.is_some_and(|who| shown == format!("Basic {}", basic(who))))
            .ok_or(())
    }
}

/// User and password as a value of `Authorization`.
pub(crate) fn basic((user, password): (&str, &str)) -> String {
    base64(format!("{user}:{password}").as_bytes(), STANDARD, true)
}

impl Signer {
    /// A token. No two tokens are the same.
    fn token(&self, scopes: &[&str], who: Option<(&str, &str)>) -> String {
        let mut access = String::new();
        for scope in scopes {
            let mut parts = scope.splitn(3, ':');
            let (kind, name) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            let wanted = parts.next().unwrap_or_default();
            let granted: Vec<String> = wanted
                .split(',')
                .filter(|action| {
                    let pulls = who == Some(MEMBER) || name.starts_with(PUBLIC);
                    who == Some(OWNER) || *action == "pull" && pulls
                })
                .map(|action| format!("\"{action}\""))
                .collect();
            let comma = if access.is_empty() { "" } else { "," };
            let granted = granted.join(",");
            write!(access, r#"{comma}{{"type":"{kind}","name":"{name}","actions":[{granted}]}}"#)
                .unwrap();
        }
        let now = Clock::system().now().as_millis() / 1000;
        let (from, until) = (now - 60, now + 3600);
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let header = format!(r#"{{"typ":"JWT","alg":"ES256","x5c":["{}"]}}"#, self.certificate);
        let claims = format!(
            r#"{{"iss":"{ISSUER}","sub":"{NAME}","aud":"{SERVICE}","exp":{until},"nbf":{from},"iat":{from},"jti":"{number}","access":[{access}]}}"#
        );
        let part = |text: &str| base64(text.as_bytes(), URL, false);
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature.as_ref(), URL, false))
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// RFC 4648 §4 and §5.
fn base64(bytes: &[u8], alphabet: &[u8; 64], padded: bool) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            let six = usize::try_from(word >> (18 - 6 * at) & 63).unwrap();
            text.push(char::from(alphabet[six]));
        }
        text.push_str(if padded { &"=="[..3 - three.len()] } else { "" });
    }
    text
}
