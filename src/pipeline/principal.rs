//! The principal of a request: anonymous, or the owner of a credential.

use std::sync::Arc;

use crate::target::{Credential, Partition};

/// The principal whose rights apply to a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Principal {
    credential: Option<Arc<Credential>>,
    reader: Partition,
    /// Whether the credential is the operator login, and the client sent none.
    operator_login: bool,
}

impl Principal {
    /// The anonymous principal.
    pub(super) const ANYBODY: Self =
        Self { credential: None, reader: Partition::Public, operator_login: false };

    /// The owner of `credential`, identified by a hash keyed with `secret`; the anonymous principal if there is no credential.
    pub(super) fn new(credential: Option<Credential>, secret: &[u8; 32]) -> Self {
        let reader =
            credential.as_ref().map(|credential| Partition::Private(credential.id(secret)));
        Self {
            credential: credential.map(Arc::new),
            reader: reader.unwrap_or_default(),
            operator_login: false,
        }
    }

    /// The principal of clients without a credential where the operator configured a login. Everybody who may use this larder can
    /// read what that login opens, so they are all one principal.
    pub(super) fn operator_login(login: Arc<Credential>, secret: &[u8; 32]) -> Self {
        let reader = Partition::Private(login.id(secret));
        Self { credential: Some(login), reader, operator_login: true }
    }

    /// Whether the credential is the operator login.
    pub(super) fn has_operator_login(&self) -> bool {
        self.operator_login
    }

    /// The credential that is sent to the origin.
    pub(super) fn credential(&self) -> Option<&Arc<Credential>> {
        self.credential.as_ref()
    }

    /// Whose private entries and claims this principal sees, besides the public ones.
    pub(super) fn reader(&self) -> Partition {
        self.reader
    }

    /// Whether this principal has a credential.
    pub(super) fn is_private(&self) -> bool {
        self.credential.is_some()
    }

    /// Whether the credential is a token in the URL. The target cannot then be requested without it, by larder or anybody else.
    pub(super) fn is_in_url(&self) -> bool {
        self.credential.as_ref().is_some_and(|credential| credential.is_in_url())
    }
}
