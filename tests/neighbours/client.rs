//! Connections from any address of the loopback network.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long anything may take that happens by itself, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const HTTP1: &[u8] = b"http/1.1";
pub const HTTP2: &[u8] = b"h2";

/// A stranger's address; the same for those whose numbers differ by `addresses`.
pub fn stranger(number: usize, addresses: u8) -> Ipv4Addr {
    let last = u8::try_from(number % usize::from(addresses)).unwrap();
    Ipv4Addr::new(127, 0, 0, 2 + last)
}

/// Lets this process open so many files, or as many as the system allows; says how many of
/// them are for connections.
pub fn open_files(wanted: usize) -> usize {
    const OTHERS: u64 = 2_000;
    static RAISED: LazyLock<u64> = LazyLock::new(|| {
        let limit = getrlimit(Resource::Nofile);
        let wanted = limit.maximum.unwrap_or(u64::MAX).min(20_000);
        if limit.current.is_some_and(|current| current < wanted) {
            let raised = Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            };
            setrlimit(Resource::Nofile, raised).unwrap();
        }
        wanted
    });
    wanted.min(usize::try_from(RAISED.saturating_sub(OTHERS)).unwrap())
}

pub async fn tcp(port: u16, from: Ipv4Addr) -> TcpStream {
    connect(TcpSocket::new_v4().unwrap(), port, from).await
}

/// A connection for which the system keeps next to nothing that its owner has not taken yet.
pub async fn tcp_with_small_buffer(port: u16, from: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    connect(socket, port, from).await
}

async fn connect(socket: TcpSocket, port: u16, from: Ipv4Addr) -> TcpStream {
    socket.bind((from, 0).into()).unwrap();
    let to = (Ipv4Addr::LOCALHOST, port).into();
    let connected = timeout(PATIENCE, socket.connect(to)).await;
    connected.expect("the port answers").unwrap()
}

/// A connection with a finished handshake; `None` if it was closed before that.
pub async fn tls(
    ca: &str,
    port: u16,
    from: Ipv4Addr,
    protocol: &[u8],
) -> Option<TlsStream<TcpStream>> {
    tls_over(tcp(port, from).await, ca, protocol).await
}

/// The same over a connection that is there.
pub async fn tls_over(
    stream: TcpStream,
    ca: &str,
    protocol: &[u8],
) -> Option<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(config(ca, protocol));
    let handshake = connector.connect(server_name(), stream);
    timeout(PATIENCE, handshake).await.unwrap().ok()
}

/// The first message of a handshake.
pub fn client_hello(ca: &str) -> Vec<u8> {
    let mut connection = ClientConnection::new(config(ca, HTTP1), server_name()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// Waits until the other side ends the connection, and gives what it said until then.
pub async fn until_closed(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut said = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    // A reset is an end as well.
    let _ = closed.expect("the webhook closes the connection");
    said
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").unwrap()
}

fn config(ca: &str, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}
