//! Answers the queries of `larder why`, `ls`, `stats` and `recent` over HTTP, for every client that may use this
//! larder.
//!
//! Queries are read-only, and answers contain public data only: public entries, and requests without a credential.
//! Addresses of clients are left out. `why` leaves out refused bodies, because the claims that they failed may be
//! private. `clients.queries = false` disables all of these.
//!
//! An answer is the same JSON lines as over the socket, but bounded, because it is built in memory.

use std::ops::ControlFlow;

use super::Admin;
use super::question::entry::Listed;
use super::question::{Answer, Question};
use crate::outcome::recent::Event;

/// The longest answer, in bytes: about a hundred thousand entries.
const MOST: usize = 32 << 20;

/// The prefix of a job's token.
const JOB: &str = "/-/job/";

/// The question that a path and its query stand for.
pub(super) fn question(path: &str, query: Option<&str>) -> Option<Question> {
    let value = |wanted: &str| {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        pairs.into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    match path {
        "/-/stats" => Some(Question::Stats),
        "/-/recent" => Some(Question::Recent),
        "/-/ls" => Some(Question::Entries { matching: value("matching").unwrap_or_default() }),
        "/-/why" => Some(Question::Why { url: value("url")? }),
        _ => {
            let token = path.strip_prefix(JOB)?;
            Some(Question::Tally { token: token.to_owned() })
        }
    }
}

/// The path and query for a question; `None` if it cannot be asked over HTTP.
pub fn path(question: &Question) -> Option<String> {
    let query = |name: &str, value: &str| {
        url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
    };
    match question {
        Question::Stats => Some("/-/stats".to_owned()),
        Question::Recent => Some("/-/recent".to_owned()),
        Question::Entries { matching } => Some(format!("/-/ls?{}", query("matching", matching))),
        Question::Why { url } => Some(format!("/-/why?{}", query("url", url))),
        Question::Tally { token } => Some(format!("{JOB}{token}")),
        Question::Status
        | Question::Config
        | Question::Totals
        | Question::Job { .. }
        | Question::Remove(_)
        | Question::Verify
        | Question::Ca(_)
        | Question::Keys(_)
        | Question::Stay => None,
    }
}

impl Admin {
    /// Answers a question with public data only. Blocking.
    pub(super) fn answer_everybody(&self, question: &Question) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut hear = |answer: Answer| {
            let Some(answer) = for_everybody(answer) else { return ControlFlow::Continue(()) };
            push(&mut lines, &answer);
            if lines.len() < MOST {
                return ControlFlow::Continue(());
            }
            let rest = "the answer is too long to be sent over HTTP; narrow the query";
            push(&mut lines, &Answer::Failed(rest.to_owned()));
            ControlFlow::Break(())
        };
        if *question == Question::Stats {
            let _heard = hear(Answer::Stats(Box::new(self.stats(true))));
        } else {
            self.answer(question, &mut hear);
        }
        lines
    }
}

fn push(lines: &mut Vec<u8>, answer: &Answer) {
    // As on the socket, serialising cannot fail.
    lines.extend(serde_json::to_vec(answer).unwrap_or_default());
    lines.push(b'\n');
}

/// The public part of an answer.
fn for_everybody(answer: Answer) -> Option<Answer> {
    match answer {
        Answer::Entry(entry) => told(*entry).map(|entry| Answer::Entry(Box::new(entry))),
        Answer::Event(event) => public(*event).map(|event| Answer::Event(Box::new(event))),
        Answer::Why(known) => {
            let mut known = known;
            known.entries = known.entries.into_iter().filter_map(told).collect();
            known.recent = known.recent.into_iter().filter_map(public).collect();
            known.refusals.clear();
            Some(Answer::Why(known))
        }
        Answer::Stats(_) | Answer::Tally(_) | Answer::Failed(_) => Some(answer),
        Answer::Status(_)
        | Answer::Setting(_)
        | Answer::Totals(_)
        | Answer::Doorway(_)
        | Answer::Removed(_)
        | Answer::Progress { .. }
        | Answer::Checked(_)
        | Answer::Anchor(_)
        | Answer::Key(_)
        | Answer::Rebound(_)
        | Answer::Staying => None,
    }
}

/// The part of an entry that every client may see; `None` for a private entry. The variant lists the request fields by which the
/// origin selects the answer, with the values that a client sent. These may tell its program, its machine, or an identifier of
/// it. So only the value of `Accept` is shown, which tells the forms of an index apart.
fn told(entry: Listed) -> Option<Listed> {
    if entry.private {
        return None;
    }
    let hidden = |line: &str| match line.split_once(": ") {
        Some((name, _)) if !name.eq_ignore_ascii_case("accept") => format!("{name}: …"),
        Some(_) | None => line.to_owned(),
    };
    let variant = entry.variant.split('\n').map(hidden).collect::<Vec<_>>().join("\n");
    Some(Listed { variant, ..entry })
}

fn public(event: Event) -> Option<Event> {
    event.public.then(|| Event { client: String::new(), ..event })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_over_http_is_read_as_it_was_meant() {
        for asked in [
            Question::Stats,
            Question::Recent,
            Question::Entries { matching: "a b&c=d".into() },
            Question::Why { url: "https://example.org/a?b=c&d=%20#e".into() },
            Question::Tally { token: "0".repeat(32) },
        ] {
            let path = path(&asked).unwrap();
            let (path, query) =
                path.split_once('?').map_or((&*path, None), |(path, query)| (path, Some(query)));
            assert_eq!(question(path, query), Some(asked));
        }
        assert_eq!(path(&Question::Verify), None);
        assert_eq!(question("/-/verify", None), None);
        assert_eq!(question("/-/why", None), None);
    }

    /// Only the operator may see what a client says about itself.
    #[test]
    fn everybody_is_told_by_which_fields_an_answer_is_selected_and_not_what_they_held() {
        let listed = |private| Listed {
            url: "https://example.org/a".into(),
            variant:
                "unknown\naccept: text/html\nuser-agent: tool/1 (job 7)\nx-zypp-anonymousid: 1-2: 3"
                    .into(),
            ecosystem: String::new(),
            index: false,
            private,
            proof: "origin".into(),
            size: 0,
            sha256: String::new(),
            status: 200,
            received_at: crate::clock::Time::from_millis(0),
            checked_at: crate::clock::Time::from_millis(0),
            answered_by: None,
        };
        let shown = told(listed(false)).unwrap().variant;
        assert_eq!(shown, "unknown\naccept: text/html\nuser-agent: …\nx-zypp-anonymousid: …");
        assert!(told(listed(true)).is_none(), "the control");
    }
}
