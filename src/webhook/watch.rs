//! The watches that keep [`Cluster`] up to date. They never end by themselves.

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher as watch_objects;
use kube::runtime::watcher;

use super::cluster::{Cluster, Policies, ServiceAccounts};
use crate::api_server::follow;
use crate::api_server::policies::policy_resource;

/// Objects in an answer to a list.
const PAGE: u32 = 20;

/// Runs all watches.
pub async fn run(cluster: &Cluster, client: kube::Client) {
    // A page is held as text, twice, and as objects, each of which can have more than a
    // megabyte: whoever may write some must not be able to use up the memory.
    let config = watcher::Config::default().page_size(PAGE);
    let resource = policy_resource();
    let policies = Api::all_with(client.clone(), &resource);
    let service_accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client);
    tokio::join!(
        follow(Policies(cluster), || {
            watch_objects(policies.clone(), config.clone())
        }),
        follow(ServiceAccounts(cluster), || {
            watch_objects(service_accounts.clone(), config.clone())
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use axum::body::Body;
    use axum::http::{Request, Response};
    use serde_json::{Value, json};
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// One answer of a scripted API server to the watch of policies.
    enum Script {
        List(Value),
        ListFails(u16),
        /// Events, after which the connection ends.
        Watch(Vec<Value>),
        WatchFails(u16),
    }

    fn policy(name: &str) -> Value {
        json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicy",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"},
            "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-0123abcd"]}}
        })
    }

    fn list(names: &[&str]) -> Value {
        let items: Vec<_> = names.iter().map(|name| policy(name)).collect();
        json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicyList",
            "metadata": {"resourceVersion": "1"},
            "items": items
        })
    }

    fn status(code: u16) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code})
    }

    /// Plays a script to the watch of policies until it is used up, and gives what the
    /// cluster then knows of the namespace `shop`, with the metrics.
    async fn known_after(script: Vec<Script>) -> (usize, String) {
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let left = script.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let is_watch = request.uri().query().unwrap_or("").contains("watch=true");
            let is_policies = request.uri().path().ends_with("securitygrouppolicies");
            let mut left = left.lock().unwrap();
            let next = if is_policies { left.pop_front() } else { None };
            async move {
                let answer = match next {
                    Some(Script::List(list)) if !is_watch => (200, list.to_string()),
                    Some(Script::ListFails(code)) if !is_watch => (code, status(code).to_string()),
                    Some(Script::Watch(events)) if is_watch => {
                        let lines = events.iter().map(|event| format!("{event}\n"));
                        (200, lines.collect())
                    }
                    Some(Script::WatchFails(code)) if is_watch => (code, status(code).to_string()),
                    Some(_) => panic!("the script has another kind of call, watch: {is_watch}"),
                    None => std::future::pending().await,
                };
                let response = Response::builder().status(answer.0);
                Ok::<_, Infallible>(response.body(Body::from(answer.1)).unwrap())
            }
        });
        let metrics = Metrics::new();
        let client = kube::Client::new(service, "default");
        let cluster = Cluster::new(client.clone(), &metrics.lookups, metrics.watches.clone());
        let played = async {
            while !script.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The last answer is on its way; time passes only when nothing else can be done.
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tokio::select! {
            () = run(&cluster, client) => unreachable!("watches do not end"),
            () = played => {}
        }
        let known = cluster.known_policies("shop");
        let none = std::collections::BTreeMap::new();
        let count = known.map_or(0, |policies| policies.selecting(&none, &none).len());
        (count, metrics.encode())
    }

    fn event(kind: &str, object: Value) -> Value {
        json!({"type": kind, "object": object})
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_followed() {
        let (known, _) = known_after(vec![
            Script::List(list(&["a", "b"])),
            Script::Watch(vec![
                event("ADDED", policy("c")),
                event("DELETED", policy("a")),
            ]),
        ])
        .await;
        assert_eq!(known, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn list_after_a_gap_forgets_what_is_gone() {
        let gone = event("ERROR", status(410));
        let (known, _) = known_after(vec![
            Script::List(list(&["a", "b"])),
            Script::Watch(vec![gone]),
            Script::List(list(&["b"])),
        ])
        .await;
        assert_eq!(known, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn passing_fault_forgets_nothing() {
        for fault in [404, 500, 503] {
            let (known, metrics) = known_after(vec![
                Script::List(list(&["a", "b"])),
                Script::WatchFails(fault),
            ])
            .await;
            assert_eq!(known, 2, "{fault}");
            assert!(
                metrics.contains("sgp_policy_definition_installed 1"),
                "{fault}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn resource_that_went_away_and_came_back_is_listed_anew() {
        let mut script = vec![
            Script::List(list(&["a", "b"])),
            Script::WatchFails(404),
            Script::ListFails(404),
        ];
        let (known, metrics) = known_after(vec![
            Script::List(list(&["a", "b"])),
            Script::WatchFails(404),
            Script::ListFails(404),
        ])
        .await;
        assert_eq!(known, 0);
        assert!(metrics.contains("sgp_policy_definition_installed 0"));

        script.push(Script::List(list(&["c"])));
        let (known, metrics) = known_after(script).await;
        assert_eq!(known, 1);
        assert!(metrics.contains("sgp_policy_definition_installed 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn policy_that_can_not_be_read_does_not_hide_the_others() {
        let mut mixed = list(&["a", "b"]);
        mixed["items"][0]["spec"] = json!("nonsense");
        let (known, metrics) = known_after(vec![Script::List(mixed)]).await;
        assert_eq!(known, 1);
        assert!(metrics.contains(r#"sgp_policies{state="invalid"} 1"#));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted() {
        let (_, metrics) =
            known_after(vec![Script::List(list(&[])), Script::WatchFails(500)]).await;
        let line = r#"sgp_watch_failures_total{resource="securitygrouppolicies"} 1"#;
        assert!(metrics.contains(line), "{metrics}");
    }
}
