//! Taking connections, whatever becomes of single ones.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// The next connection.
///
/// A connection that was reset before it was taken is none of our business; a process without
/// file descriptors has to wait until it has some again.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.accept().await {
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
