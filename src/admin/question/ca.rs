//! Questions about the CA.

use serde::{Deserialize, Serialize};

/// Questions about the CA. The answer is an [`Answer::Anchor`](super::Answer::Anchor) for each CA that is trusted afterwards.
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
