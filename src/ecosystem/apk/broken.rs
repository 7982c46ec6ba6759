//! Why an apk file cannot be read.

use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::Over;

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// It does not have the expected form.
    #[error("{0}")]
    Form(String),
    /// It exceeds a limit.
    #[error("{0}")]
    Over(#[from] Over),
}

impl Broken {
    /// The error for a file that does not have the expected form because of `what`.
    pub(super) fn form(what: impl Into<String>) -> Self {
        Self::Form(what.into())
    }

    /// The error as [`Malformed`]; `expected` names the expected format.
    pub(super) fn malformed(self, expected: &'static str) -> Malformed {
        match self {
            Self::Form(found) => Malformed::Shape { expected, found },
            Self::Over(over) => over.into(),
        }
    }
}
