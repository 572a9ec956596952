//! `sgp allocator`: flags and order of start-up.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::cluster::ClusterArgs;
use super::listen;
use super::signals::Signals;
use crate::allocator::election::{Election, Leadership};
use crate::allocator::{Allocator, Settings, health, socket};
use crate::ec2::client::AwsEc2;
use crate::ec2::instance_limits::LimitsTable;
use crate::ec2::metrics::Ec2Metrics;
use crate::server::{Limits, serve_plain};
use crate::telemetry::allocator::AllocatorMetrics;
use crate::telemetry::metrics;

/// Run the allocator, which makes trunk and branch interfaces in EC2
///
/// It also labels the namespaces that have a SecurityGroupPolicy, so that no pod is created there
/// while no webhook answers.
///
/// Of several, the holder of a Lease works; the others answer the webhooks beside them and
/// take over. Credentials, region and endpoint are found as by AWS's SDKs: environment
/// (AWS_REGION, AWS_ENDPOINT_URL_EC2 and others), profile (not with SSO or a credential
/// process), IRSA, EKS Pod Identity, instance metadata. Ends on SIGTERM or SIGINT; calls that run are handed over.
#[derive(Debug, Args)]
pub(super) struct AllocatorArgs {
    /// Name of the cluster, which EC2's tags carry
    ///
    /// Interfaces with this name in their tags belong to this cluster, and those that no pod
    /// of it uses are deleted.
    #[arg(long, value_name = "NAME", value_parser = cluster_name)]
    cluster_name: String,

    /// Who makes the interfaces
    #[arg(long, value_enum, default_value_t)]
    eni_backend: EniBackend,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Unix socket to answer webhooks on
    #[arg(long, value_name = "PATH", default_value = "/run/sgp/allocator.sock")]
    socket: PathBuf,

    /// Address and port to serve /metrics, /healthz and /readyz on, without TLS; none if not
    /// given
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,

    /// Branch interfaces of ended pods that each node keeps for its next pods
    ///
    /// They save three calls to EC2 for the next pod and cost an address each.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        help_heading = "Interfaces"
    )]
    warm_branches: usize,

    /// CSV file with instance types to add to the built-in table, or to replace
    ///
    /// Columns: instance_type, max_interfaces, ipv4_per_interface, trunking,
    /// branch_interfaces, default_card_interfaces, hypervisor, bare_metal.
    #[arg(long, value_name = "FILE", help_heading = "Interfaces")]
    instance_limits: Option<PathBuf>,

    /// Seconds between two looks at all interfaces of the cluster in EC2
    ///
    /// They find what was left behind or changed by others.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds, help_heading = "Interfaces")]
    audit_interval: Duration,

    /// Seconds after which another allocator takes over from one that is silent
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, help_heading = "Election")]
    lease_duration: Duration,

    /// Namespace of the Lease, which is the one that webhook and allocators run in
    ///
    /// Its pods and those of kube-system are created whatever becomes of the webhook.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "sgp-system",
        help_heading = "Election"
    )]
    lease_namespace: String,

    /// Name of the Lease
    #[arg(
        long,
        value_name = "NAME",
        default_value = "sgp-allocator",
        help_heading = "Election"
    )]
    lease_name: String,

    /// What this process is called in the Lease and in events; by default the host's name
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = "Election")]
    identity: Option<String>,
}

/// Who makes trunk and branch interfaces.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
enum EniBackend {
    /// This program, through EC2's API; AWS opens the calls about trunks to admitted accounts
    #[default]
    Ec2,
    /// EKS's own controller; this program answers webhooks and labels namespaces
    Eks,
}

async fn serve_metrics(
    listener: Option<TcpListener>,
    registry: Registry,
    is_ready: Arc<AtomicBool>,
) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let registry = Arc::new(registry);
    let router = metrics::router(move || metrics::as_text(&registry));
    let router = router.merge(health::router(is_ready));
    serve_plain(listener, router, Limits::default()).await;
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.5..=86_400.0).contains(&number) {
        return Err("write between 0.5 and 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

/// EKS's rule for names, with room in a tag's key (EKS API Reference, `CreateCluster`).
fn cluster_name(text: &str) -> Result<String, String> {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = text.len() <= 100
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(rest);
    match is_name {
        true => Ok(text.to_owned()),
        false => Err("a name is 1 to 100 letters, digits, `-`, `_` and `.`".to_owned()),
    }
}

impl AllocatorArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let done = runtime.block_on(self.serve());
        // A call that still runs holds nobody up; it is handed over.
        runtime.shutdown_background();
        done
    }

    async fn serve(self) -> anyhow::Result<()> {
        let mut signals = Signals::listen()?;
        let shutdown = async {
            signals.next().await;
        };
        let limits = self.limits()?;
        let socket = socket::bind(&self.socket).await?;
        let metrics_listener = match self.metrics_listen {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        let client = self.cluster.client().await?;

        let mut registry = Registry::with_prefix("sgp");
        let ec2_metrics = Ec2Metrics::register(&mut registry);
        let allocator_metrics = AllocatorMetrics::register(&mut registry);
        let (leadership, leads) = watch::channel(Leadership::default());
        let ec2 = AwsEc2::from_environment(ec2_metrics);
        let makes_interfaces = self.eni_backend == EniBackend::Ec2;
        let ec2 = ec2.only_while(move || makes_interfaces && leads.borrow().is_held());

        let election = Election::new(
            client.clone(),
            &self.lease_namespace,
            &self.lease_name,
            &self.identity(),
            self.lease_duration,
        );
        let is_ready = Arc::new(AtomicBool::new(false));
        let allocator = Allocator {
            client,
            ec2: Arc::new(ec2),
            election,
            leadership,
            makes_interfaces,
            own_namespace: self.lease_namespace,
            socket,
            is_ready: is_ready.clone(),
            metrics: allocator_metrics,
            settings: Settings {
                cluster_name: self.cluster_name,
                warm_branches: self.warm_branches,
                audit_interval: self.audit_interval,
                limits,
            },
        };
        tokio::select! {
            () = allocator.run(shutdown) => Ok(()),
            () = serve_metrics(metrics_listener, registry, is_ready) => {
                anyhow::bail!("the server of the metrics ended by itself")
            }
        }
    }

    fn limits(&self) -> anyhow::Result<LimitsTable> {
        let mut table = LimitsTable::built_in().clone();
        if let Some(path) = &self.instance_limits {
            let mut read = || anyhow::Ok(table.add(File::open(path)?)?);
            read().with_context(|| format!("can't use the table in {}", path.display()))?;
        }
        Ok(table)
    }

    fn identity(&self) -> String {
        let host = || {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        };
        self.identity.clone().unwrap_or_else(host)
    }
}
