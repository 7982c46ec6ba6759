//! Queries the running larder, or opens the store itself if none is running.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::remote::{self, Elsewhere};
use super::{Invocation, owner};
use crate::admin::ask::{Served, serving};
use crate::admin::{self, Admin, Answer, Question};
use crate::authority::Authority;
use crate::clock::Clock;
use crate::config::Live;
use crate::config::load::{Loaded, Source};
use crate::store::Store;
use crate::target::shown;

/// The CA, as the commands that hand it out need it.
pub(super) struct KnownCa {
    pub(super) file: std::path::PathBuf,
    pub(super) pem: String,
}

impl Invocation {
    /// The larder that serves from the data directory, if there is one.
    pub(super) fn served(&self) -> anyhow::Result<Option<Served>> {
        let data = &self.loaded.config.data;
        serving(data).map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let why = if denied {
                "it runs as another user, and only that user and root can ask it"
            } else {
                "it does not answer"
            };
            anyhow::Error::from(error)
                .context(format!("a larder serves from {}, but {why}", data.display()))
        })
    }

    /// Asks `question` of the larder named by `elsewhere`, or of the local one, and passes each answer and the output
    /// to `each`.
    pub(super) fn ask_at(
        &mut self,
        elsewhere: &Elsewhere,
        question: &Question,
        mut each: impl FnMut(&mut dyn Write, Answer) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(proxy) = elsewhere.named(self)? else {
            return self.ask(question, each);
        };
        for answer in remote::ask(&proxy, question)? {
            if let Answer::Failed(why) = answer {
                bail!(shown::one_line(&why).into_owned());
            }
            each(&mut self.out, answer)?;
        }
        Ok(())
    }

    /// Asks `question` of the local larder, and passes each answer and the output to `each`.
    pub(super) fn ask(
        &mut self,
        question: &Question,
        mut each: impl FnMut(&mut dyn Write, Answer) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let served = self.served()?;
        if served.is_none() {
            self.must_be_stored(question)?;
        }
        let out = &mut self.out;
        let mut hear = |answer| match answer {
            Answer::Failed(why) => bail!(shown::one_line(&why).into_owned()),
            Answer::Status(_)
            | Answer::Setting(_)
            | Answer::Totals(_)
            | Answer::Stats(_)
            | Answer::Why(_)
            | Answer::Event(_)
            | Answer::Doorway(_)
            | Answer::Tally(_)
            | Answer::Entry(_)
            | Answer::Removed(_)
            | Answer::Progress { .. }
            | Answer::Checked(_)
            | Answer::Anchor(_)
            | Answer::Key(_)
            | Answer::Rebound(_)
            | Answer::Staying => each(out, answer),
        };
        if let Some(served) = served {
            return served.ask(question, hear);
        }
        let admin = Admin {
            config: Live::new(self.loaded.config.clone()),
            clock: self.clock.clone(),
            store: open_store(&self.loaded, &self.clock)?,
            running: None,
        };
        let mut heard = Ok(());
        admin.answer(question, &mut |answer| {
            heard = hear(answer);
            if heard.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        heard
    }

    /// A query creates no store: a user who named the wrong data directory gets an error.
    fn must_be_stored(&self, question: &Question) -> anyhow::Result<()> {
        let data = &self.loaded.config.data;
        // Keys can be added before the first start.
        let makes_one = matches!(question, Question::Keys(_) | Question::Ca(_));
        if makes_one || admin::is_there(data) {
            return Ok(());
        }
        bail!(
            "no larder has stored anything in {}: `larder serve` and `larder exec` do; --data names another directory, and \
             --proxy another larder",
            data.display()
        )
    }

    /// Whether the data directory was set by a flag, a variable or the configuration.
    pub(super) fn data_is_given(&self) -> bool {
        let mut sources = self.loaded.sources.iter();
        sources.any(|(key, source)| key.name == "data" && *source != Source::Default)
    }

    /// The CA of the running larder, or the one in the data directory; it is made if there is none.
    pub(super) fn ca(&self) -> anyhow::Result<KnownCa> {
        if let Some(served) = self.served()? {
            let status = served.status().context("cannot ask the running larder")?;
            return Ok(KnownCa { file: status.ca_file, pem: status.ca_pem });
        }
        let data = &self.loaded.config.data;
        // Making a CA requires the lock on the data directory: if two processes each made one, clients could be left
        // with a CA that signs nothing. An existing CA is only read, without the lock.
        let _held = if admin::ca_file(data).exists() {
            None
        } else {
            Some(open_store(&self.loaded, &self.clock)?)
        };
        let authority = Authority::limited(
            &admin::state_dir(data),
            &self.loaded.config.ca_permitted(),
            &self.clock,
        )?;
        Ok(KnownCa { file: admin::ca_file(data), pem: authority.ca_pem() })
    }
}

/// The store of a data directory from which no larder serves.
fn open_store(loaded: &Loaded, clock: &Clock) -> anyhow::Result<Arc<Store>> {
    owner::check(&loaded.config.data)?;
    Ok(Store::open(Live::new(loaded.config.clone()), clock.clone())?)
}

/// Writes a line of JSON. The output may be a terminal, and the line may contain text that clients or origins chose.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", shown::json(&serde_json::to_string(value)?))?)
}
