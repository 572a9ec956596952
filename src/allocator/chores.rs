//! What is written to a node's objects: its CNINode, its label and its capacity.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::calls::{CallError, ask_api_server};
use super::cluster::CniNode;
use super::objects::NodeObject;
use crate::api::cni_node::Feature;
use crate::api::names::{
    CNI_NODE_FINALIZER, HAS_TRUNK_ATTACHED, OWNED, POD_ENI, TAG_CLUSTER_PREFIX,
};
use crate::api::{CNINode, CNINodeSpec};

/// One write to the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Chore {
    /// Create the node's CNINode, with features that an earlier one had.
    CreateCniNode {
        /// The UID of the node, which owns it.
        node_uid: String,
        /// What the plugin had asked for.
        features: Vec<Feature>,
    },
    /// Let a deleted CNINode go.
    ReleaseCniNode(Box<CNINode>),
    /// Say on the node what became of its trunk.
    Label(&'static str),
    /// Offer branch interfaces to the scheduler.
    Capacity(u32),
}

impl Chore {
    /// What it writes, which is done once at a time.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateCniNode { .. } => "create cninode",
            Self::ReleaseCniNode(_) => "release cninode",
            Self::Label(_) => "label node",
            Self::Capacity(_) => "patch node status",
        }
    }

    /// Carries it out.
    pub async fn carry_out(
        &self,
        client: &Client,
        cluster_name: &str,
        node: &str,
    ) -> Result<(), CallError> {
        let call = self.kind();
        let nodes = Api::<Node>::all(client.clone());
        let parameters = PatchParams::default();
        match self {
            Self::CreateCniNode { node_uid, features } => {
                let object = cni_node(cluster_name, node, node_uid, features.clone());
                let api = Api::<CNINode>::all(client.clone());
                let parameters = PostParams::default();
                let created = ask_api_server(call, api.create(&parameters, &object)).await;
                // Somebody else was first, or an old one is still on its way out.
                ignore(created, "AlreadyExists")
            }
            Self::ReleaseCniNode(object) => {
                let mut released = object.as_ref().clone();
                let finalizers = released.metadata.finalizers.get_or_insert_default();
                finalizers.retain(|finalizer| finalizer != CNI_NODE_FINALIZER);
                let api = Api::<CNINode>::all(client.clone());
                let parameters = PostParams::default();
                let replaced = api.replace(node, &parameters, &released);
                ignore(ask_api_server(call, replaced).await, "NotFound")
            }
            Self::Label(value) => {
                let patch = json!({"metadata": {"labels": {HAS_TRUNK_ATTACHED: value}}});
                let patch = Patch::Merge(&patch);
                // The API server takes labels by the status too, and no taints.
                let patched = nodes.patch_status(node, &parameters, &patch);
                ignore(ask_api_server(call, patched).await, "NotFound")
            }
            Self::Capacity(number) => {
                let patch = json!({"status": {"capacity": {POD_ENI: number.to_string()}}});
                let patch = Patch::Merge(&patch);
                let patched = nodes.patch_status(node, &parameters, &patch);
                ignore(ask_api_server(call, patched).await, "NotFound")
            }
        }
    }
}

fn ignore<T>(result: Result<T, CallError>, code: &str) -> Result<(), CallError> {
    match result {
        Err(error) if error.code != code => Err(error),
        _ => Ok(()),
    }
}

fn cni_node(cluster_name: &str, node: &str, node_uid: &str, features: Vec<Feature>) -> CNINode {
    CNINode {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            finalizers: Some(vec![CNI_NODE_FINALIZER.to_owned()]),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: node_uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: CNINodeSpec {
            features,
            tags: [(
                format!("{TAG_CLUSTER_PREFIX}{cluster_name}"),
                OWNED.to_owned(),
            )]
            .into(),
        },
    }
}

/// What has become of a node's trunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrunkState {
    /// Nothing that is worth a word.
    Unknown,
    /// It is attached, for so many branches.
    Attached(u32),
    /// The instance type takes none.
    Unsupported,
}

/// What is to be written for a node that is there.
pub fn due(
    node: &NodeObject,
    cni_node: Option<&CniNode>,
    trunk: TrunkState,
    features: &[Feature],
) -> Vec<Chore> {
    let mut chores = Vec::new();
    match cni_node {
        None if !node.is_windows() => chores.push(Chore::CreateCniNode {
            node_uid: node.uid().to_owned(),
            features: features.to_vec(),
        }),
        // The node is there, and so is all that hangs on it.
        Some(object) => chores.extend(release(object)),
        None => {}
    }
    let label = node.label(HAS_TRUNK_ATTACHED);
    match trunk {
        TrunkState::Attached(number) => {
            if label != Some("true") {
                chores.push(Chore::Label("true"));
            }
            if node.capacity() != Some(number.to_string().as_str()) {
                chores.push(Chore::Capacity(number));
            }
        }
        TrunkState::Unsupported if label != Some("not-supported") => {
            chores.push(Chore::Label("not-supported"));
        }
        TrunkState::Unsupported | TrunkState::Unknown => {}
    }
    chores
}

/// Lets a CNINode go that is deleted and held by us.
pub fn release(cni_node: &CniNode) -> Option<Chore> {
    let held = cni_node
        .object
        .finalizers()
        .iter()
        .any(|name| name == CNI_NODE_FINALIZER);
    (cni_node.is_deleted() && held).then(|| Chore::ReleaseCniNode(cni_node.object.clone().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn node(labels: Value, capacity: Value) -> NodeObject {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "1", "labels": labels},
            "spec": {"providerID": "aws:///us-west-2a/i-1"},
            "status": {"capacity": capacity}
        }))
        .unwrap()
    }

    fn kinds(node: &NodeObject, cni_node: Option<&CniNode>, trunk: TrunkState) -> Vec<String> {
        let chores = due(node, cni_node, trunk, &[]);
        chores.iter().map(|chore| chore.kind().to_owned()).collect()
    }

    fn existing(deleted: bool) -> CniNode {
        let mut object = cni_node("c", "a", "1", Vec::new());
        object.metadata.deletion_timestamp =
            deleted.then(|| serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        CniNode { object }
    }

    #[test]
    fn nothing_is_written_twice() {
        let there = existing(false);
        for (labels, capacity, trunk, expected) in [
            (json!({}), json!({}), TrunkState::Unknown, vec![]),
            (
                json!({HAS_TRUNK_ATTACHED: "false"}),
                json!({}),
                TrunkState::Attached(9),
                vec!["label node", "patch node status"],
            ),
            (
                json!({HAS_TRUNK_ATTACHED: "true"}),
                json!({POD_ENI: "9"}),
                TrunkState::Attached(9),
                vec![],
            ),
            (
                json!({HAS_TRUNK_ATTACHED: "true"}),
                json!({POD_ENI: "0"}),
                TrunkState::Attached(9),
                vec!["patch node status"],
            ),
            (
                json!({HAS_TRUNK_ATTACHED: "false"}),
                json!({}),
                TrunkState::Unsupported,
                vec!["label node"],
            ),
            (
                json!({HAS_TRUNK_ATTACHED: "not-supported"}),
                json!({}),
                TrunkState::Unsupported,
                vec![],
            ),
        ] {
            let node = node(labels, capacity);
            assert_eq!(
                kinds(&node, Some(&there), trunk),
                expected,
                "{node:?} {trunk:?}"
            );
        }
    }

    #[test]
    fn cni_node_that_was_deleted_comes_back_with_its_features() {
        let node = node(json!({}), json!({}));
        let features: Vec<Feature> =
            serde_json::from_value(json!([{"name": "SecurityGroupsForPods"}])).unwrap();
        let chores = due(&node, None, TrunkState::Unknown, &features);
        let [Chore::CreateCniNode { node_uid, features }] = &chores[..] else {
            panic!("{chores:?}")
        };
        let object = cni_node("c", node.name(), node_uid, features.clone());
        assert!(CniNode { object }.asks());
    }

    #[test]
    fn cni_node_of_others_is_left_to_them() {
        let mut theirs = existing(true);
        theirs.object.metadata.finalizers = Some(vec!["example.com/theirs".to_owned()]);
        assert!(release(&theirs).is_none());
    }

    #[test]
    fn every_linux_node_gets_a_cni_node_and_a_deleted_one_is_let_go() {
        let linux = node(json!({}), json!({}));
        let windows = node(json!({"kubernetes.io/os": "windows"}), json!({}));
        assert_eq!(kinds(&linux, None, TrunkState::Unknown), ["create cninode"]);
        assert_eq!(kinds(&windows, None, TrunkState::Unknown), [""; 0]);
        let deleted = existing(true);
        assert_eq!(
            kinds(&linux, Some(&deleted), TrunkState::Unknown),
            ["release cninode"]
        );
        assert!(release(&existing(false)).is_none());
    }
}
