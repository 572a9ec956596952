//! What Prometheus is told to look at, and to warn of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use prometheus_client::registry::Registry;
use serde_json::Value;
use sgp::telemetry::allocator::AllocatorMetrics;
use sgp::telemetry::metrics::{Metrics, as_text};

use crate::waiting::eventually;
use crate::{Objects, apply, in_repository, kubectl, parse, start_control_plane, text};

#[test]
fn alerts_look_at_metrics_that_are_documented() {
    let pages = ["docs/webhook.md", "docs/allocator.md"];
    let pages = pages.map(|page| fs::read_to_string(in_repository(page)).unwrap());
    let mut alerts = BTreeSet::new();
    for rule in rules(&component()) {
        let expression = text(&rule["expr"]);
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for metric in words.filter(|word| word.starts_with("sgp_")) {
            let row = format!("\n| `{metric}` |");
            let is_documented = pages.iter().any(|page| page.contains(&row));
            assert!(is_documented, "{metric} of {}", rule["alert"]);
        }
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
        assert!(
            alerts.insert(text(&rule["alert"])),
            "{} twice",
            rule["alert"]
        );
    }

    let install = fs::read_to_string(in_repository("docs/install.md")).unwrap();
    let rows = install
        .lines()
        .filter_map(|line| line.strip_prefix("| `Sgp"));
    let documented = rows.map(|row| format!("Sgp{}", row.split('`').next().unwrap()));
    assert_eq!(
        documented.collect::<BTreeSet<_>>(),
        alerts,
        "docs/install.md"
    );
}

#[test]
fn alerts_look_at_what_the_programs_export() {
    let mut registry = Registry::with_prefix("sgp");
    AllocatorMetrics::register(&mut registry);
    let exported = [Metrics::new().encode(), as_text(&registry)].concat();
    let page = fs::read_to_string(in_repository("docs/allocator.md")).unwrap();
    let read = selectors("sgp_");
    assert!(read.len() > 12, "{read:?}");
    for selector in read {
        let metric = &selector.metric;
        let samples = samples(&exported, metric);
        if metric == "sgp_ec2_requests_total" {
            // There from the first call on, as `tests/allocator` sees it.
            let row = format!("| `{metric}` |");
            let row = page.lines().find(|line| line.starts_with(&row)).unwrap();
            for matcher in &selector.matchers {
                let mut values = matcher.value.split('|');
                let is_documented = values.all(|value| match matcher.label.as_str() {
                    // One that the role allows.
                    "action" => page.contains(&format!("\"ec2:{value}\"")),
                    _ => row.contains(&format!("`{value}`")),
                });
                assert!(is_documented, "{selector:?} in {row}");
            }
        } else {
            let fits = samples.iter().any(|labels| selector.fits(labels));
            assert!(fits, "{selector:?} fits none of {samples:?}");
        }
    }
}

#[tokio::test]
async fn alerts_look_at_what_the_api_server_counts_while_no_webhook_answers() {
    let control_plane = start_control_plane().await;
    for file in ["namespace", "mutating-webhook"] {
        let path = in_repository(&format!("manifests/base/{file}.yaml"));
        apply(&control_plane, &["-f", &path]);
    }
    kubectl(&control_plane, &["create", "namespace", "enforced"]);
    let label = "vpcresources.k8s.aws/enforce=true";
    kubectl(&control_plane, &["label", "namespace", "enforced", label]);
    let read = selectors("apiserver_");
    assert_eq!(read.len(), 2, "{read:?}");
    for selector in read {
        eventually(&format!("{selector:?}"), || {
            for namespace in ["default", "enforced"] {
                let run = ["run", "any", "--image=any", "--dry-run=server"];
                let mut command = control_plane.kubectl();
                // Refused in one of them.
                let _ = command.args(run).args(["--namespace", namespace]).output();
            }
            let counted = kubectl(&control_plane, &["get", "--raw", "/metrics"]);
            let samples = samples(&counted, &selector.metric);
            let fits = samples.iter().any(|labels| selector.fits(labels));
            fits.then_some(())
        });
    }
}

/// A metric that an alert reads, and what it asks of labels.
#[derive(Debug)]
struct Selector {
    metric: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug)]
struct Matcher {
    label: String,
    operator: String,
    value: String,
}

impl Selector {
    fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matchers.iter().all(|matcher| {
            let value = labels.get(&matcher.label).map_or("", String::as_str);
            match matcher.operator.as_str() {
                "=" => value == matcher.value,
                // Of a label that is not there anything holds, and nothing is meant.
                "!=" => !value.is_empty() && value != matcher.value,
                // As far as the alerts make use of it.
                "=~" => matcher
                    .value
                    .split('|')
                    .any(|it| match it.strip_prefix(".*") {
                        Some(end) => value.ends_with(&end.replace("[.]", ".")),
                        None => value == it,
                    }),
                operator => panic!("{operator} is not known here"),
            }
        })
    }
}

/// What the alerts read of metrics with such names.
fn selectors(prefix: &str) -> Vec<Selector> {
    let mut selectors = Vec::new();
    for rule in rules(&component()) {
        let expression = text(&rule["expr"]);
        for (start, _) in expression.match_indices(prefix) {
            let rest = &expression[start..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (metric, rest) = rest.split_at(rest.find(|c: char| !is_name(c)).unwrap());
            let inside = rest
                .strip_prefix('{')
                .map_or("", |rest| rest.split_once('}').unwrap().0);
            let matchers = inside.split(',').filter(|it| !it.is_empty());
            selectors.push(Selector {
                metric: metric.to_owned(),
                matchers: matchers.map(matcher).collect(),
            });
        }
    }
    selectors
}

fn matcher(text: &str) -> Matcher {
    let (condition, value) = text.trim_end_matches('"').split_once('"').unwrap();
    let label = condition.trim().trim_end_matches(['=', '!', '~']);
    Matcher {
        label: label.to_owned(),
        operator: condition.trim()[label.len()..].to_owned(),
        value: value.to_owned(),
    }
}

/// The labels of each sample of a metric.
fn samples(exported: &str, metric: &str) -> Vec<BTreeMap<String, String>> {
    let samples = exported.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let inside = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?.0,
            None => rest.strip_prefix(' ').map(|_| "")?,
        };
        let labels = inside.split("\",").filter_map(|it| it.split_once("=\""));
        let labels = labels.map(|(name, value)| (name, value.trim_end_matches('"')));
        Some(
            labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    });
    samples.collect()
}

#[test]
fn prometheus_finds_every_port_with_metrics() {
    let objects = component();
    let service = &objects["Service sgp-system/sgp-metrics"];
    let names = |list: &Value, field: &str| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|item| text(&item[field])).collect()
    };
    let ports = &service["spec"]["ports"];
    let monitor = &objects["ServiceMonitor sgp-system/sgp"]["spec"];
    assert_eq!(names(&monitor["endpoints"], "port"), names(ports, "name"));
    for (label, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }

    let manifest = fs::read_to_string(in_repository("manifests/base/deployment.yaml")).unwrap();
    let deployment: Value = serde_saphyr::from_str(&manifest).unwrap();
    let template = &deployment["spec"]["template"];
    assert_eq!(service["spec"]["selector"], template["metadata"]["labels"]);
    let containers = template["spec"]["containers"].as_array().unwrap().iter();
    let open: Vec<_> = containers
        .flat_map(|container| names(&container["ports"], "name"))
        .collect();
    for target in names(ports, "targetPort") {
        assert!(open.contains(&target), "{target}");
    }
    let expression = text(&rules(&objects)[0]["expr"]);
    assert!(expression.contains(r#"up{job="sgp-metrics", endpoint="metrics"}"#));
}

/// The objects of the component, which kustomize takes as a part only.
fn component() -> Objects {
    let files = ["service", "service-monitor", "prometheus-rule"];
    let files = files.map(|name| {
        let path = format!("manifests/components/monitoring/{name}.yaml");
        fs::read_to_string(in_repository(&path)).unwrap()
    });
    parse(&files.join("\n---\n"))
}

fn rules(objects: &Objects) -> Vec<Value> {
    let groups = &objects["PrometheusRule sgp-system/sgp"]["spec"]["groups"];
    groups[0]["rules"].as_array().unwrap().clone()
}
