//! Who may have an answer to a fill.

use super::task::Task;
use super::varied::Selected;
use crate::entry::Head;
use crate::freshness;
use crate::origin::Answer;

/// Who may have an answer to a fill.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Whoever asks for the same.
    Anybodys,
    /// Only who caused the fill.
    Askers,
    /// Not even that one: it was selected by what the fill did not send, and the client must ask itself.
    Unselected(Selected),
}

/// Decides by all that an answer says. A cookie is for one. `proven`: a digest vouches for the body, whoever it was sent to.
pub(super) fn of(task: &Task, answer: &Answer, proven: bool) -> Whose {
    match whose(task, &answer.head, proven) {
        Whose::Anybodys if !proven && !answer.cookies.is_empty() => Whose::Askers,
        decided @ (Whose::Anybodys | Whose::Askers | Whose::Unselected(_)) => decided,
    }
}

/// Decides by the head alone.
pub(super) fn whose(task: &Task, head: &Head, proven: bool) -> Whose {
    if proven {
        return Whose::Anybodys;
    }
    match task.selected(head) {
        Selected::By(_) if freshness::is_shareable(head, false) => Whose::Anybodys,
        Selected::By(_) => Whose::Askers,
        // Nothing that the client says of itself was left out that is known to select.
        Selected::Never if task.is_unknown() => Whose::Askers,
        by @ (Selected::Unsent(_) | Selected::Unsendable | Selected::Never) => {
            Whose::Unselected(by)
        }
    }
}
