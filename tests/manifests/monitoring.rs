//! What Prometheus is told to look at, and to warn of.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::{Objects, in_repository, parse, text};

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
