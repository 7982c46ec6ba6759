//! CA rotation: `larder ca rotate` and `import`, for a larder that serves or for a data directory that no larder
//! uses.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::question::Answer;
use super::{Admin, state_dir};
use crate::authority::{Authority, AuthorityError};

/// Questions about the CA. The answer is an [`Answer::Anchor`] for each CA that is trusted afterwards.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaQuestion {
    /// Lists the CAs.
    Show,
    /// Makes the next CA.
    Rotate {
        /// The number of seconds after which it starts to sign.
        overlap: u64,
    },
    /// Imports a CA that was made elsewhere.
    Import {
        /// Its certificate in PEM.
        certificate: String,
        /// Its key in PEM.
        key: String,
        /// The number of seconds after which it starts to sign.
        overlap: u64,
    },
    /// Drops the old CA.
    Finish,
}

/// Omits the key.
impl std::fmt::Debug for CaQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Show => "Show",
            Self::Rotate { .. } => "Rotate",
            Self::Import { .. } => "Import",
            Self::Finish => "Finish",
        })
    }
}

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
