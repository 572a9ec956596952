//! A cluster with our custom resources, the webhook and, where they are wanted, nodes, a
//! simulated EC2 and the allocator, ready to be tried or tested.
//!
//! The webhook and the allocator are the real program, started as processes of their own with
//! the rights of the manifests' ServiceAccount and no others, so that a missing rule shows
//! here first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    Container, Node, Pod, PodSpec, Service as ServiceObject, ServiceAccount, ServiceSpec,
};
use kube::api::{Api, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{AuthInfo, Kubeconfig, NamedAuthInfo};
use kube::core::ApiResource;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::allocator::{self, Allocator, AllocatorOptions};
use super::cloud::{Instance, SimulatedCloud};
use super::control_plane::{Binaries, ControlPlane, Options, Process, WebhookClient};
use super::nodes::{self, NodeGroup, SandboxNode};
use super::service::Service;
use super::webhook::{Replica, ReplicaOptions, ReplicaTemplate};
use super::{manifests, private_file};
use crate::api::names::{FARGATE_POD_SG, FARGATE_PROFILE};
use crate::ec2::simulator::Simulator;

const MUTATING: &str = include_str!("../../manifests/base/mutating-webhook.yaml");
const VALIDATING: &str = include_str!("../../manifests/base/validating-webhook.yaml");

const NAMESPACE: &str = "sgp-system";
const SERVICE_ACCOUNT: &str = "sgp";
/// The Service that the webhook configurations refer to.
const SERVICE: &str = "sgp-webhook";
/// What the webhook's certificate is for: the API server's name for it, and those of who calls
/// it here without a Service.
const SERVING_NAMES: [&str; 3] = ["sgp-webhook.sgp-system.svc", "localhost", "127.0.0.1"];

/// The name of the allocator that the webhook asks.
const ALLOCATOR: &str = "allocator";
/// Where the simulated EC2 is kept in a data folder.
const CLOUD_FILE: &str = "ec2.json";

/// How long the API server may take to call a webhook that it has been told of.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a program of ours has to end in order.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How a sandbox is started.
#[derive(Clone, Debug)]
pub struct SandboxOptions {
    /// The `sgp` program to run the webhook and the allocator with.
    pub sgp: PathBuf,
    /// Keeps the cluster's state for the next start.
    pub data_dir: Option<PathBuf>,
    /// Further arguments for `sgp webhook`.
    pub webhook_arguments: Vec<String>,
    /// How many replicas of the webhook there are.
    pub webhook_replicas: usize,
    /// The client certificate that the API server shows the webhook, and its private key.
    /// Without it, it shows none.
    pub webhook_client: Option<ClientCertificate>,
    /// Nodes, and the simulated EC2 that they are instances of. Without it no pod runs, and
    /// the start is faster.
    pub cloud: Option<CloudOptions>,
    /// The allocator, which needs the cloud.
    pub allocator: Option<AllocatorOptions>,
}

/// A client certificate in files, as PEM. The API server reads them for each connection.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a sandbox with nodes is like.
#[derive(Clone, Debug, Default)]
pub struct CloudOptions {
    /// The nodes that there must be at least: what a data folder has already counts. By
    /// default what it has, or five m5.large in a new cloud.
    pub nodes: Option<Vec<NodeGroup>>,
    /// Whether the CNI plugin is set to take pods' addresses from subnets of their own.
    pub custom_networking: bool,
}

impl SandboxOptions {
    /// The webhook alone, with nothing to keep.
    pub fn new(sgp: impl Into<PathBuf>) -> Self {
        Self {
            sgp: sgp.into(),
            data_dir: None,
            webhook_arguments: Vec::new(),
            webhook_replicas: 1,
            webhook_client: None,
            cloud: None,
            allocator: None,
        }
    }
}

/// What becomes of the instance of a node that is removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InstanceFate {
    /// It runs on.
    Kept,
    /// It is terminated, after the Node object is gone.
    Terminated,
}

/// A running sandbox. What it started ends with it.
#[derive(Debug)]
pub struct Sandbox {
    // Fields are dropped from top to bottom: who talks to somebody ends before them.
    allocator: Option<Allocator>,
    webhooks: Vec<Replica>,
    service: Service,
    cloud: Option<SimulatedCloud>,
    control_plane: ControlPlane,
    webhook_template: ReplicaTemplate,
    /// How many replicas were ever started, for their names.
    webhooks_started: usize,
    nodes: Vec<SandboxNode>,
    allocator_options: AllocatorOptions,
}

impl Sandbox {
    /// Starts everything and waits until a pod's creation goes through the webhook and the
    /// nodes are Ready. Each step is announced to `progress` before it begins.
    pub async fn start(
        binaries: &Binaries,
        options: SandboxOptions,
        progress: impl Fn(&str),
    ) -> anyhow::Result<Self> {
        progress("starting the control plane");
        let service = Service::start()?;
        let webhook_client = options.webhook_client.map(|client| WebhookClient {
            host: format!("{SERVICE}.{NAMESPACE}.svc:{}", service.port()),
            certificate: client.certificate,
            key: client.key,
        });
        let control_plane = Options {
            data_dir: options.data_dir.clone(),
            kubelets: options.cloud.as_ref().map(|_| nodes::KUBELETS),
            webhook_client,
        };
        let control_plane = ControlPlane::start(binaries, control_plane).await?;
        progress("applying the manifests");
        let cloud_options = options.cloud.as_ref();
        let custom_networking = cloud_options.is_some_and(|cloud| cloud.custom_networking);
        manifests::apply(&control_plane, custom_networking).await?;
        let kubeconfig = service_account_kubeconfig(&control_plane).await?;

        progress("starting the webhook");
        // Nobody has to learn of its end.
        let mut arguments = vec!["--shutdown-delay=0".to_owned()];
        if options.allocator.is_some() {
            let socket = allocator::socket(&control_plane, ALLOCATOR);
            arguments.push(format!("--allocator-socket={}", socket.display()));
        }
        arguments.extend(SERVING_NAMES.map(|name| format!("--tls-name={name}")));
        arguments.extend(options.webhook_arguments);
        let mut sandbox = Self {
            allocator: None,
            webhooks: Vec::new(),
            service,
            cloud: None,
            control_plane,
            webhook_template: ReplicaTemplate {
                sgp: options.sgp,
                kubeconfig,
                arguments,
            },
            webhooks_started: 0,
            nodes: Vec::new(),
            allocator_options: options.allocator.clone().unwrap_or_default(),
        };
        for _ in 0..options.webhook_replicas {
            sandbox.spawn_webhook(&ReplicaOptions::default())?;
        }
        sandbox.register_webhook().await?;
        if let Some(cloud) = cloud_options {
            // Meanwhile the webhook gets ready.
            let state = options.data_dir.map(|folder| folder.join(CLOUD_FILE));
            sandbox.start_cloud(cloud, state, &progress).await?;
            progress("waiting for the webhook and the nodes");
        }
        sandbox.wait_for_webhook().await?;
        if options.allocator.is_some() {
            progress("starting the allocator");
            let mut allocator = sandbox.spawn_allocator(ALLOCATOR, &[])?;
            allocator.wait_until_it_listens().await?;
            sandbox.allocator = Some(allocator);
        }
        nodes::wait_until_ready(&sandbox.control_plane, &sandbox.nodes).await?;
        sandbox.control_plane.check()?;
        Ok(sandbox)
    }

    async fn start_cloud(
        &mut self,
        options: &CloudOptions,
        state: Option<PathBuf>,
        progress: &impl Fn(&str),
    ) -> anyhow::Result<()> {
        progress("starting the simulated EC2");
        let cloud = self.cloud.insert(SimulatedCloud::start(state).await?);
        if options.custom_networking {
            manifests::apply_eni_configs(&self.control_plane, cloud.network()).await?;
        }
        progress("adding the nodes");
        self.nodes = nodes::provide(&self.control_plane, cloud, options.nodes.as_deref()).await?;
        cloud.forget_own_calls();
        Ok(())
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The replicas of the webhook, the oldest first. Whichever is dropped is killed.
    pub fn webhooks(&mut self) -> &mut Vec<Replica> {
        &mut self.webhooks
    }

    /// The process of the oldest replica of the webhook, for who has only one.
    ///
    /// # Panics
    ///
    /// When there is none any more.
    #[track_caller]
    pub fn webhook(&mut self) -> &mut Process {
        let oldest = self.webhooks.first_mut();
        oldest.expect("a replica of the webhook").process()
    }

    /// Starts a further replica of the webhook, which the API server calls as soon as it is
    /// ready. The first one's log is `webhook.log`, the second one's `webhook-2.log`.
    ///
    /// # Errors
    ///
    /// When the program can't be started.
    pub fn spawn_webhook(&mut self, options: &ReplicaOptions) -> anyhow::Result<&mut Replica> {
        self.webhooks_started += 1;
        let name = match self.webhooks_started {
            1 => "webhook".to_owned(),
            number => format!("webhook-{number}"),
        };
        let replica = Replica::spawn(
            &name,
            &self.webhook_template,
            options,
            &self.control_plane,
            &self.service,
        )?;
        self.webhooks.push(replica);
        Ok(self.webhooks.last_mut().expect("just added"))
    }

    /// Puts a new replica in the place of each, as a Deployment does by default that may have
    /// one more for the while but none less: one is started and gets ready, then one is ended.
    ///
    /// # Errors
    ///
    /// When a new one does not get ready, or an old one does not end with exit code 0.
    pub async fn roll_webhooks(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.webhooks.len() {
            let new = self.spawn_webhook(&ReplicaOptions::default())?;
            new.wait_until_ready().await?;
            let mut old = self.webhooks.remove(0);
            let log = old.log_path().to_owned();
            let name = old.process().name().to_owned();
            let status = old.stop().await?;
            ensure!(
                status.success(),
                "{name} ended with {status}; its log is {}",
                log.display()
            );
        }
        Ok(())
    }

    /// The port on 127.0.0.1 on which the webhook answers the API server; that of the oldest
    /// replica.
    ///
    /// # Panics
    ///
    /// When there is none any more.
    #[track_caller]
    pub fn webhook_port(&self) -> u16 {
        self.oldest_webhook().port()
    }

    /// The port on 127.0.0.1 on which the webhook serves its metrics; that of the oldest
    /// replica.
    ///
    /// # Panics
    ///
    /// When there is none any more.
    #[track_caller]
    pub fn metrics_port(&self) -> u16 {
        self.oldest_webhook().metrics_port()
    }

    #[track_caller]
    fn oldest_webhook(&self) -> &Replica {
        self.webhooks.first().expect("a replica of the webhook")
    }

    /// A kubeconfig with exactly the rights of our ServiceAccount.
    pub fn service_account_kubeconfig(&self) -> &Path {
        &self.webhook_template.kubeconfig
    }

    /// The simulated EC2 with its network.
    ///
    /// # Panics
    ///
    /// In a sandbox that was started without.
    #[track_caller]
    pub fn cloud(&self) -> &SimulatedCloud {
        self.cloud.as_ref().expect("a sandbox with a simulated EC2")
    }

    /// The simulator of EC2, for faults, settings and what it was called for.
    ///
    /// # Panics
    ///
    /// In a sandbox that was started without.
    #[track_caller]
    pub fn simulator(&self) -> &Simulator {
        self.cloud().simulator()
    }

    /// The nodes that there were at the start.
    pub fn nodes(&self) -> &[SandboxNode] {
        &self.nodes
    }

    /// Runs an instance and adds it as a node, named as EC2 names the instance. Returns when
    /// the node is Ready.
    ///
    /// # Errors
    ///
    /// When the type or the zone is unknown, or the node does not get Ready.
    ///
    /// # Panics
    ///
    /// In a sandbox that was started without a simulated EC2.
    pub async fn add_node(&self, instance_type: &str, zone: &str) -> anyhow::Result<SandboxNode> {
        let instance = self.cloud().run_instance(instance_type, zone).await?;
        let name = instance.private_dns_name.clone();
        self.register_node(&name, instance).await
    }

    /// Makes a Node object of any name for an instance, as a kubelet that starts. Returns when
    /// the node is Ready.
    ///
    /// # Errors
    ///
    /// When the API server refuses the node, or it does not get Ready.
    pub async fn register_node(
        &self,
        name: &str,
        instance: Instance,
    ) -> anyhow::Result<SandboxNode> {
        let node = nodes::register(&self.control_plane, name, instance).await?;
        let nodes = std::slice::from_ref(&node);
        nodes::wait_until_ready(&self.control_plane, nodes).await?;
        Ok(node)
    }

    /// Deletes a node's object. Its pods are left to the controllers, as on a real cluster.
    ///
    /// # Errors
    ///
    /// When there is no such node, or no such instance.
    pub async fn remove_node(&self, node: &SandboxNode, fate: InstanceFate) -> anyhow::Result<()> {
        let api = Api::<Node>::all(self.control_plane.client());
        let deleted = api.delete(&node.name, &DeleteParams::default()).await;
        deleted.with_context(|| format!("the node {} can't be deleted", node.name))?;
        match fate {
            InstanceFate::Kept => Ok(()),
            InstanceFate::Terminated => self.cloud().terminate_instance(&node.instance.id).await,
        }
    }

    /// The allocator that the webhook asks, if it was started.
    pub fn allocator(&mut self) -> Option<&mut Allocator> {
        self.allocator.as_mut()
    }

    /// Starts a further allocator, with a socket and a log that are named after it and with
    /// further arguments. It ends with its handle, and with the sandbox at the latest.
    ///
    /// # Errors
    ///
    /// When the program can't be started.
    ///
    /// # Panics
    ///
    /// In a sandbox that was started without a simulated EC2.
    pub fn spawn_allocator(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Allocator> {
        let mut options = self.allocator_options.clone();
        let further = arguments.iter().map(|argument| argument.to_string());
        options.arguments.extend(further);
        let (control_plane, cloud) = (&self.control_plane, self.cloud());
        Allocator::spawn(
            name,
            &self.webhook_template.sgp,
            control_plane,
            cloud,
            self.service_account_kubeconfig(),
            &options,
        )
        .with_context(|| format!("{} can't be started", self.webhook_template.sgp.display()))
    }

    /// Ends everything: our own programs in order, then the rest.
    pub fn stop(mut self) {
        // Whatever does not end in time is killed with the control plane.
        if let Some(allocator) = &mut self.allocator {
            let _ = allocator.process().stop(STOP_GRACE);
        }
        for webhook in &mut self.webhooks {
            let _ = webhook.process().stop(STOP_GRACE);
        }
        drop(self);
    }

    /// Registers the webhook as the manifests have it, behind the port of our Service.
    async fn register_webhook(&self) -> anyhow::Result<()> {
        let service = ServiceObject {
            metadata: ObjectMeta {
                name: Some(SERVICE.into()),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                type_: Some("ExternalName".into()),
                external_name: Some("localhost".into()),
                ..ServiceSpec::default()
            }),
            ..ServiceObject::default()
        };
        let api = Api::<ServiceObject>::namespaced(self.control_plane.client(), NAMESPACE);
        let parameters = PatchParams::apply(manifests::FIELD_MANAGER).force();
        let patch = Patch::Apply(&service);
        api.patch(SERVICE, &parameters, &patch).await?;
        self.register::<MutatingWebhookConfiguration>(MUTATING)
            .await?;
        self.register::<ValidatingWebhookConfiguration>(VALIDATING)
            .await
    }

    async fn register<K: Resource<DynamicType = ()>>(&self, manifest: &str) -> anyhow::Result<()> {
        let mut configuration: DynamicObject = serde_saphyr::from_str(manifest)?;
        let webhooks = configuration.data["webhooks"].as_array_mut();
        for webhook in webhooks.into_iter().flatten() {
            let client_config = &mut webhook["clientConfig"];
            let name = client_config["service"]["name"].as_str();
            ensure!(name == Some(SERVICE), "a webhook entry of another Service");
            client_config["service"]["port"] = json!(self.service.port());
        }
        let resource = ApiResource::erase::<K>(&());
        let api = Api::<DynamicObject>::all_with(self.control_plane.client(), &resource);
        let parameters = PatchParams::apply(manifests::FIELD_MANAGER).force();
        let name = configuration.name_any();
        api.patch(&name, &parameters, &Patch::Apply(&configuration))
            .await?;
        Ok(())
    }

    /// Waits until the API server asks the webhook, which shows in a dry run of a Fargate
    /// pod: the webhook never leaves it an annotation that it brought along.
    async fn wait_for_webhook(&mut self) -> anyhow::Result<()> {
        for webhook in &mut self.webhooks {
            webhook.wait_until_ready().await?;
        }
        const BROUGHT: &str = "brought-along";
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some("sgp-dev-probe".into()),
                labels: Some(BTreeMap::from([(FARGATE_PROFILE.into(), "probe".into())])),
                annotations: Some(BTreeMap::from([(FARGATE_POD_SG.into(), BROUGHT.into())])),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "probe".into(),
                    image: Some("probe".into()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        let api = Api::<Pod>::namespaced(self.control_plane.client(), "default");
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let mut last = String::new();
        let asked = async {
            loop {
                // Before it trusts the webhook's CA, the API server lets pods in unasked.
                last = match api.create(&dry_run, &pod).await {
                    Ok(admitted) => match admitted.annotations().get(FARGATE_POD_SG) {
                        Some(ids) if ids == BROUGHT => "it let a pod in unasked".to_owned(),
                        _ => return Ok(()),
                    },
                    Err(error) => format!("it refused a pod: {error}"),
                };
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if let Ok(asked) = tokio::time::timeout(WEBHOOK_TIMEOUT, asked).await {
            return asked;
        }
        // It may be that somebody else has ended.
        self.control_plane.check()?;
        let logs = self.webhooks.iter_mut();
        let logs = logs.map(|webhook| webhook.process().last_log_lines());
        bail!(
            "the API server did not call the webhook within {} s, {last}; the end of its log:\n{}\n\
             what the API server says of its calls:\n{}",
            WEBHOOK_TIMEOUT.as_secs(),
            logs.collect::<Vec<_>>().join("\n"),
            self.failed_calls()
        )
    }

    /// The last that the API server has logged of calls of ours.
    fn failed_calls(&self) -> String {
        const LINES: usize = 5;
        let log = self.control_plane.run_dir().join("kube-apiserver.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let ours: Vec<_> = log
            .lines()
            .filter(|it| it.contains("vpc.k8s.aws"))
            .collect();
        ours[ours.len().saturating_sub(LINES)..].join("\n")
    }
}

/// A kubeconfig with the rights of the manifests' ServiceAccount.
async fn service_account_kubeconfig(control_plane: &ControlPlane) -> anyhow::Result<PathBuf> {
    const YEAR: i64 = 365 * 24 * 60 * 60;
    let api = Api::<ServiceAccount>::namespaced(control_plane.client(), NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(YEAR),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let granted = api
        .create_token_request(SERVICE_ACCOUNT, &PostParams::default(), &request)
        .await?;
    let token = granted
        .status
        .context("the API server granted no token")?
        .token;

    let mut kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig())?;
    for context in kubeconfig
        .contexts
        .iter_mut()
        .filter_map(|named| named.context.as_mut())
    {
        context.user = Some(SERVICE_ACCOUNT.into());
        // As in a pod.
        context.namespace = Some(NAMESPACE.into());
    }
    kubeconfig.auth_infos = vec![NamedAuthInfo {
        name: SERVICE_ACCOUNT.into(),
        auth_info: Some(AuthInfo {
            token: Some(token.into()),
            ..AuthInfo::default()
        }),
        ..NamedAuthInfo::default()
    }];
    let path = control_plane.run_dir().join("service-account.kubeconfig");
    private_file::write(&path, &serde_json::to_vec(&kubeconfig)?)?;
    Ok(path)
}
