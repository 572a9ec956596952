//! PolicyEndpoints, which EKS's network policy controller makes from network policies and the
//! VPC CNI plugin's agents enforce: nobody else may edit them.
//!
//! Source: the EKS user guide, "Limit Pod traffic with Kubernetes network policies", under
//! "Considerations": "You shouldn't modify or delete these resources".

use serde_json::Value;

use crate::api::names::POLICY_ENDPOINT_EDITORS;

/// What becomes of a PolicyEndpoint, by whom.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    /// Who asks.
    pub user: &'a str,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'a str,
    /// As it is stored; absent for creations.
    pub old: Option<&'a Value>,
    /// As it is to be; absent for deletions.
    pub new: Option<&'a Value>,
}

impl Edit<'_> {
    /// Why it may not be, if so. `more_editors` are users of this cluster that may edit
    /// besides those that always may.
    pub fn refusal(&self, more_editors: &[String]) -> Option<String> {
        let is_editor = POLICY_ENDPOINT_EDITORS.contains(&self.user)
            || more_editors.iter().any(|editor| editor == self.user);
        if is_editor || !self.matters() {
            return None;
        }
        let verb = match self.operation {
            "CREATE" => "create",
            "DELETE" => "delete",
            _ => "change",
        };
        let origin = match self.origin() {
            Some(name) => format!("NetworkPolicy {name:?}"),
            None => "a NetworkPolicy".to_owned(),
        };
        Some(format!(
            "PolicyEndpoint {:?}: user {:?} may not {verb} it. EKS's network policy controller \
             makes it from {origin}, and nodes let traffic through by it. Change the NetworkPolicy \
             it was made from; where another controller makes PolicyEndpoints, name its user with \
             --policy-endpoint-user",
            self.name(),
            self.user,
        ))
    }

    /// Whether it touches what nodes enforce, or who may delete the object. All other changes
    /// are anybody's, so that finalizers can go and deletions end.
    fn matters(&self) -> bool {
        let (Some(old), Some(new)) = (self.old, self.new) else {
            return true;
        };
        old["spec"] != new["spec"]
            || old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"]
    }

    fn objects(&self) -> impl Iterator<Item = &Value> {
        [self.old, self.new].into_iter().flatten()
    }

    fn name(&self) -> &str {
        let mut names = self
            .objects()
            .filter_map(|object| object["metadata"]["name"].as_str());
        names.next().unwrap_or_default()
    }

    fn origin(&self) -> Option<&str> {
        let mut names = self
            .objects()
            .filter_map(|object| object["spec"]["policyRef"]["name"].as_str());
        names.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CONTROLLER: &str = "eks:network-policy-controller";

    fn endpoint() -> Value {
        json!({
            "metadata": {"name": "web-x7k2p", "ownerReferences": [{"uid": "1"}]},
            "spec": {"policyRef": {"name": "web", "namespace": "shop"}}
        })
    }

    #[test]
    fn nobody_but_controllers_and_who_is_named_edits_policy_endpoints() {
        let more = ["system:serviceaccount:ops:netpol".to_owned()];
        for (user, may) in [
            (CONTROLLER, true),
            (
                "system:serviceaccount:kube-system:amazon-network-policy-controller-k8s",
                true,
            ),
            (
                "system:serviceaccount:kube-system:namespace-controller",
                true,
            ),
            (
                "system:serviceaccount:kube-system:generic-garbage-collector",
                true,
            ),
            ("system:kube-controller-manager", true),
            ("system:serviceaccount:ops:netpol", true),
            ("kubernetes-admin", false),
            ("system:serviceaccount:shop:netpol", false),
            ("system:serviceaccount:kube-system:aws-node", false),
            ("", false),
        ] {
            let stored = endpoint();
            let mut changed = endpoint();
            changed["spec"]["ingress"] = json!([]);
            for (operation, old, new) in [
                ("CREATE", None, Some(&stored)),
                ("UPDATE", Some(&stored), Some(&changed)),
                ("DELETE", Some(&stored), None),
                // Not even one that tells nothing of itself.
                ("DELETE", None, None),
            ] {
                let edit = Edit {
                    user,
                    operation,
                    old,
                    new,
                };
                assert_eq!(edit.refusal(&more).is_none(), may, "{edit:?}");
            }
        }
    }

    #[test]
    fn anybody_changes_what_neither_nodes_nor_the_garbage_collector_look_at() {
        for (path, value, may) in [
            ("/metadata/name", json!("web-x7k2p"), true),
            ("/metadata/finalizers", json!([]), true),
            ("/metadata/labels", json!({"seen": "yes"}), true),
            ("/metadata/deletionTimestamp", json!("now"), true),
            ("/status", json!({"observed": 1}), true),
            ("/metadata/ownerReferences", json!([]), false),
            ("/spec", json!({}), false),
            ("/spec", json!(7), false),
        ] {
            let mut stored = endpoint();
            stored["metadata"]["finalizers"] = json!(["a"]);
            let mut changed = stored.clone();
            let (parent, key) = path.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[key] = value;
            let edit = Edit {
                user: "kubernetes-admin",
                operation: "UPDATE",
                old: Some(&stored),
                new: Some(&changed),
            };
            assert_eq!(edit.refusal(&[]).is_none(), may, "{path}");
        }
    }

    #[test]
    fn refusal_names_the_user_the_object_the_reason_and_the_way_out() {
        let stored = endpoint();
        let edit = Edit {
            user: "kubernetes-admin",
            operation: "DELETE",
            old: Some(&stored),
            new: None,
        };
        assert_eq!(
            edit.refusal(&[]).unwrap(),
            "PolicyEndpoint \"web-x7k2p\": user \"kubernetes-admin\" may not delete it. EKS's \
             network policy controller makes it from NetworkPolicy \"web\", and nodes let traffic \
             through by it. Change the NetworkPolicy it was made from; where another controller \
             makes PolicyEndpoints, name its user with --policy-endpoint-user"
        );
    }

    #[test]
    fn manifests_keep_the_editors_calls_off_the_webhook() {
        let manifest = include_str!("../../../manifests/base/validating-webhook.yaml");
        for editor in POLICY_ENDPOINT_EDITORS {
            assert!(manifest.contains(&format!("'{editor}'")), "{editor}");
        }
    }
}
