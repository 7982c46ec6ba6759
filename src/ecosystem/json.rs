//! Parses a JSON document as a stream: member by member, in memory that does not depend on the document.
//!
//! The parser reads the document through limits, and a serde seed takes the members that it needs and skips the rest.
//! serde's errors carry only text. So that a seed can refuse a document with a [`Malformed`] of its own, it leaves that
//! in a [`Refusal`].

use std::cell::Cell;
use std::io::{self, Read};

use serde::de::{self, DeserializeSeed};

use super::Malformed;
use super::bounded::{Bounded, Nesting, malformed};

/// Holds the reason for which a seed refused the document.
#[derive(Default)]
pub(super) struct Refusal(Cell<Option<Malformed>>);

impl Refusal {
    /// Stores `reason`; returning the error stops the parser.
    pub(super) fn error<E: de::Error>(&self, reason: Malformed) -> E {
        let error = E::custom(&reason);
        self.0.set(Some(reason));
        error
    }
}

/// Parses `document`, of at most `limit` bytes, with `seed`, which leaves its reasons in `refusal`. `expected` names
/// the document's format, for errors.
pub(super) fn read<'de>(
    document: impl Read,
    limit: u64,
    expected: &'static str,
    seed: impl DeserializeSeed<'de, Value = ()>,
    refusal: &Refusal,
) -> Result<(), Malformed> {
    let bounded = Bounded::new(document, limit, Nesting::default());
    let mut parser = serde_json::Deserializer::from_reader(io::BufReader::new(bounded));
    let read = seed.deserialize(&mut parser).and_then(|()| parser.end());
    match (refusal.0.take(), read) {
        (Some(reason), _) => Err(reason),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.is_io() => Err(malformed(error.into())),
        (None, Err(error)) => Err(Malformed::Shape { expected, found: error.to_string() }),
    }
}

/// Records the member `name`. A repeated member is an error, because parsers disagree on which one counts.
pub(super) fn once<E: de::Error>(seen: &mut bool, name: &'static str) -> Result<(), E> {
    if std::mem::replace(seen, true) {
        return Err(E::duplicate_field(name));
    }
    Ok(())
}
