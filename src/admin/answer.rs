//! Answers a [`Question`]. Everything here may block: it walks the store.

use std::ops::ControlFlow;
use std::time::Duration;

use super::named::Named;
use super::question::entry::Listed;
use super::question::{Answer, Checked, Question, Removed, Selection, Stats, Status};
use super::{Admin, ca_file, question, why};
use crate::entry::Entry;
use crate::target::{Partition, secret};

/// Receives answers one by one; a break means that the client is gone.
type Listener<'a> = &'a mut dyn FnMut(Answer) -> ControlFlow<()>;

impl Admin {
    /// Answers `question`, with as many answers as there are. Blocking.
    pub fn answer(&self, question: &Question, listener: Listener<'_>) {
        let only = match question {
            Question::Status => self.status(),
            Question::Config => return self.settings(listener),
            Question::Totals => self.totals(),
            Question::Stats => Answer::Stats(Box::new(self.stats(false))),
            Question::Why { url } => self.why(url),
            Question::Recent => return self.recent(listener),
            Question::Tally { token } => self.tally(token),
            Question::Entries { matching } => return self.entries(matching, listener),
            Question::Remove(selection) => self.remove(selection),
            Question::Verify => self.verify(listener),
            Question::Ca(question) => return self.answer_ca(question, listener),
            Question::Keys(question) => return self.answer_keys(question, listener),
            // The guard that these questions ask for lives as long as a connection; `socket` handles them.
            Question::Stay | Question::Job { .. } => nothing_runs(),
        };
        // Nothing follows the last answer, so it does not matter if the client is gone.
        let _heard = listener(only);
    }

    fn status(&self) -> Answer {
        let Some(running) = &self.running else {
            return nothing_runs();
        };
        let data = self.config.get().data.clone();
        Answer::Status(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            listening: running.listening().to_vec(),
            ca_file: ca_file(&data),
            data,
            ca_pem: running.authority.ca_pem(),
            ca_sha256: running.authority.fingerprint_sha256(),
            started: running.started,
        })
    }

    fn settings(&self, listener: Listener<'_>) {
        let Some(running) = &self.running else {
            let _heard = listener(nothing_runs());
            return;
        };
        let noted = running.settings.load();
        // A larder embedded in another program was given its configuration directly.
        let given = || question::given(&self.config.get());
        let settings = if noted.is_empty() { given() } else { noted.to_vec() };
        for setting in &settings {
            if listener(Answer::Setting(setting.clone())).is_break() {
                return;
            }
        }
    }

    fn totals(&self) -> Answer {
        match &self.running {
            Some(running) => Answer::Totals(running.metrics.totals()),
            None => nothing_runs(),
        }
    }

    fn recent(&self, listener: Listener<'_>) {
        let Some(running) = &self.running else {
            let _heard = listener(nothing_runs());
            return;
        };
        for event in running.metrics.recent.failures() {
            if listener(Answer::Event(Box::new(event))).is_break() {
                return;
            }
        }
    }

    fn tally(&self, token: &str) -> Answer {
        let known = self.running.as_ref().and_then(|running| running.metrics.jobs.known(token));
        match known {
            Some(job) => Answer::Tally(Box::new(job.tally())),
            None => Answer::Failed("this larder knows no such job".to_owned()),
        }
    }

    /// `public`: counts public entries only.
    pub(super) fn stats(&self, public: bool) -> Stats {
        let usage = self.store.usage();
        let mut stats = Stats {
            indexes: usage.indexes,
            blob_bytes: usage.bytes,
            spool_bytes: usage.spool_bytes,
            claims_bytes: usage.claims_bytes,
            max_size: usage.cap,
            totals: self.running.as_ref().map(|running| running.metrics.totals()),
            ..Stats::default()
        };
        self.store.for_each_entry(&mut |entry| {
            if public && entry.partition != Partition::Public {
                return ControlFlow::Continue(());
            }
            stats.all.add(entry.size);
            let rank = entry.proof.rank.as_str().to_owned();
            stats.proofs.entry(rank).or_default().add(entry.size);
            stats.ecosystems.entry(entry.ecosystem.clone()).or_default().add(entry.size);
            ControlFlow::Continue(())
        });
        stats
    }

    fn why(&self, url: &str) -> Answer {
        match Named::of(url) {
            Some(Named::Whole(target)) => {
                let mut explained = why::explain(&self.store, &target, self.clock.now());
                if let Some(running) = &self.running {
                    explained.recent = running.metrics.recent.of(&explained.url);
                }
                Answer::Why(Box::new(explained))
            }
            Some(Named::Shown(shown)) => Answer::Failed(format!(
                "{shown} has values hidden, and larder does not keep them: give the URL as a client asks for it"
            )),
            None => Answer::Failed(format!(
                "{} is not a URL that larder could serve: it needs http:// or https://, a host, and a path \
                 without dot segments",
                secret::shown(url)
            )),
        }
    }

    fn entries(&self, matching: &str, listener: Listener<'_>) {
        self.store.for_each_entry(&mut |entry| {
            if entry.shown.contains(matching) {
                listener(Answer::Entry(Box::new(Listed::from(entry))))
            } else {
                ControlFlow::Continue(())
            }
        });
    }

    fn remove(&self, selection: &Selection) -> Answer {
        let now = self.clock.now();
        let named = match selection {
            Selection::Url(url) => match Named::of(url) {
                Some(named) => Some(named),
                None => {
                    return Answer::Failed(format!(
                        "{} is not the URL of an entry; `larder ls` shows them",
                        secret::shown(url)
                    ));
                }
            },
            Selection::All | Selection::Older { .. } => None,
        };
        let secret = self.store.secret();
        let selected = |entry: &Entry| match selection {
            Selection::All => true,
            Selection::Url(_) => named.as_ref().is_some_and(|named| named.is(entry, &secret)),
            Selection::Older { seconds } => {
                now.since(entry.received_at) > Duration::from_secs(*seconds)
            }
        };
        // Collected first: the store must not be changed while it is walked.
        let mut found = Vec::new();
        self.store.for_each_entry(&mut |entry| {
            if selected(entry) {
                found.push(entry.clone());
            }
            ControlFlow::Continue(())
        });
        let mut removed = Removed::default();
        for entry in found {
            match self.store.remove(&entry) {
                Ok(()) => removed.share.add(entry.size),
                Err(error) => removed.failed.push(format!("{}: {error}", entry.shown)),
            }
        }
        Answer::Removed(removed)
    }

    fn verify(&self, listener: Listener<'_>) -> Answer {
        let found = self.store.verify_all(&mut |done, total| {
            // The check goes on without a listener: damaged blobs must be taken out of use in any case.
            let _heard = listener(Answer::Progress { done, total });
        });
        Answer::Checked(Checked {
            sound: found.sound,
            damaged: found.damaged.iter().map(ToString::to_string).collect(),
            gone: found.gone,
            unread: found.unread,
        })
    }
}

fn nothing_runs() -> Answer {
    Answer::Failed(
        "no larder serves from this data directory; `larder serve` starts one".to_owned(),
    )
}
