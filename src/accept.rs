//! Taking connections, whatever becomes of single ones.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The next connection.
///
/// A connection that was reset before it was taken is none of our business; a process without
/// file descriptors has to wait until it has some again.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    next(|context| listener.poll_accept(context)).await
}

/// The next connection to a Unix socket, as [`accept`] takes it.
pub async fn accept_local(listener: &UnixListener) -> UnixStream {
    next(|context| listener.poll_accept(context)).await
}

async fn next<S, A>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(S, A)>>) -> S {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match poll_fn(&mut poll).await {
            Ok((stream, _)) => return stream,
            Err(error) => match error.kind() {
                ConnectionAborted | ConnectionRefused | ConnectionReset => {}
                _ => {
                    tracing::error!(%error, "no connection can be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}
