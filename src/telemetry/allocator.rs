//! The allocator's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What the allocator counts; clones are handles to the same numbers.
#[derive(Clone, Debug)]
pub struct AllocatorMetrics {
    /// 1 if this process is the one that works.
    pub leading: Gauge,
    /// Pods that are bound to a node and wait for their branch interface.
    pub waiting_pods: Gauge,
    /// Since when the one waits that has waited for longest, in seconds since 1970; 0 if none
    /// does.
    pub waiting_since: Gauge,
    /// Nodes whose trunk interface is known.
    pub trunks: Gauge,
    /// Branch interfaces that nodes offer to pods.
    pub capacity: Gauge,
    /// Branch interfaces that are being made ready for a pod.
    pub preparing: Gauge,
    /// Branch interfaces that pods use.
    pub in_use: Gauge,
    /// Branch interfaces that rest after their pod.
    pub cooling: Gauge,
    /// Branch interfaces that wait for the next pod.
    pub warm: Gauge,
    /// Seconds from when a bound pod was first seen to its annotation.
    pub allocation_duration: Histogram,
    /// Events that were dropped because the API server was too slow.
    pub events_dropped: Counter,
    /// Namespaces whose pods are created only while a webhook answers.
    pub enforced_namespaces: Gauge,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    state: &'static str,
}

impl AllocatorMetrics {
    /// Metrics at zero, in this registry.
    pub fn register(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let leading = gauge(
            "allocator_leading",
            "1 if this process is the one that works",
        );
        let waiting_pods = gauge(
            "pods_waiting",
            "Pods that are bound to a node and wait for their branch interface",
        );
        let waiting_since = gauge(
            "pods_waiting_since_seconds",
            "When the pod was bound that has waited for its branch interface for longest, in \
             seconds since 1970; 0 if none waits",
        );
        let trunks = gauge("trunk_interfaces", "Trunk interfaces");
        let capacity = gauge(
            "branch_interface_capacity",
            "Branch interfaces that nodes offer to pods",
        );
        let enforced_namespaces = gauge(
            "enforced_namespaces",
            "Namespaces whose pods are created only while a webhook answers",
        );
        let branches = Family::<StateLabels, Gauge>::default();
        registry.register(
            "branch_interfaces",
            "Branch interfaces by state",
            branches.clone(),
        );
        let branch = |state| branches.get_or_create_owned(&StateLabels { state });
        // 2 milliseconds to about a minute.
        let allocation_duration = Histogram::new(exponential_buckets(2e-3, 2.0, 16));
        registry.register(
            "allocation_duration_seconds",
            "Time from when a bound pod was first seen to its annotation",
            allocation_duration.clone(),
        );
        let events_dropped = Counter::default();
        registry.register(
            "events_dropped",
            "Events that were dropped because the API server was too slow",
            events_dropped.clone(),
        );
        Self {
            leading,
            waiting_pods,
            waiting_since,
            trunks,
            capacity,
            preparing: branch("preparing"),
            in_use: branch("in_use"),
            cooling: branch("cooling"),
            warm: branch("warm"),
            allocation_duration,
            events_dropped,
            enforced_namespaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::metrics::Ec2Metrics;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn every_metric_is_documented() {
        let mut registry = Registry::with_prefix("sgp");
        AllocatorMetrics::register(&mut registry);
        Ec2Metrics::register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();

        let page = include_str!("../../docs/allocator.md");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        });
        let names: Vec<_> = names.collect();
        assert!(names.len() > 8, "{text}");
        for name in names {
            assert!(page.contains(&format!("| `{name}` |")), "{name} is missing");
        }
    }
}
