//! Somebody changes in EC2 what is the allocator's.

use kube::ResourceExt;
use sgp::ec2::simulator::FaultOutcome;

use crate::burst::{error, lasting};
use crate::stage::{Running, Setting, Stage, eventually};

async fn stage() -> Stage {
    Stage::start(Setting {
        // What others have changed shows when everything is looked at.
        arguments: vec!["--audit-interval=2".to_owned()],
        ..Setting::default()
    })
    .await
}

impl Stage {
    async fn disassociate(&self, association_id: &str) {
        let call = self
            .sandbox()
            .cloud()
            .client()
            .disassociate_trunk_interface();
        let call = call.association_id(association_id).send();
        call.await.unwrap();
    }

    async fn delete_interface(&self, id: &str) {
        let call = self.sandbox().cloud().client().delete_network_interface();
        call.network_interface_id(id).send().await.unwrap();
    }
}

fn association(running: &Running) -> &str {
    &running.annotation.association_id
}

#[tokio::test]
async fn interface_in_use_that_is_disassociated_is_associated_again() {
    let stage = stage().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let running = scene.run("pod", stage.node()).await;

    stage.disassociate(association(&running)).await;
    let uid = running.uid();
    let event = stage.until_event_that(&uid, "ResourceAllocated", |note| {
        note.contains("associated again")
    });
    assert_eq!(event.await.type_.as_deref(), Some("Warning"));

    let again = eventually("the association", async || {
        stage.interface(&running.interface.id)?.association
    })
    .await;
    assert_eq!(again.vlan_id, running.annotation.vlan_id);
    assert_ne!(again.id, association(&running));
    // And it ends as any other, although the annotation names another association.
    scene.delete("pod").await;
    eventually("its interface to go", async || {
        stage
            .interface(&running.interface.id)
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn interface_in_use_that_is_deleted_is_told_of_and_the_next_pod_gets_another() {
    let stage = stage().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let running = scene.run("pod", stage.node()).await;
    let id = &running.interface.id;

    // Nobody shall be quicker.
    let hang = lasting("AssociateTrunkInterface", FaultOutcome::Hang);
    stage.simulator().add_fault(hang).unwrap();
    stage.disassociate(association(&running)).await;
    stage.delete_interface(id).await;
    stage.simulator().clear_faults();

    let uid = running.uid();
    let event = stage.until_event_that(&uid, "BranchAllocationFailed", |note| {
        note.contains(id) && note.contains("delete the pod")
    });
    assert_eq!(event.await.type_.as_deref(), Some("Warning"));
    scene.delete("pod").await;
    let next = scene.run("pod", stage.node()).await;
    assert_ne!(next.interface.id, *id);
    stage.assert_consistent().await;
}

#[tokio::test]
async fn interface_that_is_deleted_while_it_is_prepared_is_replaced() {
    let stage = stage().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;

    let fault = lasting("AssociateTrunkInterface", error("InternalError"));
    stage.simulator().add_fault(fault).unwrap();
    let pod = scene.pod("pod", stage.node()).await;
    let made = eventually("an interface", async || {
        stage.branches_of(stage.node()).pop()
    })
    .await;
    stage.delete_interface(&made.id).await;
    stage.simulator().clear_faults();

    let uid = pod.uid().unwrap();
    let event = stage.until_event_that(&uid, "BranchAllocationFailed", |note| {
        note.contains("InvalidNetworkInterfaceID.NotFound")
    });
    event.await;
    let running = scene.until_runs("pod").await;
    assert_ne!(running.interface.id, made.id);
    assert_eq!(stage.assert_consistent().await, []);
}

#[tokio::test]
async fn interface_that_is_disassociated_before_its_pod_knows_it_is_mended() {
    let stage = stage().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;

    // The association's answer comes late, and is outdated then.
    stage.set(|settings| {
        settings
            .latency_ms
            .insert("AssociateTrunkInterface".to_owned(), 1_500);
    });
    scene.pod("pod", stage.node()).await;
    let made = eventually("an association", async || {
        stage.branches_of(stage.node()).pop()?.association
    })
    .await;
    stage.disassociate(&made.id).await;

    let again = eventually("another association", async || {
        let branch = stage.branches_of(stage.node()).pop()?;
        branch.association.filter(|it| it.id != made.id)
    })
    .await;
    assert_eq!(again.vlan_id, made.vlan_id);
}
