//! One command's job at the larder that it uses: the address for its clients, and the counters of their requests.
//! Other users of the same larder are not counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::team::Team;
use super::{Used, blocking};
use crate::Larder;
use crate::admin::ask::{Doorway, Served};
use crate::admin::{Answer, Question};
use crate::outcome::job::{Opened, TOKEN, Tally};

/// How many times the counters are read again before a result of no requests is accepted.
const NOTHING_AFTER: u32 = 10;
/// The time between two reads.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// A command's job at a larder.
pub(super) struct Job {
    token: String,
    /// The addresses to which its clients connect.
    pub(super) listening: Vec<SocketAddr>,
    place: Place,
}

enum Place {
    Own(Arc<Larder>, Opened),
    Served(Served, Doorway),
    Team(Team),
}

impl Job {
    /// Begins a job at the larder that the command uses.
    pub(super) async fn begin(used: &Used) -> anyhow::Result<Self> {
        let token = token()?;
        let (listening, place) = match used {
            Used::Own(own) => {
                let jobs = &own.larder.metrics().jobs;
                let opened = jobs.open(&token, &[own.address.ip()]).await?;
                (opened.listening.clone(), Place::Own(Arc::clone(&own.larder), opened))
            }
            Used::Found { served, .. } => {
                let (served, token) = (served.clone(), token.clone());
                let (served, doorway) =
                    blocking(move || Ok((served.clone(), served.job(&token)?))).await?;
                (doorway.listening.clone(), Place::Served(served, doorway))
            }
            Used::Team(team) => {
                let address = team.relay(&token).await?;
                (vec![address], Place::Team(team.clone()))
            }
        };
        Ok(Self { token, listening, place })
    }

    /// The job's counters. A request is counted when its body has ended, which may be a moment after the client has
    /// read the last byte and exited: a result of no requests is read again for a while.
    pub(super) async fn tally(&self) -> anyhow::Result<Tally> {
        let mut tries = 0;
        loop {
            let tally = self.counted().await?;
            tries += 1;
            if tally.totals.requests() > 0 || tries > NOTHING_AFTER {
                return Ok(tally);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    async fn counted(&self) -> anyhow::Result<Tally> {
        match &self.place {
            Place::Own(larder, _opened) => {
                let job = larder.metrics().jobs.known(&self.token);
                Ok(job.map(|job| job.tally()).unwrap_or_default())
            }
            Place::Served(served, _doorway) => {
                let (served, token) = (served.clone(), self.token.clone());
                blocking(move || {
                    let pick = |answer| {
                        if let Answer::Tally(tally) = answer { Some(*tally) } else { None }
                    };
                    Ok(served.only(&Question::Tally { token }, pick)?)
                })
                .await
            }
            Place::Team(team) => team.tally(&self.token).await,
        }
    }
}

/// 128 random bits. Only a program that knows them may read the job's counters.
fn token() -> anyhow::Result<String> {
    let mut bytes = [0; TOKEN / 2];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(crate::digest::hex(&bytes))
}
