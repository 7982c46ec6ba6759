//! The Unix socket for queries to a running larder: one line of JSON in, lines of JSON out.
//!
//! The socket has mode 0600, and the peer's user id from the kernel is checked as well: between `bind` and `chmod`
//! the socket has the mode that the umask gave it. Only root and the user that larder runs as are answered.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::keys::MAX_ADDED;
use super::question::{Answer, Question};
use super::{Admin, Running, socket_file};

/// The longest question. Most are a URL and a word; the longest contains key files.
const MAX_QUESTION: u64 = MAX_ADDED as u64 + 64 * 1024;

/// Questions at a time. Each may walk the whole store on a thread of its own.
const MAX_QUESTIONS: usize = 16;

/// The timeout for a question: it is one line, which a program sends as soon as it is connected.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The most answers that are buffered for a slow reader.
const ANSWERS_AHEAD: usize = 64;

/// A bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// Binds the socket of `data`. The caller holds the store's lock, so a file that already exists was left by a killed
/// larder.
pub fn bind(data: &Path) -> io::Result<Socket> {
    let path = socket_file(data);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = super::ask::within(data, |short| UnixListener::bind(short.join("larder.sock")))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Socket { listener, path })
}

impl Socket {
    /// Answers questions until dropped.
    pub async fn serve(self, admin: Arc<Admin>) {
        let room = Arc::new(Semaphore::new(MAX_QUESTIONS));
        // Dropping the set ends its tasks, so that none holds the store longer than larder does.
        let mut open = JoinSet::new();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the socket for questions cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (admin, room) = (Arc::clone(&admin), Arc::clone(&room));
            while open.try_join_next().is_some() {}
            open.spawn(async move {
                if let Err(error) = converse(stream, admin, &room).await {
                    tracing::debug!(%error, "a question over the socket was not answered");
                }
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: the next larder removes what is left.
        let _gone = std::fs::remove_file(&self.path);
    }
}

async fn converse(mut stream: UnixStream, admin: Arc<Admin>, room: &Semaphore) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        let refusal =
            Answer::Failed("this larder answers only the user that it runs as".to_owned());
        return stream.write_all(&line(&refusal)).await;
    }
    let (read, mut write) = stream.split();
    let mut asked = String::new();
    let mut limited = BufReader::new(read.take(MAX_QUESTION));
    tokio::time::timeout(QUESTION_TIMEOUT, limited.read_line(&mut asked)).await??;
    let question = match serde_json::from_str(&asked) {
        Ok(question) => question,
        Err(error) => {
            let version = env!("CARGO_PKG_VERSION");
            let refusal =
                Answer::Failed(format!("larder {version} does not know this question: {error}"));
            return write.write_all(&line(&refusal)).await;
        }
    };
    if let (Question::Stay, Some(running)) = (&question, &admin.running) {
        let Some(_stay) = running.stays.begin() else {
            let refusal = Answer::Failed("this larder is stopping".to_owned());
            return write.write_all(&line(&refusal)).await;
        };
        write.write_all(&line(&Answer::Staying)).await?;
        // The client sends nothing more: this returns when it closes the connection.
        let mut rest = [0; 1];
        while limited.read(&mut rest).await? > 0 {}
        return Ok(());
    }
    if let (Question::Job { token }, Some(running)) = (&question, &admin.running) {
        return hold_open(running, token, &mut write, &mut limited).await;
    }
    if question.is_about_the_store() {
        admin.store.read().await;
    }
    // The limit applies here and not at accept, so that any number of commands can ask larder to stay.
    let _place = room.acquire().await.map_err(io::Error::other)?;
    let (answers, mut pieces) = mpsc::channel(ANSWERS_AHEAD);
    let answering = tokio::task::spawn_blocking(move || {
        admin.answer(&question, &mut |answer| match answers.blocking_send(answer) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
    });
    while let Some(answer) = pieces.recv().await {
        write.write_all(&line(&answer)).await?;
    }
    answering.await.map_err(io::Error::other)
}

/// Opens listeners for a job. They are closed when the connection is.
async fn hold_open(
    running: &Running,
    token: &str,
    write: &mut (impl AsyncWrite + Unpin),
    read: &mut (impl AsyncRead + Unpin),
) -> io::Result<()> {
    let addresses: BTreeSet<IpAddr> = running.listening().iter().map(SocketAddr::ip).collect();
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    let opened = match running.metrics.jobs.open(token, &addresses).await {
        Ok(opened) => opened,
        Err(error) => {
            let refusal = Answer::Failed(format!("no listener for the job: {error}"));
            return write.write_all(&line(&refusal)).await;
        }
    };
    write.write_all(&line(&Answer::Doorway(opened.listening.clone()))).await?;
    let mut rest = [0; 1];
    while read.read(&mut rest).await? > 0 {}
    Ok(())
}

fn line(answer: &Answer) -> Vec<u8> {
    // An answer contains only strings, numbers and maps with string keys: serialising it cannot fail.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{ask, state_dir};
    use crate::authority::Authority;
    use crate::clock::Clock;
    use crate::config::{Config, Live};
    use crate::keyring::{Keyring, Trusted};
    use crate::outcome::metrics::Metrics;
    use crate::store::Store;
    use futures_util::FutureExt as _;

    fn admin(data: &Path) -> Arc<Admin> {
        let config = Live::new(Config { data: data.to_owned(), ..Config::default() });
        let clock = Clock::system();
        let authority = Authority::open(&state_dir(data), &clock).unwrap();
        let keys = Trusted::new(Keyring::new());
        let running = Some(Running::new(authority, Arc::new(Metrics::default()), keys, &clock));
        let store = Store::open(config.clone(), clock.clone()).unwrap();
        Arc::new(Admin { config, clock, store, running })
    }

    async fn asking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test]
    async fn a_question_is_answered_at_any_depth_of_directory() {
        let outer = tempfile::tempdir().unwrap();
        // Longer than the path of a Unix socket may be.
        let data = outer.path().join("d".repeat(120));
        std::fs::create_dir(&data).unwrap();
        assert_eq!(ask::serving(&data).unwrap(), None);
        let served = tokio::spawn(bind(&data).unwrap().serve(admin(&data)));
        let mode = std::fs::metadata(socket_file(&data)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let there = data.clone();
        let (status, settings) = asking(move || {
            let larder = ask::serving(&there).unwrap().unwrap();
            let mut settings = Vec::new();
            let kept = larder.ask::<io::Error>(&Question::Config, |answer| {
                settings.push(answer);
                Ok(())
            });
            kept.unwrap();
            (larder.status().unwrap(), settings)
        })
        .await;
        assert_eq!((status.pid, &status.data), (std::process::id(), &data));
        assert!(status.ca_pem.starts_with("-----BEGIN CERTIFICATE-----"));
        assert_eq!(settings.len(), crate::config::keys::KEYS.len());
        served.abort();
        let _ended = served.await;
        assert!(!socket_file(&data).exists());
    }

    #[tokio::test]
    async fn who_stays_is_counted_until_the_connection_ends() {
        let data = tempfile::tempdir().unwrap();
        let admin = admin(data.path());
        tokio::spawn(bind(data.path()).unwrap().serve(Arc::clone(&admin)));
        let there = data.path().to_owned();
        let staying = asking(move || ask::serving(&there).unwrap().unwrap().stay().unwrap()).await;
        let unused = || async { admin.running.as_ref().unwrap().unused().await };
        assert!(unused().now_or_never().is_none());
        drop(staying.unwrap());
        tokio::time::timeout(Duration::from_secs(10), unused()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_question_is_refused_in_words() {
        let data = tempfile::tempdir().unwrap();
        tokio::spawn(bind(data.path()).unwrap().serve(admin(data.path())));
        for (sent, said) in [
            ("{}\n".to_owned(), "does not know this question"),
            ("x".repeat(usize::try_from(MAX_QUESTION).unwrap() + 1), "does not know"),
        ] {
            let mut stream = UnixStream::connect(socket_file(data.path())).await.unwrap();
            // The server may close the connection before everything is sent.
            let _sent = stream.write_all(sent.as_bytes()).await;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await.unwrap();
            assert!(answer.starts_with("{\"failed\"") && answer.contains(said), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_larder_left_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(socket_file(data.path())).unwrap());
        assert_eq!(ask::serving(data.path()).unwrap(), None);
        let _bound = bind(data.path()).unwrap();
        assert!(ask::serving(data.path()).unwrap().is_some());
    }
}
