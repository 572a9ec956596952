//! Metrics in the OpenMetrics text format.
//!
//! Labels come from closed sets, never from names of objects or texts of errors.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::api::endpoint::Endpoint;

/// The metrics of the webhook and the registry that they are read from.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answers to the API server.
    pub admission: AdmissionMetrics,
    /// Live questions to the API server.
    pub lookups: LookupMetrics,
    /// Questions to the allocator.
    pub allocator: AllocatorMetrics,
    /// What the watches brought.
    pub watches: WatchMetrics,
    /// Connections of the server of admission requests.
    pub connections: ConnectionMetrics,
    /// Those who may not call.
    pub callers: CallerMetrics,
    /// The certificate that is served.
    pub certificates: CertificateMetrics,
}

/// Answers to the API server.
#[derive(Debug)]
pub struct AdmissionMetrics {
    /// By webhook, in the order of [`Endpoint::ALL`].
    by_endpoint: [EndpointMetrics; Endpoint::ALL.len()],
    /// Let in although the API server could not confirm that no policy selects the pod.
    pub unconfirmed: Counter,
}

impl AdmissionMetrics {
    /// The metrics of one webhook.
    pub fn of(&self, endpoint: Endpoint) -> &EndpointMetrics {
        &self.by_endpoint[endpoint as usize]
    }
}

/// Answers of one webhook, by outcome.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Let in as they were.
    pub unchanged: Counter,
    /// Let in with a patch.
    pub patched: Counter,
    /// Refused.
    pub denied: Counter,
    /// Neither: the request could not be read, or the answer not be found in time.
    pub failed: Counter,
    /// Seconds from a request's body to its answer.
    pub duration: Histogram,
}

/// Live questions to the API server, by resource.
#[derive(Debug)]
pub struct LookupMetrics {
    /// Lists of a namespace's policies, to confirm that none selects a pod.
    pub policies: Counter,
    /// Reads of a service account, new or to confirm that no policy selects its pod.
    pub service_accounts: Counter,
    /// Lists of a namespace's network policies, for the ports of a Service.
    pub network_policies: Counter,
}

/// Questions to the allocator, by outcome.
#[derive(Clone, Debug)]
pub struct AllocatorMetrics {
    /// Pods whose groups the allocator knew about in time.
    pub answered: Counter,
    /// Pods that were decided about without it.
    pub unanswered: Counter,
}

/// Connections of a server.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    /// How many there are.
    pub open: Gauge,
    /// Those that had to leave for a newcomer.
    pub evicted: Counter,
    /// Newcomers for which nobody had to leave.
    pub refused: Counter,
}

/// Those who may not call.
#[derive(Clone, Debug, Default)]
pub struct CallerMetrics {
    /// Requests of theirs, in the order of [`Self::REASONS`].
    pub refused: [Counter; Self::REASONS.len()],
}

impl CallerMetrics {
    /// They have shown no certificate, one that is not good for it, or one of another name.
    pub const REASONS: [&str; 3] = ["no_certificate", "certificate", "name"];
}

/// What the watches brought.
#[derive(Clone, Debug)]
pub struct WatchMetrics {
    /// 1 if the API server knows SecurityGroupPolicies.
    pub definition_installed: Gauge,
    /// Failures of the watch of policies.
    pub policies: Counter,
    /// Failures of the watch of service accounts.
    pub service_accounts: Counter,
    valid_policies: Gauge,
    invalid_policies: Gauge,
}

/// The certificate that is served.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    /// Its last instant, in seconds since 1970.
    pub expiry: Gauge,
    /// Changes to another one.
    pub changes: Counter,
    /// Failures to read or to renew it, each counted once until it is over.
    pub failures: Counter,
    missing: Family<KindLabels, Gauge>,
}

/// Of which kind a webhook configuration is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfigurationKind {
    /// A MutatingWebhookConfiguration.
    Mutating,
    /// A ValidatingWebhookConfiguration.
    Validating,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AnswerLabels {
    webhook: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct WebhookLabels {
    webhook: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResourceLabels {
    resource: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    state: &'static str,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        Self::with_certificates(CertificateMetrics::default())
    }

    /// All others at zero, beside those of a certificate that is there already.
    pub fn with_certificates(certificates: CertificateMetrics) -> Self {
        let mut registry = Registry::with_prefix("sgp");

        let outcomes = Family::<AnswerLabels, Counter>::default();
        registry.register(
            "admission_requests",
            "Admission requests by webhook and outcome",
            outcomes.clone(),
        );
        let unconfirmed = Counter::default();
        registry.register(
            "admission_unconfirmed",
            "Pods let in although the API server could not confirm that no policy selects them",
            unconfirmed.clone(),
        );
        // 16 microseconds to half a second.
        let durations = Family::<WebhookLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(16e-6, 2.0, 16))
        });
        registry.register(
            "admission_duration_seconds",
            "Time from an admission request's body to its answer",
            durations.clone(),
        );
        let by_endpoint = Endpoint::ALL.map(|endpoint| {
            let webhook = endpoint.name();
            let outcome =
                |outcome| outcomes.get_or_create_owned(&AnswerLabels { webhook, outcome });
            EndpointMetrics {
                unchanged: outcome("unchanged"),
                patched: outcome("patched"),
                denied: outcome("denied"),
                failed: outcome("failed"),
                duration: durations.get_or_create_owned(&WebhookLabels { webhook }),
            }
        });
        let admission = AdmissionMetrics {
            by_endpoint,
            unconfirmed,
        };

        let asked = Family::<ResourceLabels, Counter>::default();
        registry.register(
            "live_lookups",
            "Questions to the API server that an admission request waited for",
            asked.clone(),
        );
        let lookup = |resource| asked.get_or_create_owned(&ResourceLabels { resource });
        let lookups = LookupMetrics {
            policies: lookup("securitygrouppolicies"),
            service_accounts: lookup("serviceaccounts"),
            network_policies: lookup("networkpolicies"),
        };

        let asked = Family::<OutcomeLabels, Counter>::default();
        registry.register(
            "allocator_lookups",
            "Lookups of pods' groups with the allocator by outcome",
            asked.clone(),
        );
        let outcome = |outcome| asked.get_or_create_owned(&OutcomeLabels { outcome });
        let allocator = AllocatorMetrics {
            answered: outcome("answered"),
            unanswered: outcome("unanswered"),
        };

        let definition_installed = Gauge::<i64>::default();
        registry.register(
            "policy_definition_installed",
            "1 if the API server knows SecurityGroupPolicies",
            definition_installed.clone(),
        );
        let policies = Family::<StateLabels, Gauge>::default();
        registry.register(
            "policies",
            "SecurityGroupPolicies by state",
            policies.clone(),
        );
        let failures = Family::<ResourceLabels, Counter>::default();
        registry.register(
            "watch_failures",
            "Watches that failed and were started again",
            failures.clone(),
        );
        let failed = |resource| failures.get_or_create_owned(&ResourceLabels { resource });
        let watches = WatchMetrics {
            definition_installed,
            policies: failed("securitygrouppolicies"),
            service_accounts: failed("serviceaccounts"),
            valid_policies: policies.get_or_create_owned(&StateLabels { state: "valid" }),
            invalid_policies: policies.get_or_create_owned(&StateLabels { state: "invalid" }),
        };

        registry.register(
            "certificate_expiry_seconds",
            "When the certificate that is served expires, in seconds since 1970",
            certificates.expiry.clone(),
        );
        registry.register(
            "certificate_changes",
            "Changes of the certificate that is served",
            certificates.changes.clone(),
        );
        registry.register(
            "certificate_failures",
            "Failures to read or renew a certificate or the client CA, each once until it is over",
            certificates.failures.clone(),
        );
        registry.register(
            "webhook_configurations_missing",
            "1 for a webhook configuration that is not there to write the CA into",
            certificates.missing.clone(),
        );
        for kind in ConfigurationKind::ALL {
            certificates.missing(kind);
        }
        let connections = ConnectionMetrics::default();
        registry.register(
            "connections",
            "Open connections for admission requests and probes",
            connections.open.clone(),
        );
        registry.register(
            "connections_evicted",
            "Connections that were closed to make room for another",
            connections.evicted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that were closed at once, as all places were taken",
            connections.refused.clone(),
        );

        let refused = Family::<ReasonLabels, Counter>::default();
        registry.register(
            "callers_refused",
            "Requests of clients that --client-ca and --client-name do not let in, by reason",
            refused.clone(),
        );
        let callers = CallerMetrics {
            refused: CallerMetrics::REASONS
                .map(|reason| refused.get_or_create_owned(&ReasonLabels { reason })),
        };

        Self {
            registry,
            admission,
            lookups,
            allocator,
            watches,
            connections,
            callers,
            certificates,
        }
    }

    /// All metrics as text.
    pub fn encode(&self) -> String {
        as_text(&self.registry)
    }
}

/// The metrics of a registry as text.
pub fn as_text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("a string takes all that is written to it");
    text
}

/// Answers `GET /metrics` with what `text` gives.
pub fn router(text: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let answer = async move || ([(header::CONTENT_TYPE, kind)], text());
    Router::new().route("/metrics", get(answer))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigurationKind {
    const ALL: [Self; 2] = [Self::Mutating, Self::Validating];

    /// Its name to the API server.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mutating => "MutatingWebhookConfiguration",
            Self::Validating => "ValidatingWebhookConfiguration",
        }
    }
}

impl CertificateMetrics {
    /// Notes whether a configuration is there.
    pub fn note_configuration(&self, kind: ConfigurationKind, is_there: bool) {
        self.missing(kind).set((!is_there).into());
    }

    fn missing(&self, kind: ConfigurationKind) -> Gauge {
        let labels = KindLabels { kind: kind.name() };
        self.missing.get_or_create_owned(&labels)
    }
}

impl WatchMetrics {
    /// Notes how many policies there are.
    pub fn count_policies(&self, valid: usize, invalid: usize) {
        self.valid_policies
            .set(i64::try_from(valid).unwrap_or(i64::MAX));
        self.invalid_policies
            .set(i64::try_from(invalid).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there_from_the_start_and_moves() {
        let metrics = Metrics::new();
        metrics.admission.of(Endpoint::MutatePod).denied.inc();
        metrics.watches.count_policies(3, 1);

        let text = metrics.encode();
        for line in [
            r#"sgp_admission_requests_total{webhook="mpod",outcome="denied"} 1"#,
            r#"sgp_admission_requests_total{webhook="vnode",outcome="denied"} 0"#,
            r#"sgp_allocator_lookups_total{outcome="unanswered"} 0"#,
            r#"sgp_live_lookups_total{resource="serviceaccounts"} 0"#,
            r#"sgp_policies{state="valid"} 3"#,
            r#"sgp_policies{state="invalid"} 1"#,
            "sgp_policy_definition_installed 0",
            "sgp_admission_unconfirmed_total 0",
            "sgp_connections 0",
            "sgp_connections_evicted_total 0",
            "sgp_connections_refused_total 0",
            r#"sgp_callers_refused_total{reason="no_certificate"} 0"#,
            r#"sgp_callers_refused_total{reason="name"} 0"#,
            "sgp_certificate_failures_total 0",
            r#"sgp_webhook_configurations_missing{kind="MutatingWebhookConfiguration"} 0"#,
            r#"sgp_webhook_configurations_missing{kind="ValidatingWebhookConfiguration"} 0"#,
            r#"sgp_admission_duration_seconds_count{webhook="vpod"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
