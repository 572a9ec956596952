//! The allocator starts before what it needs is there: it does what it can do without, tells
//! what is missing, and goes on by itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use axum::Router;
use axum::routing::{get, put};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sgp::dev::cloud::{CLUSTER_NAME, REGION};
use sgp::dev::control_plane::{Process, free_port};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::absent_webhook::until_enforced;
use crate::stage::{Setting, Stage, ask, ask_for_text, eventually};

/// A stage whose allocator has made the trunks and is gone, and what takes its place: on the
/// same socket and the same port for metrics.
struct Replaced {
    stage: Stage,
    socket: PathBuf,
    metrics_port: u16,
    command: Command,
}

impl Replaced {
    async fn start(setting: Setting) -> Self {
        let lease_duration = setting.lease_duration.as_secs_f64();
        let mut stage = Stage::start(setting).await;
        let first = stage.sandbox_mut().allocator().unwrap();
        first.process().kill().unwrap();
        let (socket, metrics_port) = (first.socket().to_owned(), first.metrics_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
        stage.sandbox().cloud().give_to(&mut command);
        command
            .args(["allocator", "--cluster-name", CLUSTER_NAME])
            .arg("--socket")
            .arg(&socket)
            .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
            .arg(format!("--lease-duration={lease_duration}"));
        Self {
            stage,
            socket,
            metrics_port,
            command,
        }
    }

    /// Starts the allocator as `set` has it.
    fn spawn(mut self, kubeconfig: &Path, set: impl FnOnce(&mut Command)) -> (Stage, Started) {
        self.command.arg("--kubeconfig").arg(kubeconfig);
        set(&mut self.command);
        let control_plane = self.stage.sandbox().control_plane();
        let process = control_plane.spawn("late", self.command).unwrap();
        let started = Started {
            process,
            socket: self.socket,
            metrics_port: self.metrics_port,
        };
        (self.stage, started)
    }
}

struct Started {
    process: Process,
    socket: PathBuf,
    metrics_port: u16,
}

impl Started {
    async fn until_it_answers(&self) {
        // It listens there last.
        let address = (Ipv4Addr::LOCALHOST, self.metrics_port);
        let connect = async || TcpStream::connect(address).await.ok();
        eventually("the allocator to answer", connect).await;
    }

    async fn until_ready(&self) {
        let is_ready = async || ask_for_text(&self.socket, "/readyz").await == "ok";
        eventually("the allocator to be ready", async || {
            is_ready().await.then_some(())
        })
        .await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.process.log_path()).unwrap()
    }

    async fn until_log(&self, words: &str) {
        let what = format!("{words:?} in the log");
        eventually(&what, async || self.log().contains(words).then_some(())).await;
    }

    fn assert_runs(&mut self) {
        let ended = self.process.try_wait().unwrap();
        assert_eq!(ended, None, "{}", self.log());
    }
}

fn without_region(command: &mut Command) {
    command.env_remove("AWS_REGION");
    command.env_remove("AWS_DEFAULT_REGION");
}

/// What the metadata of an instance says of its region, at the paths that Amazon's guide "Use
/// the Instance Metadata Service" gives.
async fn serve_metadata(port: u16) {
    let token = async || ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], "token");
    let router = Router::new()
        .route("/latest/api/token", put(token))
        .route("/latest/meta-data/placement/region", get(async || REGION));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let listener = listener.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
}

const NO_REGION: &str = "NoRegion: no AWS region is known; set AWS_REGION";

#[tokio::test]
async fn allocator_without_a_region_closes_namespaces_and_makes_interfaces_once_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("config");
    let replaced = Replaced::start(Setting::default()).await;
    let kubeconfig = replaced.stage.sandbox().service_account_kubeconfig();
    let kubeconfig = kubeconfig.to_owned();
    let (stage, mut allocator) = replaced.spawn(&kubeconfig, |command| {
        without_region(command);
        command.env("AWS_CONFIG_FILE", &profile);
    });

    allocator.until_it_answers().await;
    stage.until_metric("sgp_allocator_leading 1").await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    until_enforced(&scene.client, &scene.name).await;
    stage.simulator().reset_calls();
    let pod = scene.pod("pod", stage.node()).await;
    let uid = pod.uid().unwrap();
    let event = stage.until_event_that(&uid, "BranchAllocationFailed", |note| {
        note.contains(NO_REGION)
    });
    assert_eq!(event.await.type_.as_deref(), Some("Warning"));
    allocator.until_log(NO_REGION).await;
    let counted = "action=\"DescribeNetworkInterfaces\",outcome=\"retry\"";
    let metrics = stage.metrics().await;
    assert!(metrics.contains(counted), "{metrics}");
    allocator.until_ready().await;
    let path = format!("/v1/security-groups?id={}", stage.groups().green);
    let refused = ask(&allocator.socket, &path).await;
    let why = refused["error"].as_str().unwrap_or_default();
    assert!(why.contains(NO_REGION), "{refused}");
    assert_eq!(stage.calls(), BTreeMap::new(), "there is no EC2 to ask");
    allocator.assert_runs();

    fs::write(&profile, format!("[default]\nregion = {REGION}\n")).unwrap();
    let begin = Instant::now();
    scene.until_runs("pod").await;
    println!("with a region the pod ran after {:?}", begin.elapsed());
    assert_eq!(stage.assert_consistent().await, []);
    allocator.assert_runs();
}

#[tokio::test]
async fn allocator_beside_the_one_of_eks_needs_a_region_only_to_know_groups() {
    let replaced = Replaced::start(Setting::default()).await;
    let kubeconfig = replaced.stage.sandbox().service_account_kubeconfig();
    let kubeconfig = kubeconfig.to_owned();
    let metadata_port = free_port().unwrap();
    let (stage, mut allocator) = replaced.spawn(&kubeconfig, |command| {
        without_region(command);
        let url = format!("http://127.0.0.1:{metadata_port}");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", url);
        command.env_remove("AWS_EC2_METADATA_DISABLED");
        command.arg("--eni-backend=eks");
    });

    allocator.until_it_answers().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    until_enforced(&scene.client, &scene.name).await;
    let path = format!("/v1/admission?id={}&id=sg-00000000", stage.groups().green);
    let unknown = ask(&allocator.socket, &path).await;
    assert_eq!(unknown["missing"], json!([]));
    allocator.until_log(NO_REGION).await;
    allocator.assert_runs();

    serve_metadata(metadata_port).await;
    eventually("the groups to be known", async || {
        let answer = ask(&allocator.socket, &path).await;
        let is_known = answer["vpc_id"].is_string();
        (is_known && answer["missing"] == json!(["sg-00000000"])).then_some(())
    })
    .await;
    allocator.assert_runs();
}

/// Everything that binds roles to the ServiceAccount.
async fn bindings(client: &Client) -> Vec<ClusterRoleBinding> {
    let api = Api::<ClusterRoleBinding>::all(client.clone());
    let all = api.list(&Default::default()).await.unwrap().items;
    let is_ours = |binding: &ClusterRoleBinding| binding.name_any().starts_with("sgp");
    all.into_iter().filter(is_ours).collect()
}

#[tokio::test]
async fn allocator_waits_for_an_api_server_that_it_does_not_reach_and_for_its_rights() {
    let setting = Setting {
        nodes: Vec::new(),
        ..Setting::default()
    };
    let replaced = Replaced::start(setting).await;
    let client = replaced.stage.client();
    let name = {
        let scene = replaced.stage.scene().await;
        scene.policy("any", &[&replaced.stage.groups().green]).await;
        scene.name
    };
    let api = Api::<ClusterRoleBinding>::all(client.clone());
    let bindings = bindings(&client).await;
    assert!(!bindings.is_empty());
    for binding in &bindings {
        let parameters = DeleteParams::default();
        api.delete(&binding.name_any(), &parameters).await.unwrap();
    }
    let sandbox = replaced.stage.sandbox();
    let upstream = sandbox.control_plane().client_config().cluster_url.clone();
    let upstream = upstream.authority().unwrap().to_string();
    let port = free_port().unwrap();
    let kubeconfig = fs::read_to_string(sandbox.service_account_kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{port}"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let (stage, mut allocator) = replaced.spawn(&path, |_| ());

    allocator.until_it_answers().await;
    allocator.until_log("watch failed").await;
    let why = ask(&allocator.socket, "/readyz").await;
    assert!(why["error"].is_string(), "{why}");
    allocator.assert_runs();

    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut inner, _) = listener.accept().await.unwrap();
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut outer = TcpStream::connect(upstream).await.unwrap();
                let _ = copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    });
    allocator.until_log("forbidden").await;
    allocator.assert_runs();

    for mut binding in bindings {
        binding.metadata.resource_version = None;
        api.create(&PostParams::default(), &binding).await.unwrap();
    }
    until_enforced(&client, &name).await;
    stage.until_metric("sgp_allocator_leading 1").await;
    allocator.until_ready().await;
    allocator.assert_runs();
}
