//! `sgp webhook`: flags and order of start-up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use kube::Client;
use rustls::pki_types::ServerName;
use tokio::sync::oneshot;

use super::cluster::ClusterArgs;
use super::listen;
use super::signals::Signals;
use crate::api::names::{
    ALLOCATOR_USER, CERTIFICATE_SECRET, MUTATING_WEBHOOK_CONFIGURATION,
    VALIDATING_WEBHOOK_CONFIGURATION,
};
use crate::policy::{
    GracePeriodPolicy, GroupsPerInterface, MissingGroupPolicy, Settings, UnsupportedPodPolicy,
};
use crate::server::Limits;
use crate::telemetry::metrics::CertificateMetrics;
use crate::tls::{CertificateFiles, ClientCa, SelfManaged, Serving, WebhookConfigurations};
use crate::webhook::{self, Editors, Identity, Listeners};

/// What a certificate that is made here is for, unless the flags say something else: the
/// Service of our manifests, and people on the same machine.
const NAMES: [&str; 2] = ["sgp-webhook.sgp-system.svc", "localhost"];

/// The longest `--shutdown-delay`: what Kubernetes lets a pod have for its end is set in
/// seconds too, and rarely to more.
const LONGEST_DELAY: f64 = 3_600.0;

/// Run the admission webhook
///
/// Answers the API server at /mutate-v1-pod and the paths that validate over TLS; /healthz and /readyz are for probes.
/// Ends on SIGTERM or SIGINT once the requests that run are answered, and at once on a second.
#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// Address and port to serve on; by default on every address of IPv6 and IPv4
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:9443")]
    listen: SocketAddr,

    /// Address and port to serve /metrics on, without TLS; none if not given
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,

    /// Seconds for which a shutdown goes on taking connections, while /readyz is 503
    ///
    /// The cluster needs them to learn that this replica goes, and sends its calls elsewhere.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = delay)]
    shutdown_delay: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Certificate chain to serve with, as PEM; read again when it changes
    ///
    /// Without it the replicas make and renew a CA and a certificate together, share them in a
    /// Secret, and write the CA into the webhook configurations.
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate, as PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// DNS name or IP address that the webhook is called by; may be repeated
    ///
    /// A certificate that is made is for all of them, by default for
    /// sgp-webhook.sgp-system.svc and localhost. One from files that is for none of them is
    /// refused.
    #[arg(long, value_name = "NAME", value_parser = server_name, help_heading = "TLS")]
    tls_name: Vec<ServerName<'static>>,

    /// Secret to share certificates in that are made; the namespace is by default the pod's own
    #[arg(
        long,
        value_name = "[NAMESPACE/]NAME",
        value_parser = secret_name,
        conflicts_with = "tls_cert",
        default_value = CERTIFICATE_SECRET,
        help_heading = "TLS"
    )]
    certificate_secret: SecretName,

    /// How long a certificate that is made is valid, such as 90d or 12h; it is renewed after
    /// two thirds of that
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = lifetime,
        conflicts_with = "tls_cert",
        default_value = "90d",
        help_heading = "TLS"
    )]
    certificate_lifetime: Duration,

    /// CA whose clients alone may call, as PEM; anybody if not given
    ///
    /// Read again when it changes. /healthz and /readyz stay open, because probes present no
    /// certificate.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    client_ca: Option<PathBuf>,

    /// Common name that a client certificate of --client-ca has to have; may be repeated
    ///
    /// Any certificate of the CA will do if not given. A cluster's CA has signed those of all
    /// kubelets too.
    #[arg(
        long,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        requires = "client_ca",
        help_heading = "TLS"
    )]
    client_name: Vec<String>,

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

    /// User that the allocator is to the API server; may be repeated
    ///
    /// Nobody else may write the annotations of pods' interfaces and groups, but for EKS's own
    /// controller.
    #[arg(
        long,
        value_name = "USER",
        default_values_t = [ALLOCATOR_USER.to_owned()],
        help_heading = "Decisions"
    )]
    allocator_user: Vec<String>,
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

        let counted = CertificateMetrics::default();
        let files = self.certificate_files();
        let now = SystemTime::now();
        let from_files = files.as_ref().map(|it| it.load(now)).transpose()?;
        let client_ca = self.client_ca.as_deref();
        let client_ca = client_ca.map(|file| ClientCa::from_file(file, &self.client_name));
        let client_ca = client_ca.transpose()?;
        let client = self.cluster.client().await?;
        let self_managed = self.self_managed(&client);
        let serving = match from_files {
            Some(certificate) => {
                let serving = Serving::new(certificate, counted.clone());
                // Whoever wrote the files sees to that.
                serving.set_trusted(true);
                serving
            }
            None => {
                let placeholder = self_managed.placeholder();
                let placeholder = placeholder.context("no certificate could be made")?;
                Serving::new(placeholder.serving().clone(), counted.clone())
            }
        };
        let limits = Limits {
            shutdown_delay: self.shutdown_delay,
            ..Limits::default()
        };
        let listeners = Listeners {
            admission: listen(self.listen)?,
            metrics: match self.metrics_listen {
                Some(address) => Some(listen(address)?),
                None => None,
            },
            limits: limits.within_open_files(),
        };
        let settings = Settings {
            grace_period: self.grace_period_policy,
            unsupported_pods: self.unsupported_pods,
            missing_groups: self.missing_groups,
            groups_per_interface: self.groups_per_interface,
        };
        let editors = Editors {
            pod_annotations: self.allocator_user.clone(),
            policy_endpoints: self.policy_endpoint_user.clone(),
        };
        let keep_certificate = async {
            match &files {
                Some(files) => files.follow(&serving).await,
                None => self_managed.run(&serving).await,
            }
        };
        let keep_client_ca = async {
            match &client_ca {
                Some(ca) => ca.follow(&counted).await,
                None => std::future::pending().await,
            }
        };
        tracing::info!(address = %listeners.admission.local_addr()?, "serving");
        let webhook = webhook::run(
            client.clone(),
            listeners,
            Identity {
                serving: serving.clone(),
                client_ca: client_ca.clone(),
            },
            settings,
            self.allocator_socket.clone(),
            editors,
            shutdown,
        );
        tokio::select! {
            ended = webhook => Ok(ended?),
            signal = second_signal => bail!("ended at once by a second signal, {signal}"),
            never = keep_certificate => match never {},
            never = keep_client_ca => match never {},
        }
    }

    fn certificate_files(&self) -> Option<CertificateFiles> {
        let (chain, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        let names = self.tls_name.clone();
        Some(CertificateFiles { chain, key, names })
    }

    fn self_managed(&self, client: &Client) -> SelfManaged {
        let SecretName { namespace, name } = &self.certificate_secret;
        let names = if self.tls_name.is_empty() {
            let names = NAMES.map(|name| ServerName::try_from(name).expect("a DNS name"));
            names.into()
        } else {
            self.tls_name.clone()
        };
        SelfManaged::new(
            client.clone(),
            namespace.as_deref().unwrap_or(client.default_namespace()),
            name,
            WebhookConfigurations {
                mutating: self.webhook_configuration.clone(),
                validating: self.validating_webhook_configuration.clone(),
            },
            names,
            self.certificate_lifetime,
        )
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (0.0..=LONGEST_DELAY).contains(number));
    number
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("write between 0 and {LONGEST_DELAY} seconds"))
}

#[derive(Clone, Debug)]
struct SecretName {
    namespace: Option<String>,
    name: String,
}

fn secret_name(text: &str) -> Result<SecretName, String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    if name.is_empty() || name.contains('/') || namespace == Some("") {
        return Err("write a name, or a namespace and a name with a / between them".to_owned());
    }
    Ok(SecretName {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    })
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    // No certificate can carry the final dot.
    let name = ServerName::try_from(text.to_owned()).ok();
    let name = name.filter(|_| !text.ends_with('.'));
    name.ok_or_else(|| "neither a DNS name without a dot at its end nor an IP address".to_owned())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    const BOUNDS: (Duration, Duration) = (
        Duration::from_secs(10),
        Duration::from_secs(3_650 * 24 * 60 * 60),
    );
    let span: Span = text
        .parse()
        .map_err(|_| "no duration; write for example 90d, 12h or 20s".to_owned())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    let duration = duration.unwrap_or(SignedDuration::ZERO);
    let duration = Duration::try_from(duration).unwrap_or_default();
    if !(BOUNDS.0..=BOUNDS.1).contains(&duration) {
        return Err("write between 10s and 3650d".to_owned());
    }
    Ok(duration)
}
