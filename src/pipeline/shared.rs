//! Which clients may have an answer to a fill.

use super::task::Task;
use super::varied::Selected;
use crate::entry::Head;
use crate::freshness;
use crate::origin::Answer;

/// Which clients may have an answer to a fill.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Every client with the same request.
    Anybodys,
    /// Only the client that caused the fill.
    Askers,
    /// No client: the answer was selected by a field that the fill did not send, so the client's own request must be passed.
    Unselected(Selected),
}

/// Decides by the whole answer: one with cookies is for one client. `proven`: a digest vouches for the body, whichever client it
/// was sent to.
pub(super) fn of(task: &Task, answer: &Answer, proven: bool) -> Audience {
    match whose(task, &answer.head, proven) {
        Audience::Anybodys if !proven && !answer.cookies.is_empty() => Audience::Askers,
        decided @ (Audience::Anybodys | Audience::Askers | Audience::Unselected(_)) => decided,
    }
}

/// Decides by the head only.
pub(super) fn whose(task: &Task, head: &Head, proven: bool) -> Audience {
    if proven {
        return Audience::Anybodys;
    }
    match task.selected(head) {
        Selected::By(_) if freshness::is_shareable(head, false) => Audience::Anybodys,
        Selected::By(_) => Audience::Askers,
        // The fill has sent all fields of the client that are known to select, so the client itself may have the answer.
        Selected::Never if task.is_unknown() => Audience::Askers,
        by @ (Selected::Unsent(_) | Selected::Unsendable | Selected::Never) => {
            Audience::Unselected(by)
        }
    }
}
