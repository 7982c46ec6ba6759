//! `larder keys`.

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::answers::json;
use super::{Invocation, OK};
use crate::admin::keys::MAX_ADDED;
use crate::admin::question::keys::{KeyFile, KeyQuestion, ListedKey, Rebound};
use crate::admin::{Answer, Question};
use crate::clock::Time;
use crate::keyring::{MAX_FILE, Source, load};
use crate::target::shown::piece;

const EXAMPLES: &str = "\
Examples:
  larder keys list                          which keys are trusted, and who signed what
  larder keys add archive-keyring.gpg       an archive's key, armoured or binary
  gpg --export KEY | larder keys add -      the same out of gpg's own keyring
  larder keys add npm-keys.json             a registry's keys, as its keys endpoint gives them
  larder keys add new-archive-keyring.gpg   after an archive changed or prolonged its
                                            key: it signs there from now on
  larder keys rm FINGERPRINT                stops trusting a key, and what it alone proved
  larder keys rebind https://example.org/debian/
                                            accepts new signing keys of an archive

Keys act at once: what was refused for want of a key is possible when it is
asked for again, and what only a removed one proved is not proven any more.
Exit codes: 0 done, 1 failed and nothing changed.";

/// Manages the keys that repositories are signed with.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Keys {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists the trusted keys: fingerprint, owner, expiry, source, and the repositories that use them
    #[command(before_help = EXAMPLES)]
    List {
        /// Prints one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Trusts the keys in files: an archive's keys (armoured or binary), Alpine's, or a registry's
    #[command(before_help = EXAMPLES)]
    Add {
        /// Files, directories of files, or - for standard input. All are added, or none
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Prints one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Stops trusting a key that was added before, and what it alone proved
    #[command(before_help = EXAMPLES)]
    Rm {
        /// Its fingerprint, or at least the last 16 digits of it; for other kinds its name, as `larder keys list`
        /// shows it
        fingerprint: String,
        /// Prints one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forgets which keys signed for a repository, so that the next trusted signer is accepted as the first
    #[command(before_help = EXAMPLES)]
    Rebind {
        /// The URL of the repository's root, as `larder keys list` shows it
        url: String,
        /// Prints one JSON object a line
        #[arg(long)]
        json: bool,
    },
}

impl Keys {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let now = invocation.clock.now();
        match self.what {
            What::List { json } => {
                each_key(invocation, KeyQuestion::List, json, &|out, key| list(out, key, now))
            }
            What::Add { files, json } => {
                let question = KeyQuestion::Add { files: read(&files)? };
                each_key(invocation, question, json, &|out, key| {
                    write!(out, "added ")?;
                    list(out, key, now)?;
                    for root in &key.now_signs {
                        writeln!(
                            out,
                            "    signs for {root} from now on: the newest index there is signed with it, and did not count \
                             without it (`larder keys rebind {root}` forgets all who sign there)"
                        )?;
                    }
                    Ok(())
                })
            }
            What::Rm { fingerprint, json } => {
                each_key(invocation, KeyQuestion::Remove { fingerprint }, json, &removed)
            }
            What::Rebind { url, json: as_json } => {
                let question = Question::Keys(KeyQuestion::Rebind { url });
                invocation.ask(&question, |out, answer| {
                    let Answer::Rebound(rebound) = answer else {
                        return Ok(());
                    };
                    if as_json {
                        return json(out, &rebound);
                    }
                    let Rebound { root, forgotten } = rebound;
                    let before = forgotten.join(", ");
                    writeln!(
                        out,
                        "{root}: the next signer counts as the first; until now it was {before}"
                    )?;
                    Ok(())
                })
            }
        }?;
        Ok(OK)
    }
}

fn each_key(
    invocation: &mut Invocation,
    question: KeyQuestion,
    as_json: bool,
    show: &dyn Fn(&mut dyn Write, &ListedKey) -> io::Result<()>,
) -> anyhow::Result<()> {
    invocation.ask(&Question::Keys(question), |out, answer| {
        let Answer::Key(key) = answer else {
            return Ok(());
        };
        if as_json { json(out, &key) } else { Ok(show(out, &key)?) }
    })
}

fn list(out: &mut dyn Write, key: &ListedKey, now: Time) -> io::Result<()> {
    writeln!(out, "{} {}", key.kind, key.fingerprint)?;
    if !key.user.is_empty() {
        writeln!(out, "    {}", piece(&key.user))?;
    }
    match key.ends {
        Some(ends) if ends < now => writeln!(out, "    ended {ends}")?,
        Some(ends) if key.ends_soon(now) => {
            let days = ends.since(now).as_secs() / (24 * 60 * 60);
            writeln!(
                out,
                "    until {ends}: it ends in {days} days; add the next one, or this one with a later end, as its owner publishes it"
            )?;
        }
        Some(ends) => writeln!(out, "    until {ends}")?,
        None => {}
    }
    if let Some(at) = &key.missing {
        writeln!(
            out,
            "    it cannot be read now{}{at}: it proves nothing new, and what it proved stays, until its file can be read, or `larder \
             keys rm` says that it is gone",
            if at.is_empty() { "" } else { " from " }
        )?;
    }
    for source in &key.sources {
        let whose = match source {
            Source::BuiltIn(_) => "",
            Source::System(_) => "system: ",
            Source::Operator(_) => "operator: ",
        };
        writeln!(out, "    {whose}{source}")?;
    }
    for root in &key.used_by {
        writeln!(out, "    used by {root}")?;
    }
    Ok(())
}

fn removed(out: &mut dyn Write, key: &ListedKey) -> io::Result<()> {
    writeln!(out, "removed {} {}", key.kind, key.fingerprint)?;
    for source in &key.sources {
        writeln!(out, "    still trusted: {source}")?;
    }
    for root in &key.used_by {
        if key.undone.contains(root) {
            writeln!(
                out,
                "    {root} was signed with it: what that proved counts no more, unless another trusted key signed it as well; if none \
                 did there, what others sign does not count until `larder keys rebind {root}`"
            )?;
        } else {
            writeln!(
                out,
                "    {root} was signed with it, and by others who are trusted: it stays proven"
            )?;
        }
    }
    Ok(())
}

/// Reads the named files, and the key files in named directories.
fn read(named: &[PathBuf]) -> anyhow::Result<Vec<KeyFile>> {
    let mut files = Vec::new();
    for path in named {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            io::stdin()
                .take(MAX_FILE + 1)
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
            files.push(KeyFile::new("standard input", &bytes));
        } else if path.is_dir() {
            files.extend(read_directory(path)?);
        } else {
            files.push(read_file(path)?);
        }
    }
    let all: usize = files.iter().map(|file| file.base64.len()).sum();
    if all > MAX_ADDED {
        bail!("these files are longer than {MAX_ADDED} bytes together; add some of them at a time");
    }
    Ok(files)
}

fn read_file(path: &Path) -> anyhow::Result<KeyFile> {
    let shown = path.display().to_string();
    let bytes = load::bytes_of(path).map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
    Ok(KeyFile::new(&shown, &bytes))
}

/// Reads the key files in a directory, recognised by their names. Prints a line for every other file.
fn read_directory(directory: &Path) -> anyhow::Result<Vec<KeyFile>> {
    let keys = load::files(directory)
        .with_context(|| format!("{}: it cannot be read", directory.display()))?;
    if keys.is_empty() {
        bail!("{}: no file in this directory has the name of a key file", directory.display());
    }
    let others = directory.read_dir().into_iter().flatten().flatten().map(|file| file.path());
    for other in others.filter(|path| !keys.contains(path)) {
        writeln!(
            io::stderr(),
            "larder: {} is left out: it does not have the name of a key file",
            other.display()
        )?;
    }
    keys.iter().map(|path| read_file(path)).collect()
}
