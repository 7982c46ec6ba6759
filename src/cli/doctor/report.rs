//! What the doctor found, as text and as JSON. A cause that many clients share is printed once.

use std::path::PathBuf;

use serde::Serialize;

use crate::target::shown::one_line;

/// The result of all examinations.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) larder: String,
    pub(super) ca_sha256: String,
    /// `fresh shell`, `this shell` or the root directory.
    pub(super) place: String,
    pub(super) clients: Vec<Verdict>,
}

/// A client that was found, and its result.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) client: &'static str,
    pub(super) program: PathBuf,
    /// `well`, `fails` or `unknown`.
    pub(super) status: &'static str,
    /// `probed` or `inspected`.
    pub(super) how: &'static str,
    pub(super) cause: Option<&'static str>,
    pub(super) why: Option<String>,
    pub(super) mend: Option<String>,
    /// The most telling line of the client's own output.
    pub(super) said: Option<String>,
}

impl Report {
    pub(super) fn write(&self, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        writeln!(out, "larder {}, in {}\nCA     {}\n", self.larder, self.place, self.ca_sha256)?;
        for verdict in self.clients.iter().filter(|verdict| verdict.status != "fails") {
            let mark = if verdict.status == "well" { "ok" } else { "?" };
            let why = verdict.why.as_deref().unwrap_or("");
            writeln!(out, "{mark:<6} {:<9} {why}{}", verdict.client, how(verdict))?;
        }
        for ailing in self.ailing() {
            write_ailing(&ailing, out)?;
        }
        let count = |status| self.clients.iter().filter(|verdict| verdict.status == status).count();
        writeln!(
            out,
            "\n{} well, {} fail, {} unknown",
            count("well"),
            count("fails"),
            count("unknown")
        )?;
        if count("fails") > 0 {
            writeln!(
                out,
                "For all users and clients at once: the command on {}/ sets this machine up (compare the fingerprint).",
                self.larder
            )?;
        }
        Ok(())
    }

    /// The clients that fail, grouped by cause.
    fn ailing(&self) -> Vec<Vec<&Verdict>> {
        let mut groups: Vec<Vec<&Verdict>> = Vec::new();
        for verdict in self.clients.iter().filter(|verdict| verdict.status == "fails") {
            let same = |group: &&mut Vec<&Verdict>| {
                group
                    .first()
                    .is_some_and(|first| (first.cause, &first.why) == (verdict.cause, &verdict.why))
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.push(verdict),
                None => groups.push(vec![verdict]),
            }
        }
        groups
    }
}

fn how(verdict: &Verdict) -> &'static str {
    if verdict.how == "inspected" { " (by its settings, not run)" } else { "" }
}

/// Prints one cause, its clients, and the line that repairs them: once if the same line works for all.
fn write_ailing(ailing: &[&Verdict], out: &mut dyn std::io::Write) -> anyhow::Result<()> {
    let Some(first) = ailing.first() else { return Ok(()) };
    let why = first.why.as_deref().unwrap_or("");
    let mark = "FAILS";
    if let [one] = ailing {
        writeln!(out, "{mark:<6} {:<9} {why}{}", one.client, how(one))?;
    } else {
        let names: Vec<String> = ailing
            .iter()
            .map(|verdict| {
                format!("{}{}", verdict.client, if verdict.how == "inspected" { "*" } else { "" })
            })
            .collect();
        let any_inspected = ailing.iter().any(|verdict| verdict.how == "inspected");
        let star = if any_inspected { " (*: by its settings, not run)" } else { "" };
        writeln!(out, "{mark:<6} {} clients: {why}", ailing.len())?;
        writeln!(out, "       {}{star}", names.join(", "))?;
    }
    if let ([_], Some(said)) = (ailing, &first.said) {
        writeln!(out, "       it said: {}", one_line(said))?;
    }
    let mut told: Vec<&str> = Vec::new();
    for verdict in ailing {
        let Some(mend) = &verdict.mend else { continue };
        if told.contains(&&**mend) {
            continue;
        }
        told.push(mend);
        let whom: Vec<&str> = ailing
            .iter()
            .filter(|other| other.mend.as_ref() == Some(mend))
            .map(|other| other.client)
            .collect();
        let whom = if whom.len() == ailing.len() {
            String::new()
        } else {
            format!(" {}", whom.join(", "))
        };
        writeln!(out, "       mend{whom}: {mend}")?;
    }
    if ailing.iter().any(|verdict| verdict.mend.is_none()) {
        writeln!(
            out,
            "       no line mends it: name its hosts under hosts.tunnel, or see docs/doctor.md"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(client: &'static str, why: &str, mend: &str) -> Verdict {
        Verdict {
            client,
            program: PathBuf::new(),
            status: "fails",
            how: "probed",
            cause: Some("no-proxy"),
            why: Some(why.to_owned()),
            mend: Some(mend.to_owned()),
            said: None,
        }
    }

    /// Issue 13 row 6: nine clients with one cause need one repair.
    #[test]
    fn one_cause_is_said_once() {
        let report = Report {
            larder: "http://192.0.2.1:3142".to_owned(),
            ca_sha256: "AA".to_owned(),
            place: "a fresh shell".to_owned(),
            clients: vec![
                verdict("curl", "NO_PROXY has *", "export NO_PROXY="),
                verdict("git", "NO_PROXY has *", "export NO_PROXY="),
                verdict("wget", "NO_PROXY has *", "printf no_proxy"),
                verdict("pip", "another cause", "export PIP_CERT=x"),
            ],
        };
        let mut out = Vec::new();
        report.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("NO_PROXY has *").count(), 1, "{text}");
        assert!(
            text.contains("FAILS  3 clients: NO_PROXY has *\n       curl, git, wget\n"),
            "{text}"
        );
        assert!(text.contains("       mend curl, git: export NO_PROXY=\n"), "{text}");
        assert!(text.contains("       mend wget: printf no_proxy\n"), "{text}");
        assert!(
            text.contains("FAILS  pip       another cause\n       mend: export PIP_CERT=x\n"),
            "{text}"
        );
        assert!(text.contains("\n0 well, 4 fail, 0 unknown\n"), "{text}");
    }
}
