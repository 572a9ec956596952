//! The allocator's answers in JSON, over HTTP on a Unix socket.
//!
//! For the webhook in the same pod and for tools on the same machine: whoever may write to the
//! socket's file may ask. It is read only.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/view` | the [`View`] |
//! | `/v1/capacity` | [`Capacity`] |
//! | `/v1/security-groups?id=...&id=...` | [`Groups`] |
//! | `/v1/admission?id=...&id=...` | [`Availability`] for a pod with these groups |
//! | `/healthz` | 200 while the process answers |
//! | `/readyz` | 200 once the allocator knows the cluster |
//!
//! What can't be answered has a status of 400 or more and `{"error": "why"}`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::groups::{GroupDirectory, GroupStatus};
use super::health;
use super::view::View;
use crate::accept::accept_local;
use crate::ec2::error::Ec2Error;
use crate::policy::availability::{Availability, GroupElsewhere};

/// The most groups that one request asks for: what EC2 is asked for in one call.
pub const MOST_IDS: usize = 200;

/// Connections at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;
/// The most bytes of a request's headers, its line included.
const HEADERS: usize = 16 * 1024;
/// From a connection's start, or the end of an answer, to the end of the next headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// From a request's headers to its answer. What it asks EC2 goes on for the next one.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long running requests have at the end.
const DRAIN: Duration = Duration::from_millis(300);

/// What the answers are made from.
#[derive(Clone)]
pub struct Known {
    /// What the allocator last showed of itself.
    pub view: watch::Receiver<Arc<View>>,
    /// The security groups of EC2.
    pub groups: Arc<GroupDirectory>,
    /// Whether the view is that of the cluster: set once its nodes and pods are known.
    pub is_ready: Arc<AtomicBool>,
}

/// The branch interfaces of the cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Capacity {
    /// Those that pods can still have; `None` if that is not known, or no node has any.
    pub free: Option<usize>,
    /// The nodes that take part.
    pub nodes: Vec<NodeCapacity>,
}

/// The branch interfaces of a node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeCapacity {
    /// The node's name.
    pub name: String,
    /// Branch interfaces that pods can have on it.
    pub capacity: usize,
    /// Pods bound to it that ask for one.
    pub requested: usize,
    /// Pods that it can still take.
    pub free: usize,
}

/// Security groups, in the order in which they were asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Groups {
    /// Each once.
    pub security_groups: Vec<Group>,
}

/// What is known of a security group.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Group {
    /// The id that was asked for.
    pub id: String,
    /// Whether there is such a group.
    pub exists: bool,
    /// The VPC that it is in.
    pub vpc_id: Option<String>,
    /// Whether that is the VPC of the cluster's nodes; `None` while one of them is unknown.
    pub in_cluster_vpc: Option<bool>,
}

impl Known {
    fn capacity(&self) -> Capacity {
        let view = self.view.borrow();
        // Where only interfaces are left of a node, no pod can run.
        let there = view.nodes.iter().filter(|node| !node.name.is_empty());
        let nodes: Vec<_> = there
            .map(|node| NodeCapacity {
                name: node.name.clone(),
                capacity: node.capacity,
                requested: node.requested,
                free: node.capacity.saturating_sub(node.requested),
            })
            .collect();
        let is_known =
            self.is_ready.load(Ordering::Relaxed) && nodes.iter().any(|node| node.capacity > 0);
        Capacity {
            free: is_known.then(|| nodes.iter().map(|node| node.free).sum()),
            nodes,
        }
    }

    async fn groups(&self, ids: &[String]) -> Result<Groups, Ec2Error> {
        let statuses = self.groups.look_up(ids).await?;
        let cluster_vpc = self.view.borrow().vpc_id.clone();
        let groups = ids
            .iter()
            .map(|id| group(id, &statuses, cluster_vpc.as_deref()));
        Ok(Groups {
            security_groups: groups.collect(),
        })
    }

    /// Without EC2 nothing is said of the groups; what is free is known all the same.
    async fn availability(&self, ids: &[String]) -> Availability {
        let groups = match self.groups(ids).await {
            Ok(groups) => groups.security_groups,
            Err(error) => {
                tracing::warn!(%error, "security groups can't be looked up");
                Vec::new()
            }
        };
        let capacity = self.capacity();
        let mut availability = Availability {
            vpc_id: self.view.borrow().vpc_id.clone(),
            free: capacity.free,
            nodes: capacity
                .nodes
                .iter()
                .filter(|node| node.capacity > 0)
                .count(),
            ..Availability::default()
        };
        for group in groups {
            match (group.vpc_id, group.in_cluster_vpc) {
                (None, _) => availability.missing.push(group.id),
                (Some(vpc_id), Some(false)) => availability.elsewhere.push(GroupElsewhere {
                    id: group.id,
                    vpc_id,
                }),
                (Some(_), _) => {}
            }
        }
        availability
    }
}

fn group(id: &str, statuses: &HashMap<String, GroupStatus>, cluster_vpc: Option<&str>) -> Group {
    let vpc_id = match statuses.get(id) {
        Some(GroupStatus::Exists { vpc_id }) => Some(vpc_id.clone()),
        Some(GroupStatus::Missing) | None => None,
    };
    Group {
        id: id.to_owned(),
        exists: vpc_id.is_some(),
        in_cluster_vpc: vpc_id
            .as_deref()
            .zip(cluster_vpc)
            .map(|(its, ours)| its == ours),
        vpc_id,
    }
}

fn router(known: Known) -> Router {
    let health = health::router(known.is_ready.clone());
    Router::new()
        .route("/v1/view", get(view))
        .route("/v1/capacity", get(capacity))
        .route("/v1/security-groups", get(security_groups))
        .route("/v1/admission", get(admission))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is no such path"))
        .with_state(known)
        .merge(health)
}

async fn view(State(known): State<Known>) -> Response {
    let view = known.view.borrow().clone();
    json(StatusCode::OK, view.as_ref())
}

async fn capacity(State(known): State<Known>) -> Response {
    json(StatusCode::OK, &known.capacity())
}

async fn security_groups(State(known): State<Known>, RawQuery(query): RawQuery) -> Response {
    match ids(query) {
        Ok(ids) => answer(known.groups(&ids).await),
        Err(why) => refusal(StatusCode::BAD_REQUEST, &why),
    }
}

async fn admission(State(known): State<Known>, RawQuery(query): RawQuery) -> Response {
    match ids(query) {
        Ok(ids) => json(StatusCode::OK, &known.availability(&ids).await),
        Err(why) => refusal(StatusCode::BAD_REQUEST, &why),
    }
}

/// The values of `id` in a query, each once.
fn ids(query: Option<String>) -> Result<Vec<String>, String> {
    let mut ids = Vec::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "id" {
            let why = format!("there is no parameter {name:?}; give id=sg-..., once or more");
            return Err(why);
        }
        let id = value.into_owned();
        if !ids.contains(&id) {
            ids.push(id);
        }
        if ids.len() > MOST_IDS {
            let why = format!("more than {MOST_IDS} groups; ask in several requests");
            return Err(why);
        }
    }
    Ok(ids)
}

fn answer(answer: Result<impl Serialize, Ec2Error>) -> Response {
    match answer {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

pub(super) fn refusal(status: StatusCode, why: &str) -> Response {
    json(status, &serde_json::json!({ "error": why }))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("an answer is made of strings and numbers");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A socket that is listened on. Its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and number of the file, so that a successor's is not taken for it.
    file: (u64, u64),
}

/// Why a socket can't be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// There is no such folder.
    #[error("can't listen on {}: its folder does not exist; create it, or name another path", .0.display())]
    NoFolder(PathBuf),
    /// Another process listens there.
    #[error("can't listen on {}: another process does; end it, or name another path", .0.display())]
    InUse(PathBuf),
    /// The file is none that we may replace.
    #[error("can't listen on {}: the file there is no socket; remove it, or name another path", .0.display())]
    NoSocket(PathBuf),
    /// Anything else.
    #[error("can't listen on {}: {error}", .path.display())]
    Failed {
        /// The socket's file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Listens on a socket that its owner and group may write to.
///
/// A file that a dead process left is replaced.
///
/// # Errors
///
/// See [`BindError`].
pub async fn bind(path: &Path) -> Result<Listener, BindError> {
    if path
        .parent()
        .is_some_and(|folder| folder != Path::new("") && !folder.is_dir())
    {
        return Err(BindError::NoFolder(path.into()));
    }
    let failed = |error| BindError::Failed {
        path: path.into(),
        error,
    };
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(BindError::NoSocket(path.into()));
        }
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "replacing the socket of a dead process");
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Also one that has no room for us just now.
            Ok(_) | Err(_) => return Err(BindError::InUse(path.into())),
        }
    }
    let socket = UnixListener::bind(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(path.into()),
        _ => failed(error),
    })?;
    let file = file_at(path).map_err(failed)?;
    let listener = Listener {
        socket,
        path: path.into(),
        file,
    };
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if file_at(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket is left behind");
        }
    }
}

/// Serves until `shutdown` ends, then finishes the requests that run, and removes the socket's
/// file.
pub async fn serve(listener: Listener, known: Known, shutdown: impl Future<Output = ()>) {
    let router = router(known);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped at the end, and with it what still runs.
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // Tasks that ended are let go; the set would grow for ever otherwise.
            while connections.try_join_next().is_some() {}
            let place = places.clone().acquire_owned().await.expect("never closed");
            let stream = accept_local(&listener.socket).await;
            connections.spawn(connection(
                stream,
                router.clone(),
                graceful.watcher(),
                place,
            ));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::debug!("requests still ran at the end and were cut off");
    }
}

async fn connection(
    stream: UnixStream,
    router: Router,
    watcher: Watcher,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let answer = router.clone().oneshot(request);
        async {
            Ok::<_, Infallible>(match tokio::time::timeout(ANSWER_WITHIN, answer).await {
                Ok(Ok(answer)) => answer,
                Err(_) => {
                    let why = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
                    refusal(StatusCode::SERVICE_UNAVAILABLE, &why)
                }
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::groups::tests::{Groups as FakeEc2, forbidden};
    use crate::allocator::view::NodeView;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    const HERE: &str = "sg-0000000a";
    const THERE: &str = "sg-0000000b";
    const NOWHERE: &str = "sg-0000000c";

    struct Allocator {
        ec2: Arc<FakeEc2>,
        view: watch::Sender<Arc<View>>,
        is_ready: Arc<AtomicBool>,
        folder: tempfile::TempDir,
        shutdown: oneshot::Sender<()>,
        server: JoinHandle<()>,
    }

    impl Allocator {
        async fn start() -> Self {
            let ec2 = FakeEc2::new(&[(HERE, "vpc-1"), (THERE, "vpc-2")]);
            let (view, shown) = watch::channel(Arc::default());
            let is_ready = Arc::new(AtomicBool::new(false));
            let known = Known {
                view: shown,
                groups: Arc::new(GroupDirectory::new(ec2.clone())),
                is_ready: is_ready.clone(),
            };
            let folder = tempfile::tempdir().unwrap();
            let listener = bind(&folder.path().join("socket")).await.unwrap();
            let (shutdown, told) = oneshot::channel::<()>();
            let server = tokio::spawn(serve(listener, known, async {
                let _ = told.await;
            }));
            Self {
                ec2,
                view,
                is_ready,
                folder,
                shutdown,
                server,
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("socket")
        }

        fn show(&self, nodes: &[(&str, usize, usize)]) {
            let nodes = nodes.iter().map(|(name, capacity, requested)| NodeView {
                name: name.to_string(),
                capacity: *capacity,
                requested: *requested,
                ..NodeView::default()
            });
            let view = View {
                vpc_id: Some("vpc-1".to_owned()),
                nodes: nodes.collect(),
                ..View::default()
            };
            self.view.send_replace(Arc::new(view));
            self.is_ready.store(true, Ordering::Relaxed);
        }

        async fn get(&self, path: &str) -> (u16, String) {
            let mut stream = UnixStream::connect(self.path()).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head[9..12].parse().unwrap(), body.to_owned())
        }

        async fn json(&self, path: &str) -> (u16, Value) {
            let (status, body) = self.get(path).await;
            (status, serde_json::from_str(&body).unwrap())
        }
    }

    #[tokio::test]
    async fn nothing_is_claimed_before_the_cluster_is_known() {
        let allocator = Allocator::start().await;
        assert_eq!(allocator.get("/healthz").await, (200, "ok".to_owned()));
        let why = json!({"error": "waiting for the cluster's nodes and pods"});
        assert_eq!(allocator.json("/readyz").await, (503, why));
        let nothing = json!({"free": null, "nodes": []});
        assert_eq!(allocator.json("/v1/capacity").await, (200, nothing));
        let groups = json!({"security_groups": [
            {"id": THERE, "exists": true, "vpc_id": "vpc-2", "in_cluster_vpc": null}
        ]});
        let path = format!("/v1/security-groups?id={THERE}");
        assert_eq!(allocator.json(&path).await, (200, groups));
        let availability = json!({
            "missing": [NOWHERE], "elsewhere": [], "vpc_id": null, "free": null, "nodes": 0
        });
        let path = format!("/v1/admission?id={THERE}&id={NOWHERE}");
        assert_eq!(allocator.json(&path).await, (200, availability));
    }

    #[tokio::test]
    async fn capacity_is_that_of_the_nodes_that_are_there() {
        let allocator = Allocator::start().await;
        for (nodes, free) in [
            (&[("full", 9, 9), ("half", 9, 4)][..], json!(5)),
            (&[("over", 9, 11), ("full", 9, 9)], json!(0)),
            (&[("full", 9, 9), ("none", 0, 0), ("", 9, 0)], json!(0)),
            (&[("none", 0, 3)], json!(null)),
        ] {
            allocator.show(nodes);
            let (_, capacity) = allocator.json("/v1/capacity").await;
            assert_eq!(capacity["free"], free, "{capacity:#}");
            let (_, availability) = allocator.json("/v1/admission").await;
            assert_eq!(availability["free"], free);
            let able = nodes.iter().filter(|node| node.1 > 0 && !node.0.is_empty());
            assert_eq!(availability["nodes"], able.count());
        }
        let node = json!({"name": "half", "capacity": 9, "requested": 4, "free": 5});
        allocator.show(&[("half", 9, 4)]);
        let (_, capacity) = allocator.json("/v1/capacity").await;
        assert_eq!(capacity, json!({"free": 5, "nodes": [node]}));
        let (status, view) = allocator.json("/v1/view").await;
        let view: View = serde_json::from_value(view).unwrap();
        assert_eq!((status, &view), (200, allocator.view.borrow().as_ref()));
        assert_eq!(allocator.get("/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn groups_are_told_apart_by_vpc() {
        let allocator = Allocator::start().await;
        allocator.show(&[]);
        let path = format!("id={NOWHERE}&id={THERE}&id=sg-1&id={HERE}&id={HERE}");
        let (_, groups) = allocator.json(&format!("/v1/security-groups?{path}")).await;
        let nowhere =
            |id| json!({"id": id, "exists": false, "vpc_id": null, "in_cluster_vpc": null});
        let expected = json!({"security_groups": [
            nowhere(NOWHERE),
            {"id": THERE, "exists": true, "vpc_id": "vpc-2", "in_cluster_vpc": false},
            nowhere("sg-1"),
            {"id": HERE, "exists": true, "vpc_id": "vpc-1", "in_cluster_vpc": true},
        ]});
        assert_eq!(groups, expected);
        let (_, availability) = allocator.json(&format!("/v1/admission?{path}")).await;
        let expected = json!({
            "missing": [NOWHERE, "sg-1"],
            "elsewhere": [{"id": THERE, "vpc_id": "vpc-2"}],
            "vpc_id": "vpc-1",
            "free": null,
            "nodes": 0
        });
        assert_eq!(availability, expected);
    }

    #[tokio::test]
    async fn what_can_not_be_answered_is_refused_with_the_reason() {
        let allocator = Allocator::start().await;
        let many = |count| {
            let ids: Vec<_> = (0..count).map(|id| format!("id=sg-{id:017x}")).collect();
            format!("/v1/admission?{}", ids.join("&"))
        };
        assert_eq!(allocator.get(&many(MOST_IDS)).await.0, 200);
        for (path, status, why) in [
            (
                many(MOST_IDS + 1),
                400,
                "more than 200 groups; ask in several requests",
            ),
            (
                "/v1/admission?ids=a".to_owned(),
                400,
                "there is no parameter \"ids\"; give id=sg-..., once or more",
            ),
            ("/v2".to_owned(), 404, "there is no such path"),
        ] {
            assert_eq!(allocator.json(&path).await, (status, json!({"error": why})));
        }
        *allocator.ec2.error.lock().unwrap() = Some(forbidden());
        let why = forbidden().to_string();
        let path = format!("/v1/security-groups?id={HERE}");
        assert_eq!(allocator.json(&path).await, (503, json!({"error": why})));

        // What is free is known without EC2.
        allocator.show(&[("half", 9, 4)]);
        let path = format!("/v1/admission?id={HERE}");
        let (status, availability) = allocator.json(&path).await;
        assert_eq!((status, &availability["free"]), (200, &json!(5)));
        assert_eq!(availability["missing"], json!([]));
    }

    #[tokio::test]
    async fn request_whose_headers_do_not_end_is_cut_off() {
        let allocator = Allocator::start().await;
        let mut stream = UnixStream::connect(allocator.path()).await.unwrap();
        let endless = format!("GET /healthz HTTP/1.1\r\nEndless: {}", "a".repeat(HEADERS));
        let cut_off = async {
            // It may come while we still write.
            let _ = stream.write_all(endless.as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let in_time = tokio::time::timeout(HEADERS_WITHIN / 2, cut_off).await;
        assert!(in_time.is_ok(), "by its size, not by the time");
    }

    #[tokio::test]
    async fn socket_is_for_owner_and_group_and_goes_with_its_server() {
        let allocator = Allocator::start().await;
        let path = allocator.path();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let idle = UnixStream::connect(&path).await.unwrap();
        allocator.shutdown.send(()).unwrap();
        allocator.server.await.unwrap();
        assert!(!path.exists());
        drop(idle);
    }

    #[tokio::test]
    async fn only_the_socket_of_a_dead_process_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Its file stays behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind(&path).await.unwrap();
        let refused = bind(&path).await.unwrap_err().to_string();
        assert!(refused.ends_with("another process does; end it, or name another path"));
        assert!(
            UnixStream::connect(&path).await.is_ok(),
            "the first goes on"
        );

        fs::remove_file(&path).unwrap();
        let second = bind(&path).await.unwrap();
        drop(first);
        assert!(path.exists(), "it is the second's by now");
        drop(second);
        assert!(!path.exists());

        fs::write(&path, "mine").unwrap();
        let refused = bind(&path).await.unwrap_err();
        assert!(matches!(refused, BindError::NoSocket(_)), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let refused = bind(&folder.path().join("none/socket")).await.unwrap_err();
        assert!(matches!(refused, BindError::NoFolder(_)), "{refused}");
    }
}
