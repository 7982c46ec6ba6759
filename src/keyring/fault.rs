//! Why a file holds no keys, and why a signature does not count and whether that means tampering.

use super::{KINDS, MAX_FILE};
use crate::clock::Time;

/// Why a file is not a keyring. The texts tell what helps an operator find the right file.
#[derive(Debug, thiserror::Error)]
pub enum NotKeys {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is too long.
    #[error("it is longer than {MAX_FILE} bytes")]
    TooLong,
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It is in gpg's own format.
    #[error("it is a keybox; export the key with `gpg --export KEY > FILE.gpg`")]
    Keybox,
    /// It holds private keys.
    #[error(
        "it holds a private key, which larder neither needs nor should see; export the public half, for example with \
         `gpg --export KEY > FILE.gpg`"
    )]
    Private,
    /// It looks like a key of some kind, and this is what is wrong with it.
    #[error("{0}")]
    Unusable(String),
    /// A part of it is damaged.
    #[error("a part of it cannot be read: it may have been cut off")]
    Damaged,
    /// It holds no keys.
    #[error("it is not a file of public keys ({})", formats())]
    Other,
}

fn formats() -> String {
    KINDS.iter().map(|kind| kind.formats()).collect::<Vec<_>>().join("; ")
}

/// Why a document does not count as signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.say())]
pub struct NotSigned {
    /// One fault for each signature.
    pub faults: Vec<Fault>,
}

/// Why one signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// larder has no key that could have made it.
    #[error("the key {0} is not among larder's keys")]
    Unknown(Box<str>),
    /// No key has the name that the signature gives.
    #[error("no key is called {0} (`larder keys add` takes the file of that name)")]
    UnknownName(Box<str>),
    /// It is of a kind that larder does not accept.
    #[error("{0} signatures are not accepted")]
    Kind(&'static str),
    /// Its key has expired.
    #[error("its key expired on {0}")]
    Expired(Time),
    /// Its algorithm is broken, or its key is too short.
    #[error("its algorithm is too weak to count")]
    Weak,
    /// Its key was revoked.
    #[error("its key was revoked")]
    Revoked,
    /// The named key is known and strong, but did not sign this text.
    #[error("it is not a signature of this text")]
    Mismatch,
    /// Another reason.
    #[error("{0}")]
    Bad(Box<str>),
}

impl NotSigned {
    /// Whether a fault suggests tampering: an invalid signature, or one by a revoked key. A signature that is merely by
    /// an unknown key, expired or weak counts as no signature.
    pub fn is_forged(&self) -> bool {
        self.faults
            .iter()
            .any(|fault| matches!(fault, Fault::Mismatch | Fault::Bad(_) | Fault::Revoked))
    }

    /// Whether a known key that has expired since made a signature.
    pub fn is_expired(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Expired(_)))
    }

    /// The key names that the signatures give and for which larder has no key.
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
