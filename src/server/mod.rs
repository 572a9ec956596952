//! HTTP/1.1 and HTTP/2 over TLS, where strangers may connect: every step is bounded in time
//! and memory.
//!
//! * [`limits`]: all bounds.
//! * `places`: who is connected, and who leaves when all places are taken.
//! * `connection`: a connection from its first byte to its end. `impatient` ends one whose
//!   client takes nothing of what is sent to it.
//! * `request`, `body` and `memory`: a request's body, its answer, and what it may cost.
//! * `drain`: the end of a server, in an order that loses no call.
//!
//! Nothing in here knows what is served.

mod body;
mod connection;
mod drain;
mod impatient;
pub mod limits;
mod memory;
mod places;
mod request;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use self::body::TooLong;
use self::drain::{Drain, End, Phase};
pub use self::limits::Limits;
use self::memory::Memory;
use self::places::{Place, Places};
use crate::accept::accept;
use crate::telemetry::metrics::ConnectionMetrics;
use crate::tls::{Caller, CallerRefusal, ClientCa};

/// Connections for metrics at a time.
const PLAIN_CONNECTIONS: usize = 100;

/// How long a server that ends looks for connections that clients have opened already, and at
/// most for all of them.
const LAST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOKS: Duration = Duration::from_millis(500);

/// What every connection of a server needs.
struct Server {
    tls: TlsAcceptor,
    routers: Routers,
    limits: Limits,
    places: Arc<Places>,
    /// For the bodies of all requests.
    memory: Arc<Memory>,
    end: End,
}

/// Who answers which client.
#[derive(Clone, Debug)]
pub struct Routers {
    /// For those who may call, or for all.
    pub clients: Router,
    /// For the others, if there is a difference.
    pub strangers: Option<Strangers>,
}

/// What becomes of those who may not call.
#[derive(Clone, Debug)]
pub struct Strangers {
    /// Says who may.
    pub client_ca: ClientCa,
    /// Answers those who may not. Why not is an extension of each request, a [`CallerRefusal`].
    pub router: Router,
}

impl Routers {
    /// Who a client is by what it has shown in its handshake, if that makes a difference.
    fn caller(&self, shown: Option<&[CertificateDer<'_>]>) -> Option<Caller> {
        let strangers = self.strangers.as_ref()?;
        Some(strangers.client_ca.caller(shown))
    }

    /// Who answers a request of this caller.
    fn of<B>(&self, caller: Option<&Caller>, request: &mut Request<B>) -> Router {
        if let (Some(strangers), Some(caller)) = (&self.strangers, caller)
            && let Err(refusal) = caller.check(SystemTime::now())
        {
            request.extensions_mut().insert::<CallerRefusal>(refusal);
            return strangers.router.clone();
        }
        self.clients.clone()
    }
}

impl From<Router> for Routers {
    fn from(router: Router) -> Self {
        Self {
            clients: router,
            strangers: None,
        }
    }
}

/// Serves until `shutdown` ends and a while longer, so that clients can learn of it, then
/// finishes the requests that run.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routers: impl Into<Routers>,
    limits: Limits,
    metrics: ConnectionMetrics,
    shutdown: impl Future<Output = ()>,
) {
    let (drain, end) = Drain::new();
    let places = Places::new(&limits, metrics);
    let server = Arc::new(Server {
        tls: TlsAcceptor::from(tls),
        routers: routers.into(),
        limits,
        places: places.clone(),
        memory: Memory::new(limits.all_bodies_bytes),
        end,
    });
    server.accept_until(shutdown, &listener).await;
    drain.enter(Phase::Leaving);
    let delay = tokio::time::sleep(limits.shutdown_delay);
    server.accept_until(delay, &listener).await;
    // Clients take a connection for open that still waits to be accepted.
    let _ = timeout(LAST_LOOKS, async {
        while let Ok(stream) = timeout(LAST_LOOK, accept(&listener)).await {
            server.admit(stream);
        }
    })
    .await;
    // No new connections from here on; the port is free for a successor.
    drop(listener);
    drain.enter(Phase::Closing);
    drop(server);
    if timeout(limits.drain, drain.done()).await.is_err() {
        tracing::warn!("requests still ran at the end of the drain time and were cut off");
        places.clear();
    }
}

impl Server {
    async fn accept_until(self: &Arc<Self>, end: impl Future<Output = ()>, listener: &TcpListener) {
        let accepting = async {
            loop {
                self.admit(accept(listener).await);
            }
        };
        tokio::select! {
            () = accepting => {}
            () = end => {}
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) {
        // One that is gone already has no address any more.
        let Ok(address) = stream.peer_addr() else {
            return;
        };
        let Some(place) = self.places.enter(address) else {
            return tracing::debug!(%address, "connection refused, as all places are taken");
        };
        let seat = place.seat().clone();
        let task = tokio::spawn(self.clone().connection(stream, place));
        seat.set_task(task.abort_handle());
    }
}

/// Serves without TLS and one request a connection, for metrics. Never ends by itself.
pub async fn serve_plain(listener: TcpListener, router: Router, limits: Limits) {
    let limits = Limits {
        connections: PLAIN_CONNECTIONS,
        ..limits
    };
    let places = Places::new(&limits, ConnectionMetrics::default());
    loop {
        let stream = accept(&listener).await;
        let place = stream
            .peer_addr()
            .ok()
            .and_then(|address| places.enter(address));
        if let Some(place) = place {
            let seat = place.seat().clone();
            let task = tokio::spawn(plain_connection(stream, router.clone(), limits, place));
            seat.set_task(task.abort_handle());
        }
    }
}

async fn plain_connection(stream: TcpStream, router: Router, limits: Limits, _place: Place) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = request::route(router.clone(), request.map(Body::new), limits.request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // With the time to take the answer.
    let limit = limits.handshake + limits.request + limits.send;
    match timeout(limit, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection for metrics ended early"),
        Err(_) => tracing::debug!("connection for metrics took too long"),
    }
}
