//! What is wrong with a signature, and what that says of who made it.

use crate::clock::Time;

/// Why a document does not count as signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.say())]
pub struct NotSigned {
    /// What was found, one for each signature.
    pub faults: Vec<Fault>,
}

/// What is wrong with one signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No key is known that could have made it.
    #[error("the key {0} is not among larder's keys")]
    Unknown(Box<str>),
    /// No key has the name that it gives.
    #[error("no key is called {0} (`larder keys add` takes the file of that name)")]
    UnknownName(Box<str>),
    /// It is of a kind that is not taken.
    #[error("{0} signatures are not taken")]
    Kind(&'static str),
    /// Its key has expired.
    #[error("its key expired on {0}")]
    Expired(Time),
    /// Its algorithm is broken, or its key too short.
    #[error("its algorithm is too weak to count")]
    Weak,
    /// Its key was revoked.
    #[error("its key was revoked")]
    Revoked,
    /// A key that is known and strong did not make it over this text.
    #[error("it is not a signature of this text")]
    Mismatch,
    /// It does not count for another reason.
    #[error("{0}")]
    Bad(Box<str>),
}

impl NotSigned {
    /// Whether somebody may have meddled: a signature that does not hold, or by a key that its owner withdrew. What is
    /// merely unknown, expired or weak is as good as unsigned.
    pub fn is_forged(&self) -> bool {
        self.faults
            .iter()
            .any(|fault| matches!(fault, Fault::Mismatch | Fault::Bad(_) | Fault::Revoked))
    }

    /// Whether a known key made it that has expired since.
    pub fn is_expired(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Expired(_)))
    }

    /// What signatures call their makers whose keys are not known.
    pub fn unknown(&self) -> Vec<Box<str>> {
        let named = |fault: &Fault| match fault {
            Fault::Unknown(name) | Fault::UnknownName(name) => Some(name.clone()),
            Fault::Kind(_)
            | Fault::Expired(_)
            | Fault::Weak
            | Fault::Revoked
            | Fault::Mismatch
            | Fault::Bad(_) => None,
        };
        self.faults.iter().filter_map(named).collect()
    }

    fn say(&self) -> String {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        match faults.as_slice() {
            [] => "there is no signature".to_owned(),
            faults => format!("no signature counts: {}", faults.join("; ")),
        }
    }
}
