//! Which clients may have an answer to a fill.

use super::task::Task;
use super::varied::Selected;
use crate::entry::Head;
use crate::freshness;
use crate::origin::Answer;

/// Which clients may have an answer to a fill.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Every client with the same request.
    Anybodys,
    /// Only the client that caused the fill.
    Askers,
    /// No client: the answer was selected by a field that the fill did not send, so the client's own request must be passed.
    Unselected(Selected),
}

/// Decides by the whole answer: one with cookies is for one client. `proven`: a digest vouches for the body, whichever client it
/// was sent to.
pub(super) fn of(task: &Task, answer: &Answer, proven: bool) -> Whose {
    match whose(task, &answer.head, proven) {
        Whose::Anybodys if !proven && !answer.cookies.is_empty() => Whose::Askers,
        decided @ (Whose::Anybodys | Whose::Askers | Whose::Unselected(_)) => decided,
    }
}

/// Decides by the head only.
pub(super) fn whose(task: &Task, head: &Head, proven: bool) -> Whose {
    if proven {
        return Whose::Anybodys;
    }
    match task.selected(head) {
        Selected::By(_) if freshness::is_shareable(head, false) => Whose::Anybodys,
        Selected::By(_) => Whose::Askers,
        // The fill has sent all fields of the client that are known to select, so the client itself may have the answer.
        Selected::Never if task.is_unknown() => Whose::Askers,
        by @ (Selected::Unsent(_) | Selected::Unsendable | Selected::Never) => {
            Whose::Unselected(by)
        }
    }
}
