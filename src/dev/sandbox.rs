//! A control plane with our custom resources and the webhook, ready to be tried or tested.
//!
//! The webhook is the real program, started as a process of its own with the rights of the
//! manifests' ServiceAccount and no others, so that a missing rule shows here first.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{AuthInfo, Kubeconfig, NamedAuthInfo};
use kube::runtime::wait::{await_condition, conditions};
use kube::{CustomResourceExt, ResourceExt};

use super::control_plane::{Binaries, ControlPlane, Options, Process, free_port};
use super::private_file;
use crate::api::names::{FARGATE_POD_SG, FARGATE_PROFILE, MUTATE_POD_PATH};
use crate::api::{CNINode, ENIConfig, SecurityGroupPolicy};

/// The manifests that the sandbox shares with a real installation, and the stand-ins for
/// what EKS brings.
const MANIFESTS: [&str; 6] = [
    include_str!("../../manifests/namespace.yaml"),
    include_str!("../../manifests/crds/securitygrouppolicies.yaml"),
    include_str!("../../manifests/crds/cninodes.yaml"),
    include_str!("../../manifests/rbac.yaml"),
    include_str!("../../manifests/sandbox/eniconfigs.yaml"),
    include_str!("../../manifests/sandbox/aws-node.yaml"),
];
const WEBHOOK_MANIFEST: &str = include_str!("../../manifests/mutating-webhook.yaml");

const NAMESPACE: &str = "sgp-system";
const SERVICE_ACCOUNT: &str = "sgp";

/// How long the API server may take to call a webhook that it has been told of.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// How a sandbox is started.
#[derive(Clone, Debug)]
pub struct SandboxOptions {
    /// The `sgp` program to run the webhook with.
    pub sgp: PathBuf,
    /// Keeps the cluster's state for the next start.
    pub data_dir: Option<PathBuf>,
    /// Further arguments for `sgp webhook`.
    pub webhook_arguments: Vec<String>,
}

/// A running sandbox. What it started ends with it.
#[derive(Debug)]
pub struct Sandbox {
    // Ends before the API server that it talks to.
    webhook: Process,
    webhook_port: u16,
    metrics_port: u16,
    control_plane: ControlPlane,
}

impl Sandbox {
    /// Starts everything and waits until a pod's creation goes through the webhook. Each
    /// step is announced to `progress` before it begins.
    pub async fn start(
        binaries: &Binaries,
        options: SandboxOptions,
        progress: impl Fn(&str),
    ) -> anyhow::Result<Self> {
        progress("starting the control plane");
        let control_plane = ControlPlane::start(
            binaries,
            Options {
                data_dir: options.data_dir,
            },
        )
        .await?;
        progress("applying the manifests");
        apply_manifests(&control_plane)?;
        wait_for_definitions(&control_plane).await?;
        let kubeconfig = webhook_kubeconfig(&control_plane).await?;

        progress("starting the webhook");
        let (webhook_port, metrics_port) = (free_port()?, free_port()?);
        let mut command = Command::new(&options.sgp);
        command
            .args(["webhook", "--tls-name=127.0.0.1"])
            .arg(format!("--listen=127.0.0.1:{webhook_port}"))
            .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(options.webhook_arguments);
        let webhook = control_plane.spawn("webhook", command)?;
        let mut sandbox = Self {
            webhook,
            webhook_port,
            metrics_port,
            control_plane,
        };
        sandbox.register_webhook().await?;
        sandbox.wait_for_webhook().await?;
        Ok(sandbox)
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The webhook's process.
    pub fn webhook(&mut self) -> &mut Process {
        &mut self.webhook
    }

    /// The port on 127.0.0.1 on which the webhook answers the API server.
    pub fn webhook_port(&self) -> u16 {
        self.webhook_port
    }

    /// The port on 127.0.0.1 on which the webhook serves its metrics.
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// Ends everything: the webhook in order, then the control plane.
    pub fn stop(mut self) {
        // Whatever does not end in time is killed with the control plane.
        let _ = self.webhook.stop(Duration::from_secs(2));
        self.control_plane.stop();
    }

    /// Registers the webhook by URL, with everything else as the manifest has it.
    async fn register_webhook(&self) -> anyhow::Result<()> {
        let mut configuration: MutatingWebhookConfiguration =
            serde_saphyr::from_str(WEBHOOK_MANIFEST)?;
        for webhook in configuration.webhooks.iter_mut().flatten() {
            webhook.client_config.service = None;
            webhook.client_config.url = Some(format!(
                "https://127.0.0.1:{}{MUTATE_POD_PATH}",
                self.webhook_port
            ));
        }
        let api = Api::<MutatingWebhookConfiguration>::all(self.control_plane.client());
        let parameters = PatchParams::apply("sgp-dev").force();
        api.patch(
            &configuration.name_any(),
            &parameters,
            &Patch::Apply(&configuration),
        )
        .await?;
        Ok(())
    }

    /// Waits until the API server asks the webhook, which shows in a dry run of a Fargate
    /// pod: the webhook never leaves it an annotation that it brought along.
    async fn wait_for_webhook(&mut self) -> anyhow::Result<()> {
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
        let asked = async {
            loop {
                if let Some(status) = self.webhook.try_wait()? {
                    bail!(
                        "the webhook ended with {status}:\n{}",
                        self.webhook.last_log_lines()
                    );
                }
                // Before it trusts the webhook's CA, the API server lets pods in unasked.
                if let Ok(admitted) = api.create(&dry_run, &pod).await
                    && admitted
                        .annotations()
                        .get(FARGATE_POD_SG)
                        .is_none_or(|ids| ids != BROUGHT)
                {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(WEBHOOK_TIMEOUT, asked).await {
            Ok(asked) => asked,
            Err(_) => bail!(
                "the API server did not call the webhook within {} s; the end of its log:\n{}",
                WEBHOOK_TIMEOUT.as_secs(),
                self.webhook.last_log_lines()
            ),
        }
    }
}

fn apply_manifests(control_plane: &ControlPlane) -> anyhow::Result<()> {
    let mut kubectl = control_plane
        .kubectl()
        .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubectl can't be started")?;
    let mut input = kubectl
        .stdin
        .take()
        .context("kubectl has no standard input")?;
    input.write_all(MANIFESTS.join("\n---\n").as_bytes())?;
    drop(input);
    let output = kubectl.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the manifests can't be applied:\n{said}"
    );
    Ok(())
}

async fn wait_for_definitions(control_plane: &ControlPlane) -> anyhow::Result<()> {
    let api = Api::<CustomResourceDefinition>::all(control_plane.client());
    for name in [
        SecurityGroupPolicy::crd_name(),
        CNINode::crd_name(),
        ENIConfig::crd_name(),
    ] {
        let established = await_condition(api.clone(), name, conditions::is_crd_established());
        let established = tokio::time::timeout(WEBHOOK_TIMEOUT, established).await;
        established.with_context(|| format!("{name} is not served by the API server"))??;
    }
    Ok(())
}

/// A kubeconfig with the rights of the manifests' ServiceAccount.
async fn webhook_kubeconfig(control_plane: &ControlPlane) -> anyhow::Result<PathBuf> {
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
    }
    kubeconfig.auth_infos = vec![NamedAuthInfo {
        name: SERVICE_ACCOUNT.into(),
        auth_info: Some(AuthInfo {
            token: Some(token.into()),
            ..AuthInfo::default()
        }),
        ..NamedAuthInfo::default()
    }];
    let path = control_plane.run_dir().join("webhook.kubeconfig");
    private_file::write(&path, &serde_json::to_vec(&kubeconfig)?)?;
    Ok(path)
}
