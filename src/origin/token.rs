//! larder's own anonymous tokens: how it finds out what a registry gives to any client.
//!
//! A registry with a token service serves nothing without a token, and issues a token to any client. Its answer to such
//! a token is public (DESIGN §4); a client's own token proves nothing of the kind. larder uses its own tokens only for
//! this check and never for a fill, so that a registry's rate limits count the client that caused the request.
//!
//! The registry names the realm, so the realm is guarded like a redirect: after a public hop no internal address is
//! reachable, and the operator's rules on hosts and ports apply. A token is cached per challenge until it expires, and
//! requests for the same token are serialised.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use moka::sync::Cache;
use serde::Deserialize;

use super::challenge::Challenge;
use super::error::{Fault, OriginError};
use super::redirect::permitted;
use super::{Answer, Ask, Lane, Origins, Reach};
use crate::clock::Time;
use crate::target::{Partition, Target};

/// Lifetime of a token without `expires_in`, and the minimum lifetime (Docker's token specification).
const LEAST: Duration = Duration::from_mins(1);
/// Maximum time that a token is used, whatever its lifetime: the access right may end sooner.
const LONGEST: Duration = Duration::from_hours(1);
/// A token is not used this shortly before it expires, because it could expire in transit.
const EARLY: Duration = Duration::from_secs(10);
/// Maximum number of cached tokens. Each is for one repository.
const TOKENS: u64 = 1024;
/// Maximum length of a token service's answer, in bytes. Tokens have one to ten KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// A token that larder got without any credential. Never shown in text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// The value of `Authorization`.
    pub fn authorization(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The cached tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    known: Cache<Challenge, (Token, Time)>,
    /// One lock per challenge, held while its token is requested: the layers of one image need one token.
    asking: Cache<Challenge, Arc<tokio::sync::Mutex<()>>>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            // Also expires by a monotonic clock, which cannot be set back.
            known: Cache::builder().max_capacity(TOKENS).time_to_live(LONGEST).build(),
            asking: Cache::builder().max_capacity(TOKENS).time_to_idle(LEAST).build(),
        }
    }
}

/// A token service's answer.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Origins {
    /// Sends a canonical request as an anonymous client. If the origin challenges it, repeats it with an anonymous
    /// token. The flag tells whether a token was used. A successful answer is public; if the token service fails,
    /// whether it is public is unknown. Not for fills: the origin would count them against larder.
    pub async fn fetch_as_anybody(&self, ask: Ask) -> Result<(Answer, bool), OriginError> {
        let first = self.fetch(Ask { token: None, ..ask.clone() }).await?;
        let Some(challenge) = Challenge::of(&first.head).filter(|_| !first.plain) else {
            return Ok((first, false));
        };
        let from_public = ask.reach.from_public || first.public;
        let reach = Reach { from_public, ..ask.reach };
        match self.anonymous_token(&challenge, reach).await {
            Ok(token) => Ok((self.fetch(Ask { token: Some(token), ..ask }).await?, true)),
            Err(error) if error.is_temporary() => Err(error),
            // The service issues no anonymous token.
            Err(_) => Ok((first, false)),
        }
    }

    /// An anonymous token from the service of `challenge`. `reach` is that of the challenged request.
    pub async fn anonymous_token(
        &self,
        challenge: &Challenge,
        reach: Reach,
    ) -> Result<Token, OriginError> {
        if let Some(token) = self.token_at_hand(challenge) {
            return Ok(token);
        }
        let lock = self.tokens.asking.get_with_by_ref(challenge, Arc::default);
        let _alone = lock.lock().await;
        match self.token_at_hand(challenge) {
            Some(token) => Ok(token),
            None => self.ask_for_token(challenge, reach).await,
        }
    }

    fn token_at_hand(&self, challenge: &Challenge) -> Option<Token> {
        let (token, until) = self.tokens.known.get(challenge)?;
        (self.clock.now() < until).then_some(token)
    }

    async fn ask_for_token(
        &self,
        challenge: &Challenge,
        reach: Reach,
    ) -> Result<Token, OriginError> {
        let realm = challenge.realm();
        let failed = |fault| OriginError::new(realm, fault);
        permitted(realm, &self.config.get().hosts).map_err(failed)?;
        let target = challenge
            .request()
            .ok_or_else(|| failed(Fault::Unsendable("the challenge names no token".into())))?;
        let asked = self.clock.now();
        let given = self.given(ask_for(target, reach)).await;
        match &given {
            Ok(_) => self.note_success(realm.origin(), Partition::Public, Lane::Metadata),
            Err(error) if error.is_temporary() => {
                self.note_failure(realm.origin(), Partition::Public, Lane::Metadata, None);
            }
            Err(_) => {}
        }
        let given = given?;
        let text = given.token.or(given.access_token).unwrap_or_default();
        let value = HeaderValue::try_from(format!("Bearer {text}")).ok();
        let mut value = value
            .filter(|_| !text.is_empty())
            .ok_or_else(|| failed(Fault::NoToken("nothing that a header can carry".into())))?;
        value.set_sensitive(true);
        let token = Token(value);
        let holds = given.expires_in.map_or(LEAST, Duration::from_secs).clamp(LEAST, LONGEST);
        let until = asked.plus(holds.saturating_sub(EARLY));
        self.tokens.known.insert(challenge.clone(), (token.clone(), until));
        Ok(token)
    }

    async fn given(&self, ask: Ask) -> Result<TokenAnswer, OriginError> {
        let realm = ask.target.clone();
        let failed = |fault| OriginError::new(&realm, fault);
        let mut answer = self.fetch(ask).await?;
        let status = answer.head.status;
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(failed(Fault::Unanswered(status.to_string().into())));
        }
        if status != StatusCode::OK || answer.plain {
            return Err(failed(Fault::NoToken(status.to_string().into())));
        }
        let mut text = BytesMut::new();
        while let Some(piece) = answer.body.next().await {
            text.extend_from_slice(&piece?);
            if text.len() > MAX_ANSWER {
                let why = format!("an answer of more than {MAX_ANSWER} bytes");
                return Err(failed(Fault::NoToken(why.into())));
            }
        }
        // The error's own text may quote the token.
        let unread = |_| failed(Fault::NoToken("an answer that larder cannot read".into()));
        serde_json::from_slice(&text).map_err(unread)
    }
}

/// A token request as an anonymous client would send it.
fn ask_for(target: Target, reach: Reach) -> Ask {
    Ask { accept: String::new(), follow: true, ..Ask::plain(target, reach) }
}
