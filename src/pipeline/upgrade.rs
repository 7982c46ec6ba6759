//! Connections that switch to another protocol (101): their bytes are only copied.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::reply::Line;

/// Copies both ways after a 101, until both sides have ended or the client's connection is cut.
pub(super) async fn switch(ours: OnUpgrade, theirs: OnUpgrade, line: Line) {
    let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else {
        tracing::debug!("a protocol was not switched after all");
        return;
    };
    copy_until_cut(TokioIo::new(ours), TokioIo::new(theirs), &line).await;
}

/// A connection that makes way for others is cut. That must not wait for a byte from either side: a side that reads nothing keeps
/// the copy from reading the other.
async fn copy_until_cut(
    mut ours: impl AsyncRead + AsyncWrite + Unpin,
    mut theirs: impl AsyncRead + AsyncWrite + Unpin,
    line: &Line,
) {
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        }
        () = line.is_cut_off() => tracing::debug!("an upgraded connection was cut"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// An upload to a server that reads nothing fills every buffer; the connection can still make way for others.
    #[tokio::test]
    async fn a_copy_that_waits_for_its_server_ends_when_it_is_cut() {
        let ((mut client, ours), (theirs, mut server)) = (duplex(64), duplex(64));
        let line = Line::default();
        let cut = line.clone();
        let copying = tokio::spawn(async move { copy_until_cut(ours, theirs, &cut).await });
        server.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        client.read_exact(&mut heard).await.unwrap();
        let mut upload = tokio::spawn(async move { client.write_all(&vec![0; 1 << 20]).await });
        let stuck = tokio::time::timeout(std::time::Duration::from_millis(50), &mut upload).await;
        assert!(stuck.is_err() && !copying.is_finished(), "the control: it waits");
        line.cut();
        copying.await.unwrap();
        assert!(upload.await.unwrap().is_err());
    }
}
