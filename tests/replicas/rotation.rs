//! Certificates that live for seconds are renewed while pods are created.
//!
//! `SGP_LIFETIME_SECONDS=20 SGP_ROTATION_SECONDS=300 SGP_CREATIONS=100 cargo test --release --test
//! replicas rotation -- --nocapture` does it more often, for longer and under more load.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use sgp::dev::Sandbox;

use crate::cluster::{number, plain_client, start};
use crate::load;
use crate::metrics::{failed_calls, mutations, of_replica, sum};

const REPLICAS: usize = 3;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_load_without_a_failed_call() {
    // A certificate is renewed after two thirds of its life. A machine that is busy with other
    // tests may need some seconds for that.
    let lifetime = number("SGP_LIFETIME_SECONDS", 30);
    let flag = format!("--certificate-lifetime={lifetime}s");
    let mut sandbox = start(REPLICAS, &[&flag]).await;
    let client = plain_client(&sandbox);
    let rate = number("SGP_CREATIONS", 20);
    let seconds = number("SGP_ROTATION_SECONDS", 60);
    let duration = Duration::from_secs(seconds as u64);
    let (before, changes_before) = (failed_calls(&sandbox), changes(&mut sandbox));

    let (mut report, shared) = load::run(&client, rate, async |_| {
        certificates(&client, duration).await
    })
    .await;

    report.print();
    let changes = changes(&mut sandbox).into_iter().zip(changes_before);
    let changes: Vec<_> = changes.map(|(after, before)| after - before).collect();
    println!(
        "the replicas shared {shared} certificates, and changed to another {changes:?} times; \
         they answered {:?} creations",
        mutations(&mut sandbox)
    );
    report.assert_all_right();
    assert_eq!(failed_calls(&sandbox), before);
    // None can be used for longer than it lives.
    let least = seconds / lifetime;
    assert!(shared > least, "{shared}");
    assert!(
        changes.iter().all(|count| *count as usize >= least),
        "{changes:?}"
    );
}

/// How many certificates the replicas share within this time, one after the other.
async fn certificates(client: &Client, duration: Duration) -> usize {
    let secrets = Api::<Secret>::namespaced(client.clone(), "sgp-system");
    let (mut seen, begin) = (HashSet::new(), Instant::now());
    while begin.elapsed() < duration {
        let secret = secrets.get("sgp-webhook-certificates").await.unwrap();
        // At the very start the first one may still wait to be trusted.
        if let Some(certificate) = secret.data.unwrap_or_default().remove("tls.crt") {
            seen.insert(certificate.0);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    seen.len()
}

/// How often each replica has changed to another certificate.
fn changes(sandbox: &mut Sandbox) -> Vec<u64> {
    let replicas = sandbox.webhooks().iter();
    let texts = replicas.map(|replica| of_replica(replica.metrics_port()));
    texts
        .map(|text| sum(&text, "sgp_certificate_changes_total", &[]))
        .collect()
}
