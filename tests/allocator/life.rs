//! A pod's branch interface from its beginning to its end.

use std::collections::BTreeMap;

use crate::stage::{Setting, Stage};

#[tokio::test]
async fn one_pod_costs_four_calls_from_its_creation_to_the_end_of_its_interface() {
    let stage = Stage::start(Setting::default()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    stage.simulator().reset_calls();

    let running = scene.run("green", stage.node()).await;
    assert_eq!(stage.assert_consistent().await, []);
    scene.delete("green").await;
    stage.until_nothing_idles().await;

    assert_eq!(stage.interface(&running.interface.id), None);
    let expected = [
        "CreateNetworkInterface",
        "AssociateTrunkInterface",
        "DisassociateTrunkInterface",
        "DeleteNetworkInterface",
    ];
    let expected: BTreeMap<_, _> = expected.map(|action| (action.to_owned(), 1)).into();
    assert_eq!(stage.calls(), expected);
}
