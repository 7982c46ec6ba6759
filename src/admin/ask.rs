//! Queries the larder that serves from a data directory, over its socket. Blocking.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::question::{Answer, Question, Status};

/// A running larder that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    data: PathBuf,
}

/// Keeps a larder running that another command started; it may stop when this is dropped.
#[derive(Debug)]
pub struct Staying {
    _connection: UnixStream,
}

/// Listeners that a larder opened for one job; they are closed when this is dropped.
#[derive(Debug)]
pub struct Doorway {
    /// The addresses to which the job's clients connect.
    pub listening: Vec<SocketAddr>,
    _connection: UnixStream,
}

/// The timeout between two lines of an answer. A check reports after each blob, and hashing the largest takes
/// minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(10);

/// The larder that serves from `data`, if there is one.
pub fn serving(data: &Path) -> io::Result<Option<Served>> {
    match connect(data) {
        Ok(_) => Ok(Some(Served { data: data.to_owned() })),
        // No directory, no socket, or a socket file that a killed larder left.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Served {
    /// Asks `question` and passes each answer to `each`, until there are no more or `each` fails.
    pub fn ask<E: From<io::Error>>(
        &self,
        question: &Question,
        mut each: impl FnMut(Answer) -> Result<(), E>,
    ) -> Result<(), E> {
        for answer in converse(connect(&self.data)?, question)? {
            each(answer?)?;
        }
        Ok(())
    }

    /// The larder's status.
    pub fn status(&self) -> io::Result<Status> {
        self.only(&Question::Status, |answer| {
            if let Answer::Status(status) = answer { Some(status) } else { None }
        })
    }

    /// Asks a question that has one answer.
    pub fn only<T>(
        &self,
        question: &Question,
        pick: impl Fn(Answer) -> Option<T>,
    ) -> io::Result<T> {
        match converse(connect(&self.data)?, question)?.next() {
            Some(Ok(Answer::Failed(why))) => Err(io::Error::other(why)),
            Some(Ok(answer)) => {
                pick(answer).ok_or_else(|| io::Error::other("it gave an unexpected answer"))
            }
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Makes it open listeners for the job of `token`. They are closed when the returned value is dropped.
    pub fn job(&self, token: &str) -> io::Result<Doorway> {
        let connection = connect(&self.data)?;
        let kept = connection.try_clone()?;
        match converse(connection, &Question::Job { token: token.to_owned() })?.next() {
            Some(Ok(Answer::Doorway(listening))) => Ok(Doorway { listening, _connection: kept }),
            Some(Ok(Answer::Failed(why))) => Err(io::Error::other(why)),
            Some(Ok(_)) => Err(io::Error::other("it gave an unexpected answer")),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Asks it to keep running. `None` if it is already stopping.
    pub fn stay(&self) -> io::Result<Option<Staying>> {
        let connection = match connect(&self.data) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(_) => return Ok(None),
            Ok(connection) => connection,
        };
        let kept = connection.try_clone()?;
        match converse(connection, &Question::Stay)?.next() {
            Some(Ok(Answer::Staying)) => Ok(Some(Staying { _connection: kept })),
            Some(_) | None => Ok(None),
        }
    }
}

fn connect(data: &Path) -> io::Result<UnixStream> {
    let stream = within(data, |short| UnixStream::connect(short.join("larder.sock")))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn converse(
    mut stream: UnixStream,
    question: &Question,
) -> io::Result<impl Iterator<Item = io::Result<Answer>>> {
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let lines = BufReader::new(stream).lines();
    Ok(lines.map(|line| {
        let unknown =
            |error| io::Error::other(format!("another version of larder answers ({error})"));
        serde_json::from_str(&line?).map_err(unknown)
    }))
}

/// Runs `run` with a short path to `directory`: the path of a Unix socket may have 107 bytes at most, and data
/// directories of tests and CI jobs are often longer. The `/proc` path of an open directory is always short enough.
pub(super) fn within<T>(
    directory: &Path,
    run: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    const LONGEST: usize = 90;
    if directory.as_os_str().len() <= LONGEST {
        return run(directory);
    }
    let open = File::open(directory)?;
    run(&PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())))
}
