//! Why a file of apk's cannot be read.

use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::Over;

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// It is not of the form that it should have.
    #[error("{0}")]
    Form(String),
    /// It is more than larder reads.
    #[error("{0}")]
    Over(#[from] Over),
}

impl Broken {
    /// It is not of the form that it should have, because of `what`.
    pub(super) fn form(what: impl Into<String>) -> Self {
        Self::Form(what.into())
    }

    /// The same for whoever expected `expected`.
    pub(super) fn malformed(self, expected: &'static str) -> Malformed {
        match self {
            Self::Form(found) => Malformed::Shape { expected, found },
            Self::Over(over) => over.into(),
        }
    }
}
