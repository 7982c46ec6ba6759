//! CA rotation: `larder ca rotate` and `import`, for a larder that serves or for a data directory that no larder
//! uses.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::question::Answer;
use super::question::ca::CaQuestion;
use super::{Admin, state_dir};
use crate::authority::{Authority, AuthorityError};

impl Admin {
    /// Answers a question about the CA. Blocking.
    pub(super) fn answer_ca(
        &self,
        question: &CaQuestion,
        listener: &mut dyn FnMut(Answer) -> ControlFlow<()>,
    ) {
        let answers = match self.change_ca(question) {
            Ok(authority) => authority.all().into_iter().map(Answer::Anchor).collect(),
            Err(error) => vec![Answer::Failed(error.to_string())],
        };
        for answer in answers {
            if listener(answer).is_break() {
                return;
            }
        }
    }

    fn change_ca(&self, question: &CaQuestion) -> Result<Arc<Authority>, AuthorityError> {
        let authority = if let Some(running) = &self.running {
            Arc::clone(&running.authority)
        } else {
            let config = self.config.get();
            Authority::limited(&state_dir(&config.data), &config.ca_permitted(), &self.clock)?
        };
        match question {
            CaQuestion::Show => {}
            CaQuestion::Rotate { overlap } => authority.rotate(Duration::from_secs(*overlap))?,
            CaQuestion::Import { certificate, key, overlap } => {
                authority.import(certificate, key, Duration::from_secs(*overlap))?;
            }
            CaQuestion::Finish => authority.finish()?,
        }
        Ok(authority)
    }
}
