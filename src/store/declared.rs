//! The pairs of an index and a file host that the operator declared: the index may speak for files on that host.

use std::sync::Arc;

use crate::config::Config;
use crate::digest::key_hash;
use crate::target::{Origin, Root, Target};

/// The declared pairs, and the configuration that they come from.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) config: Arc<Config>,
    pairs: Vec<(Root, Origin)>,
}

impl Declared {
    pub(super) fn of(config: Arc<Config>) -> Self {
        let pairs = config
            .speaks_for
            .iter()
            .filter_map(|pair| {
                let index = Target::from_url(&pair.index)?;
                let files = Target::from_url(&pair.files)?;
                Some((Root::directory_of(&index), files.origin().clone()))
            })
            .collect();
        Self { config, pairs }
    }

    /// Whether the operator lets `index` speak for files on `origin`.
    pub(super) fn lets(&self, index: &Target, origin: &Origin) -> bool {
        self.pairs.iter().any(|(root, files)| files == origin && root.covers(index))
    }

    /// A hash of the pairs, by which start-up notices that they changed.
    pub(super) fn mark(&self) -> [u8; 32] {
        key_hash([format!("{:?}", self.pairs).as_bytes()])
    }
}
