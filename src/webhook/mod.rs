//! The admission webhook: TLS in front, a decision in the middle, an AdmissionReview out.
//!
//! Stateless, any number of replicas. Nothing in here calls EC2; the allocator is asked, if
//! there is one, and not waited for long. A request waits for the API server only to have
//! confirmed that no policy selects its pod, or that the pod is refused. A dry run is answered
//! as any other request, because an answer leaves no trace.

pub mod allocator;
pub mod body;
pub mod cluster;
mod exchange;
pub mod lookup;
pub mod networks;
pub mod nodes;
pub mod pods;
pub mod policies;
pub mod review;
mod strangers;
pub mod warnings;
pub mod watch;
pub mod workloads;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kube::Client;
use tokio::net::TcpListener;

use self::allocator::Allocator;
use self::cluster::Cluster;
use crate::api::endpoint::Endpoint;
use crate::api::names::ENFORCED;
use crate::policy::Settings;
use crate::server::{self, Limits, Routers, Strangers};
use crate::telemetry::metrics::{self, Metrics};
use crate::tls::{ClientCa, Serving};

/// The state that all requests share.
pub struct Webhook {
    cluster: Cluster,
    settings: Settings,
    allocator: Option<Allocator>,
    editors: Editors,
    metrics: Metrics,
    serving: Option<Serving>,
    refused: strangers::Refused,
    draining: AtomicBool,
}

/// How clients and the webhook know each other.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The webhook's certificate.
    pub serving: Serving,
    /// Who may call; anybody if not given.
    pub client_ca: Option<ClientCa>,
}

/// Where the webhook listens, and within which limits.
#[derive(Debug)]
pub struct Listeners {
    /// For the API server and the kubelet's probes, with TLS.
    pub admission: TcpListener,
    /// For `/metrics`, without TLS; `None` for no metrics.
    pub metrics: Option<TcpListener>,
    /// What a client may cost, and how the end goes.
    pub limits: Limits,
}

/// Users that may write what others may not, besides EKS's own controllers.
#[derive(Clone, Debug, Default)]
pub struct Editors {
    /// Who may write the annotations of pods' interfaces and groups: the allocator.
    pub pod_annotations: Vec<String>,
    /// Who may edit PolicyEndpoints.
    pub policy_endpoints: Vec<String>,
}

/// A part without which the webhook can't go on has ended.
#[derive(Debug, thiserror::Error)]
#[error("{0} ended by itself")]
pub struct Ended(&'static str);

/// Runs the webhook until `shutdown` ends and the running requests are answered.
///
/// The allocator is asked where `allocator_socket` says, or not at all.
///
/// # Errors
///
/// When one of its parts ends before that; the process should end too and be started anew.
pub async fn run(
    client: Client,
    listeners: Listeners,
    identity: Identity,
    settings: Settings,
    allocator_socket: Option<PathBuf>,
    editors: Editors,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Ended> {
    let Identity { serving, client_ca } = identity;
    let tls = serving.server_config(client_ca.as_ref());
    let metrics = Metrics::with_certificates(serving.metrics().clone());
    let webhook = Arc::new(Webhook {
        editors,
        serving: Some(serving),
        ..Webhook::with_metrics(client.clone(), settings, allocator_socket, metrics)
    });
    let routers = Routers {
        clients: router(webhook.clone()),
        strangers: client_ca.map(|client_ca| Strangers {
            client_ca,
            router: strangers::router(webhook.clone()),
        }),
    };
    let shutdown = async {
        shutdown.await;
        tracing::info!("shutting down");
        // Before anything else, for others have to learn of it.
        webhook.draining.store(true, Ordering::Relaxed);
    };
    let admission = server::serve(
        listeners.admission,
        tls,
        routers,
        listeners.limits,
        webhook.metrics.connections.clone(),
        shutdown,
    );
    tokio::select! {
        () = admission => Ok(()),
        () = watch::run(&webhook.cluster, client) => Err(Ended("the watch of the cluster")),
        () = serve_metrics(listeners.metrics, &webhook) => Err(Ended("the server of the metrics")),
    }
}

impl Webhook {
    #[cfg(test)]
    fn new(client: Client, settings: Settings, allocator_socket: Option<PathBuf>) -> Self {
        Self::with_metrics(client, settings, allocator_socket, Metrics::new())
    }

    fn with_metrics(
        client: Client,
        settings: Settings,
        allocator_socket: Option<PathBuf>,
        metrics: Metrics,
    ) -> Self {
        let allocator =
            allocator_socket.map(|socket| Allocator::new(socket, metrics.allocator.clone()));
        let cluster = Cluster::new(client, &metrics.lookups, metrics.watches.clone());
        Self {
            cluster,
            settings,
            allocator,
            editors: Editors::default(),
            refused: strangers::Refused::new(metrics.callers.clone()),
            metrics,
            serving: None,
            draining: AtomicBool::new(false),
        }
    }
}

fn router(webhook: Arc<Webhook>) -> Router {
    let enforced = |endpoint: Endpoint| format!("{}{ENFORCED}", endpoint.path());
    Router::new()
        .route(Endpoint::MutatePod.path(), post(pods::mutate_pod))
        .route(
            &enforced(Endpoint::MutatePod),
            post(pods::mutate_pod_enforced),
        )
        .route(Endpoint::ValidatePod.path(), post(pods::validate_pod))
        .route(
            &enforced(Endpoint::ValidatePod),
            post(pods::validate_pod_enforced),
        )
        .route(Endpoint::ValidateNode.path(), post(nodes::validate_node))
        .route(
            Endpoint::ValidatePolicy.path(),
            post(policies::validate_policy),
        )
        .route(
            Endpoint::ValidateWorkload.path(),
            post(workloads::validate_workload),
        )
        .route(
            Endpoint::ValidateNetwork.path(),
            post(networks::validate_network),
        )
        .merge(probes(webhook.clone()))
        .with_state(webhook)
}

fn probes<S: Clone + Send + Sync + 'static>(webhook: Arc<Webhook>) -> Router<S> {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(webhook)
}

/// Ready once every watch has brought its first full list and the certificate is trusted, and
/// until the shutdown begins.
async fn ready(State(webhook): State<Arc<Webhook>>) -> Response {
    if webhook.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down").into_response();
    }
    let waiting = webhook.cluster.out_of_sync();
    let message = if !waiting.is_empty() {
        format!("waiting for the first list of {}", waiting.join(", "))
    } else if webhook.serving.as_ref().is_some_and(|it| !it.is_trusted()) {
        "waiting for a certificate whose CA is in every entry of the webhook configurations; \
         the log says so if one of these is missing"
            .to_owned()
    } else {
        return "ok".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
}

async fn serve_metrics(listener: Option<TcpListener>, webhook: &Arc<Webhook>) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let webhook = webhook.clone();
    let router = metrics::router(move || webhook.metrics.encode());
    server::serve_plain(listener, router, Limits::default()).await;
}
