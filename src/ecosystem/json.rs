//! Reads a JSON document as a stream: member by member, in memory that does not depend on the document.
//!
//! A parser is handed the bytes within limits, and a seed takes of it what it is after and skips the rest unread. What
//! the seed refuses for a reason of its own comes out as that reason, although serde's errors are only texts: it lies in
//! a [`Refusal`] meanwhile.

use std::cell::Cell;
use std::io::{self, Read};

use serde::de::{self, DeserializeSeed};

use super::Malformed;
use super::bounded::{Bounded, Nesting, malformed};

/// Why a seed ended the reading.
#[derive(Default)]
pub(super) struct Refusal(Cell<Option<Malformed>>);

impl Refusal {
    /// Keeps `reason`; the error ends the reading.
    pub(super) fn error<E: de::Error>(&self, reason: Malformed) -> E {
        let error = E::custom(&reason);
        self.0.set(Some(reason));
        error
    }
}

/// Hands `document`, of at most `limit` bytes, to `seed`, which leaves its reasons in `refusal`. `expected` is what the
/// document should have been.
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

/// Notes that the member `name` was met. An object that says one thing twice could be read in two ways.
pub(super) fn once<E: de::Error>(seen: &mut bool, name: &'static str) -> Result<(), E> {
    if std::mem::replace(seen, true) {
        return Err(E::duplicate_field(name));
    }
    Ok(())
}
