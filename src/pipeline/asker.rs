//! For whom something is asked: anybody, or whoever shows a credential.

use std::sync::Arc;

use crate::target::{Credential, Partition};

/// For whom something is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    credential: Option<Arc<Credential>>,
    reader: Partition,
    /// The credential is larder's own, and the client has shown none.
    larders: bool,
}

impl Asker {
    /// Who shows nothing.
    pub(super) const ANYBODY: Self =
        Self { credential: None, reader: Partition::Public, larders: false };

    /// Who shows `credential`, known by the keyed hash that `secret` makes of it; anybody, if there is none.
    pub(super) fn new(credential: Option<Credential>, secret: &[u8; 32]) -> Self {
        let reader =
            credential.as_ref().map(|credential| Partition::Private(credential.id(secret)));
        Self {
            credential: credential.map(Arc::new),
            reader: reader.unwrap_or_default(),
            larders: false,
        }
    }

    /// Who shows nothing, where the operator gave larder a login of its own: everyone who may use this larder reads what
    /// that login opens, so they are all one asker.
    pub(super) fn larders(login: Arc<Credential>, secret: &[u8; 32]) -> Self {
        let reader = Partition::Private(login.id(secret));
        Self { credential: Some(login), reader, larders: true }
    }

    /// Whether the credential is larder's own.
    pub(super) fn is_larders(&self) -> bool {
        self.larders
    }

    /// What is shown to the origin.
    pub(super) fn credential(&self) -> Option<&Arc<Credential>> {
        self.credential.as_ref()
    }

    /// Whose private entries and claims it sees, besides the public ones.
    pub(super) fn reader(&self) -> Partition {
        self.reader
    }

    /// Whether it shows a credential.
    pub(super) fn is_private(&self) -> bool {
        self.credential.is_some()
    }

    /// Whether a token stands in the URL: then nobody, larder neither, could ask for the same without it.
    pub(super) fn is_in_url(&self) -> bool {
        self.credential.as_ref().is_some_and(|credential| credential.is_in_url())
    }
}
