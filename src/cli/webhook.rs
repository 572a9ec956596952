//! `sgp webhook`: flags and order of start-up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use tokio::sync::oneshot;

use super::cluster::{ClusterArgs, listen};
use super::signals::Signals;
use crate::api::names::{MUTATING_WEBHOOK_CONFIGURATION, VALIDATING_WEBHOOK_CONFIGURATION};
use crate::policy::{
    GracePeriodPolicy, GroupsPerInterface, MissingGroupPolicy, Settings, UnsupportedPodPolicy,
};
use crate::server::Limits;
use crate::tls::{ServingCertificate, ca_bundle};
use crate::webhook::{self, Editors, Listeners};

/// The longest `--shutdown-delay`: what Kubernetes lets a pod have for its end is set in
/// seconds too, and rarely to more.
const LONGEST_DELAY: f64 = 3_600.0;

/// Run the admission webhook
///
/// Answers the API server at /mutate-v1-pod and the paths that validate over TLS; /healthz and /readyz are for probes.
/// Ends on SIGTERM or SIGINT once the requests that run are answered, and at once on a second.
#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// Address and port to serve on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,

    /// Address and port to serve /metrics on, without TLS; none if not given
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,

    /// Seconds for which a shutdown goes on taking connections, while /readyz is 503
    ///
    /// The cluster needs them to learn that this replica goes, and sends its calls elsewhere.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "5",
        value_parser = delay,
        overrides_with = "shutdown_delay"
    )]
    shutdown_delay: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Certificate chain to serve with, as PEM
    ///
    /// Without it a CA and a certificate are made at every start, and the CA is written into
    /// the webhook configuration; that is for one replica only.
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// DNS name or IP address to make the certificate for; may be repeated
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "tls_cert",
        default_values_t = ["sgp-webhook.sgp-system.svc".to_owned(), "localhost".to_owned()],
        help_heading = "TLS"
    )]
    tls_name: Vec<String>,

    /// MutatingWebhookConfiguration to write the CA into, where one is made
    #[arg(
        long,
        value_name = "NAME",
        default_value = MUTATING_WEBHOOK_CONFIGURATION,
        help_heading = "TLS"
    )]
    webhook_configuration: String,

    /// ValidatingWebhookConfiguration to write the CA into, where one is made
    #[arg(
        long,
        value_name = "NAME",
        default_value = VALIDATING_WEBHOOK_CONFIGURATION,
        help_heading = "TLS"
    )]
    validating_webhook_configuration: String,

    /// What to do with a pod with security groups whose terminationGracePeriodSeconds is 0
    ///
    /// Such a pod is gone before the VPC CNI plugin can remove its network.
    #[arg(long, value_enum, default_value_t, help_heading = "Decisions")]
    grace_period_policy: GracePeriodPolicy,

    /// What to do with a pod that a policy selects but that can have no branch interface
    ///
    /// Those are pods on the host's network and Windows pods.
    #[arg(long, value_enum, default_value_t, help_heading = "Decisions")]
    unsupported_pods: UnsupportedPodPolicy,

    /// What to do with a pod with security groups that do not exist in the cluster's VPC
    ///
    /// Only the allocator knows which do; a malformed id is known without it.
    #[arg(long, value_enum, default_value_t, help_heading = "Decisions")]
    missing_groups: MissingGroupPolicy,

    /// The most security groups that EC2 takes for one interface, from 1 to 16
    ///
    /// Raise it where the account's quota was raised. A policy with more is refused, and a
    /// pod that gets more from several policies is warned about.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t,
        help_heading = "Decisions"
    )]
    groups_per_interface: GroupsPerInterface,

    /// Unix socket of the allocator, to ask for groups and free interfaces; not asked if not
    /// given
    #[arg(long, value_name = "PATH", help_heading = "Decisions")]
    allocator_socket: Option<PathBuf>,

    /// User that may edit PolicyEndpoints, besides EKS's own controllers; may be repeated
    ///
    /// For example system:serviceaccount:netpol:controller, where the network policy
    /// controller is installed under another name than its chart gives it.
    #[arg(long, value_name = "USER", help_heading = "Decisions")]
    policy_endpoint_user: Vec<String>,
}

impl WebhookArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // One thread answers more requests than an API server ever sends. With several, each
        // request wakes one that finds nothing to do, and memory that one has freed is not
        // used by the others. See docs/performance.md.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let done = runtime.block_on(self.serve());
        // A name that is still being looked up holds nobody up.
        runtime.shutdown_background();
        done
    }

    async fn serve(self) -> anyhow::Result<()> {
        let mut signals = Signals::listen()?;
        let (begin, begun) = oneshot::channel();
        let second_signal = async {
            signals.next().await;
            // Taken as long as there is a webhook to end.
            let _ = begin.send(());
            signals.next().await
        };
        let shutdown = async {
            let _ = begun.await;
        };

        let certificate = self.certificate()?;
        let ca_bundle = certificate.ca_bundle().map(str::to_owned);
        let tls = certificate.into_server_config()?;
        let client = self.cluster.client().await?;
        let limits = Limits {
            shutdown_delay: self.shutdown_delay,
            ..Limits::default()
        };
        let listeners = Listeners {
            admission: listen(self.listen).await?,
            metrics: match self.metrics_listen {
                Some(address) => Some(listen(address).await?),
                None => None,
            },
            limits: limits.within_open_files(),
        };
        let keep_ca_bundle = async {
            match &ca_bundle {
                Some(bundle) => {
                    let mutating = ca_bundle::keep::<MutatingWebhookConfiguration>(
                        client.clone(),
                        &self.webhook_configuration,
                        bundle,
                    );
                    let validating = ca_bundle::keep::<ValidatingWebhookConfiguration>(
                        client.clone(),
                        &self.validating_webhook_configuration,
                        bundle,
                    );
                    tokio::join!(mutating, validating);
                }
                None => std::future::pending().await,
            }
        };
        let settings = Settings {
            grace_period: self.grace_period_policy,
            unsupported_pods: self.unsupported_pods,
            missing_groups: self.missing_groups,
            groups_per_interface: self.groups_per_interface,
        };
        let editors = Editors {
            policy_endpoints: self.policy_endpoint_user.clone(),
        };
        tracing::info!(address = %listeners.admission.local_addr()?, "serving");
        let webhook = webhook::run(
            client.clone(),
            listeners,
            tls,
            settings,
            self.allocator_socket.clone(),
            editors,
            shutdown,
        );
        tokio::select! {
            ended = webhook => Ok(ended?),
            signal = second_signal => bail!("ended at once by a second signal, {signal}"),
            () = keep_ca_bundle => bail!("the watch of the webhook configuration ended by itself"),
        }
    }

    fn certificate(&self) -> anyhow::Result<ServingCertificate> {
        Ok(match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => ServingCertificate::from_files(chain, key)?,
            _ => ServingCertificate::make(&self.tls_name)?,
        })
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (0.0..=LONGEST_DELAY).contains(number));
    number
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("write between 0 and {LONGEST_DELAY} seconds"))
}
