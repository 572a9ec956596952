//! What calls to EC2 cost, as metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::error::Ec2Error;

/// Counters and gauges of the client; clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub struct Ec2Metrics {
    requests: Family<RequestLabels, Counter>,
    /// Requests that wait for their turn.
    pub waiting: Gauge,
    /// Requests a second that the rate limiter lets pass at most.
    pub rate: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    action: &'static str,
    outcome: &'static str,
}

impl Ec2Metrics {
    /// Metrics at zero, in this registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ec2_requests",
            "Requests to EC2 by action and outcome: ok, abandoned (another attempt was \
             answered first, or nobody waits any more), or the class of the error",
            metrics.requests.clone(),
        );
        registry.register(
            "ec2_requests_waiting",
            "Requests to EC2 that wait for their turn at the rate limiter",
            metrics.waiting.clone(),
        );
        registry.register(
            "ec2_request_rate_limit",
            "Requests a second that the rate limiter lets pass at most",
            metrics.rate.clone(),
        );
        metrics
    }

    /// Begins a request; it is counted when what is returned goes.
    pub(super) fn begin(&self, action: &'static str) -> Request<'_> {
        Request {
            metrics: self,
            action,
            outcome: "abandoned",
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Request<'a> {
    metrics: &'a Ec2Metrics,
    action: &'static str,
    outcome: &'static str,
}

impl Request<'_> {
    pub(super) fn end<T>(mut self, answer: &Result<T, Ec2Error>) {
        self.outcome = match answer {
            Ok(_) => "ok",
            Err(error) => error.class.as_str(),
        };
    }

    pub(super) fn failed(self, error: &Ec2Error) {
        self.end::<()>(&Err(error.clone()));
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let labels = RequestLabels {
            action: self.action,
            outcome: self.outcome,
        };
        self.metrics.requests.get_or_create_owned(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn each_request_is_counted_by_what_became_of_it() {
        let mut registry = Registry::with_prefix("sgp");
        let metrics = Ec2Metrics::register(&mut registry);

        let action = "DeleteNetworkInterface";
        metrics.begin(action).end(&Ok(()));
        let error = Ec2Error::new(action, "RequestLimitExceeded", "");
        metrics.begin(action).end::<()>(&Err(error));
        drop(metrics.begin(action));

        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for outcome in ["ok", "throttled", "abandoned"] {
            let line = format!(
                "sgp_ec2_requests_total{{action=\"DeleteNetworkInterface\",outcome=\"{outcome}\"}} 1"
            );
            assert!(text.contains(&line), "{text}");
        }
    }
}
