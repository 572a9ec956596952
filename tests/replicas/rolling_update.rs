//! All replicas are replaced while pods are created.
//!
//! `SGP_CREATIONS=200 cargo test --release --test replicas rolling -- --nocapture` does it under
//! more load.

use crate::cluster::{number, plain_client, start};
use crate::load;
use crate::metrics::{failed_calls, mutations};

const REPLICAS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_update_loses_no_creation_and_fails_no_call() {
    let mut sandbox = start(REPLICAS, &["--shutdown-delay=5"]).await;
    let client = plain_client(&sandbox);
    let rate = number("SGP_CREATIONS", 20);
    let before = failed_calls(&sandbox);
    let old: Vec<_> = ports(&mut sandbox);

    let (mut report, after_the_last) = load::run(&client, rate, async |mut progress| {
        progress.further(5 * rate).await;
        sandbox
            .roll_webhooks()
            .await
            .unwrap_or_else(|error| panic!("{error:#}"));
        let after_the_last = mutations(&mut sandbox);
        progress.further(5 * rate).await;
        after_the_last
    })
    .await;

    report.print();
    let mutations = mutations(&mut sandbox);
    println!("the new replicas answered {mutations:?} creations");
    report.assert_all_right();
    assert_eq!(failed_calls(&sandbox), before);
    let new = ports(&mut sandbox);
    assert_eq!(new.len(), REPLICAS);
    assert!(
        new.iter().all(|port| !old.contains(port)),
        "{old:?} {new:?}"
    );
    let answered = |counts: &[u64]| counts.iter().sum::<u64>();
    assert!(
        answered(&mutations) > answered(&after_the_last),
        "{mutations:?}"
    );
}

fn ports(sandbox: &mut sgp::dev::Sandbox) -> Vec<u16> {
    let replicas = sandbox.webhooks().iter();
    replicas.map(|replica| replica.port()).collect()
}
