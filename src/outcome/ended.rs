//! The end of a request. It is counted, logged, and recorded as an event if it failed. Every piece of code that ends
//! or refuses a request or a tunnel uses this, so that all log lines have the same fields.

use std::net::IpAddr;
use std::time::Duration;

use super::Outcome;
use super::job::{Job, LONGEST, NAMED, Named, TEXTS};
use super::metrics::Metrics;
use super::recent::{self, Event};
use super::totals::Direction;
use crate::proof::Proof;
use crate::target::shown::clipped;

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// Its method, clipped.
    pub method: &'a str,
    /// Its URL, secrets replaced; host and port if no more is known.
    pub url: &'a str,
    /// The host that it was for; empty if it named none.
    pub host: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// The reason, for people, if the outcome does not say everything.
    pub why: Option<&'a str>,
    /// The proof of the body.
    pub proof: Option<Proof>,
    /// The name of the ecosystem that recognised it, or empty.
    pub ecosystem: &'static str,
    /// The status that the client got.
    pub status: u16,
    /// Bytes of the body that the client got.
    pub bytes: u64,
    /// Bytes of bodies that origins sent for this request, including those for a fill that it began.
    pub fetched: u64,
    /// How long the request took.
    pub took: Duration,
    /// How much longer it would have taken to fetch the body from its origin.
    pub saved: Duration,
    /// Whether the answer to the client was cut off.
    pub cut: bool,
    /// The client.
    pub client: IpAddr,
    /// The number of its connection, if it has one.
    pub connection: Option<u64>,
    /// Whether the URL is public: the request had no credential, and the URL contains no secret.
    pub public: bool,
    /// For a tunnel: the bytes that the client sent, and how it ended.
    pub tunnel: Option<(u64, &'a str)>,
    /// The job that it belongs to.
    pub job: Option<&'a Job>,
}

impl<'a> Ended<'a> {
    /// An end of which nothing else is known.
    pub const fn new(outcome: Outcome, client: IpAddr, method: &'a str, url: &'a str) -> Self {
        Self {
            method,
            url,
            host: "",
            outcome,
            why: None,
            proof: None,
            ecosystem: "",
            status: 0,
            bytes: 0,
            fetched: 0,
            took: Duration::ZERO,
            saved: Duration::ZERO,
            cut: false,
            client,
            connection: None,
            public: false,
            tunnel: None,
            job: None,
        }
    }

    /// Counts the request for its job, and keeps its URL if it was refused or failed.
    fn count_in(&self, job: &Job) {
        let mut tally = job.lock();
        let totals = &mut tally.totals;
        totals.ended(self.outcome, self.proof);
        totals.bytes(Direction::ToClient, self.bytes);
        totals.bytes(Direction::FromOrigin, self.fetched);
        if self.outcome.is_hit() {
            totals.bytes(Direction::FromStore, self.bytes);
        }
        totals.saved(self.saved);
        let named = match self.outcome {
            Outcome::Rejected(_) | Outcome::Refused(_) => &tally.refused,
            Outcome::Failed(_) => &tally.failed,
            Outcome::Hit
            | Outcome::Revalidated
            | Outcome::Stale
            | Outcome::Miss
            | Outcome::Collapsed
            | Outcome::Pass(_)
            | Outcome::Tunnel
            | Outcome::Own => return,
        };
        let url = clipped(self.url, LONGEST);
        if named.len() >= NAMED || named.iter().any(|named| named.url == url) {
            return;
        }
        let new = Named {
            url: url.into_owned(),
            cause: self.outcome.reason().to_owned(),
            why: clipped(self.why.unwrap_or_default(), LONGEST).into_owned(),
        };
        if tally.texts() + new.texts() <= TEXTS {
            let refused = matches!(self.outcome, Outcome::Rejected(_) | Outcome::Refused(_));
            if refused { &mut tally.refused } else { &mut tally.failed }.push(new);
        }
    }

    /// Counts and logs the end of the request.
    pub fn write_down(&self, metrics: &Metrics) {
        metrics.ended(self.outcome, self.proof, self.ecosystem);
        metrics.bytes(Direction::ToClient, self.bytes);
        match self.outcome {
            Outcome::Hit | Outcome::Revalidated | Outcome::Stale => {
                metrics.bytes(Direction::FromStore, self.bytes);
            }
            Outcome::Pass(_) | Outcome::Tunnel => metrics.bytes(Direction::FromOrigin, self.bytes),
            // Bytes of fills are counted when they arrive.
            Outcome::Miss
            | Outcome::Collapsed
            | Outcome::Rejected(_)
            | Outcome::Refused(_)
            | Outcome::Failed(_)
            | Outcome::Own => {}
        }
        if !self.saved.is_zero() {
            metrics.saved(self.saved);
        }
        if let Some(job) = self.job {
            self.count_in(job);
        }
        self.log();
        if recent::is_told(self.outcome) {
            metrics.recent.note(Event {
                at: metrics.now(),
                kind: self.outcome.as_str().to_owned(),
                cause: self.outcome.reason().to_owned(),
                method: self.method.to_owned(),
                url: self.url.to_owned(),
                status: self.status,
                client: self.client.to_string(),
                why: self.why.unwrap_or_default().to_owned(),
                times: 1,
                public: self.public,
            });
        }
    }

    /// Writes one log line, with the same fields for all requests. The text format shows method and URL first,
    /// without field names.
    fn log(&self) {
        let proof = self.proof.map_or_else(|| "-".to_owned(), |proof| proof.to_string());
        tracing::info!(
            target: "larder::request",
            method = %self.method,
            url = %self.url,
            host = %self.host,
            outcome = %self.outcome,
            cause = %self.outcome.reason(),
            proof = %proof,
            status = self.status,
            bytes = self.bytes,
            sent = self.tunnel.map(|(sent, _)| sent),
            ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            cut = self.cut,
            client = %self.client,
            connection = self.connection,
            why = self.why.map(tracing::field::display),
            ended = self.tunnel.map(|(_, ended)| tracing::field::display(ended)),
        );
    }
}
