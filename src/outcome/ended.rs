//! A request that ended: counted, written to the log, and remembered if it did not end well. Everything that ends a request,
//! or a tunnel, or refuses one, writes it down here, so that all lines have the same fields.

use std::net::IpAddr;
use std::time::Duration;

use super::Outcome;
use super::job::Job;
use super::metrics::{Direction, Metrics};
use super::recent::{self, Event};
use crate::proof::Proof;

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// Its method, clipped.
    pub method: &'a str,
    /// Its URL, secrets replaced; host and port where no more is known.
    pub url: &'a str,
    /// The host that it was for; empty if it named none.
    pub host: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in words, where the outcome does not say it all.
    pub why: Option<&'a str>,
    /// What vouches for the body.
    pub proof: Option<Proof>,
    /// The name of the ecosystem that recognised it, or empty.
    pub ecosystem: &'static str,
    /// The status that the client was given.
    pub status: u16,
    /// Bytes of the body that the client was given.
    pub bytes: u64,
    /// Bytes of bodies that origins sent for this request, a fill's that it began among them.
    pub fetched: u64,
    /// How long it took.
    pub took: Duration,
    /// How much longer the origin had taken.
    pub saved: Duration,
    /// Whether the client was cut off.
    pub cut: bool,
    /// The client.
    pub client: IpAddr,
    /// The number of its connection, where it has one.
    pub connection: Option<u64>,
    /// Whether everybody may ask for this: neither a credential nor a secret in the URL.
    pub public: bool,
    /// Of a tunnel: bytes that the client sent, and how it ended.
    pub tunnel: Option<(u64, &'a str)>,
    /// The job that it belongs to.
    pub job: Option<&'a Job>,
}

impl<'a> Ended<'a> {
    /// One of which nothing else is known.
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

    /// Counts it, and writes it to the log.
    pub fn write_down(&self, metrics: &Metrics) {
        metrics.ended(self.outcome, self.proof, self.ecosystem);
        metrics.bytes(Direction::ToClient, self.bytes);
        match self.outcome {
            Outcome::Hit | Outcome::Revalidated | Outcome::Stale => {
                metrics.bytes(Direction::FromStore, self.bytes);
            }
            Outcome::Pass(_) | Outcome::Tunnel => metrics.bytes(Direction::FromOrigin, self.bytes),
            // What fills bring is counted where it arrives.
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
            job.ended(self);
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

    /// One line. Its fields are alike for all requests; the form for people shows method and URL first, without their names.
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
