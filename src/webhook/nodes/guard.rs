//! What the CNI plugin wanted to change of a node, told from what other webhooks changed
//! besides.
//!
//! A validating webhook sees the node as all mutating webhooks have left it. The API server
//! notes who writes which field (`managedFields`) before it calls the first of them, so that
//! nothing of theirs is noted:
//!
//! * A field that the caller sets is with an entry that has not had it before, or that has been
//!   renewed. A field that a webhook sets stays where it was, or is with nobody.
//! * A field that the caller removes is removed from all entries. A field that a webhook removes
//!   stays with whoever wrote it.
//!
//! One thing shows nowhere: the removal of a field that is noted nowhere, because a webhook
//! has set it. It counts as a webhook's, which is likelier. Where nothing at all is noted,
//! everything counts as the caller's.
//!
//! Callers can write what is noted themselves, and name the manager as which they write. What
//! could be gained by that is lost again: notes that are wiped out count as a change, and so
//! does a change of what somebody has taken [just now](JUST_NOW), for times are of whole seconds
//! and a second taking within one does not show.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::node::{Field, ManagedFields, Node};
use crate::api::names::{CNI_USER, ENI_CONFIG_BY_CNI, HAS_TRUNK_ATTACHED};

/// The labels that the CNI plugin may change.
const ITS_LABELS: [&str; 2] = [HAS_TRUNK_ATTACHED, ENI_CONFIG_BY_CNI];

/// More than lies between the API server's note of a time and our answer, with what their
/// clocks may differ by.
const JUST_NOW: SignedDuration = SignedDuration::from_secs(10);

/// Why the CNI plugin's change of a node is refused, if it is.
pub(super) fn denial(old: &Node, new: &Node, now: Timestamp) -> Option<String> {
    const NAMED: usize = 5;
    let is_its_own =
        |field: &Field<'_>| matches!(field, Field::Label(key) if ITS_LABELS.contains(key));
    let changes = new.changes(old).into_iter();
    let forbidden = changes.filter(|field| !is_its_own(field));
    let forbidden = forbidden.filter(|field| is_the_callers(*field, old, new, now));
    let mut forbidden: Vec<_> = forbidden.map(|field| field.to_string()).collect();
    let mut kept = new.kept(old).filter(|field| !is_its_own(field));
    if kept.any(|field| is_noted(field, old) && !is_noted(field, new)) {
        forbidden.push("metadata.managedFields".to_owned());
    }
    if forbidden.is_empty() {
        return None;
    }
    let mut named = forbidden[..forbidden.len().min(NAMED)].join(", ");
    if forbidden.len() > NAMED {
        named += &format!(" and {} more", forbidden.len() - NAMED);
    }
    let [trunk, eni_config] = ITS_LABELS;
    Some(format!(
        "node {:?}: aws-node can only update limited fields on the Node Object: the labels {trunk} \
         and {eni_config}, but this changes {named}. Change that as another user than {CNI_USER}",
        new.name()
    ))
}

/// Whether the caller, rather than a webhook, has changed this field.
fn is_the_callers(field: Field<'_>, old: &Node, new: &Node, now: Timestamp) -> bool {
    if new.managed_fields().is_empty() {
        return true;
    }
    if new.has(field) {
        let is_recent = |entry: &ManagedFields| entry.is_since(now - JUST_NOW);
        let is_taken = |entry| is_taken(field, entry, old.managed_fields());
        holders(field, new).any(|entry| is_taken(entry) || is_recent(entry))
    } else {
        is_noted(field, old) && !is_noted(field, new)
    }
}

/// The entries of those who have written the field.
fn holders<'a>(field: Field<'a>, node: &'a Node) -> impl Iterator<Item = &'a ManagedFields> {
    let entries = node.managed_fields().iter();
    entries.filter(move |entry| entry.of(field).is_some())
}

fn is_noted(field: Field<'_>, node: &Node) -> bool {
    holders(field, node).next().is_some()
}

/// Whether an entry has the field since this request, or has been renewed by it.
fn is_taken(field: Field<'_>, entry: &ManagedFields, before: &[ManagedFields]) -> bool {
    let mut same = before.iter().filter(|it| it.is_same_manager(entry));
    !same.any(|it| it.of(field) == entry.of(field) && !it.is_of_another_time(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A node with a label, an annotation and a taint, and what two managers have of them.
    fn node() -> Value {
        json!({
            "metadata": {
                "name": "one",
                "labels": {"pool": "a", HAS_TRUNK_ATTACHED: "false"},
                "annotations": {"note": "a"},
                "managedFields": [
                    {
                        "manager": "kubelet", "operation": "Update", "time": "2026-01-01T00:00:00Z",
                        "fieldsV1": {
                            "f:metadata": {
                                "f:labels": {".": {}, "f:pool": {}},
                                "f:annotations": {".": {}, "f:note": {}}
                            },
                            "f:spec": {"f:taints": {}}
                        }
                    },
                    {
                        "manager": "aws-k8s-agent", "operation": "Update",
                        "time": "2026-01-02T00:00:00Z",
                        "fieldsV1": {"f:metadata": {"f:labels": {
                            "f:vpc.amazonaws.com/has-trunk-attached": {}
                        }}}
                    }
                ]
            },
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "providerID": "aws:///a/i"}
        })
    }

    const ENTRY: usize = 1;

    /// Notes that the caller takes a field now.
    fn take(node: &mut Value, parents: &[&str], key: &str) {
        let entries = node["metadata"]["managedFields"].as_array_mut().unwrap();
        for (place, entry) in entries.iter_mut().enumerate() {
            let mut fields = &mut entry["fieldsV1"];
            for parent in parents {
                fields = &mut fields[*parent];
            }
            if place == ENTRY {
                fields[key] = json!({});
            } else if let Some(fields) = fields.as_object_mut() {
                fields.remove(key);
            }
        }
        entries[ENTRY]["time"] = json!("2026-01-03T00:00:00Z");
    }

    fn refused(old: &Value, new: &Value) -> Option<String> {
        let parse = |node: &Value| serde_json::from_value::<Node>(node.clone()).unwrap();
        denial(&parse(old), &parse(new), now())
    }

    fn now() -> Timestamp {
        "2026-01-05T00:00:00Z".parse().unwrap()
    }

    const LABELS: [&str; 2] = ["f:metadata", "f:labels"];
    const ANNOTATIONS: [&str; 2] = ["f:metadata", "f:annotations"];

    #[test]
    fn what_the_caller_changes_is_refused_and_named() {
        let mut new = node();
        new["metadata"]["labels"]["pool"] = json!("b");
        take(&mut new, &LABELS, "f:pool");
        new["metadata"]["annotations"]["own"] = json!("b");
        take(&mut new, &ANNOTATIONS, "f:own");
        new["spec"]["taints"] = json!([]);
        take(&mut new, &["f:spec"], "f:taints");
        new["spec"]["unschedulable"] = json!(true);
        take(&mut new, &["f:spec"], "f:unschedulable");
        assert_eq!(
            refused(&node(), &new).unwrap(),
            "node \"one\": aws-node can only update limited fields on the Node Object: the labels \
             vpc.amazonaws.com/has-trunk-attached and vpc.amazonaws.com/eniConfig, but this \
             changes label pool, annotation own, spec.taints, spec.unschedulable. Change that as \
             another user than system:serviceaccount:kube-system:aws-node"
        );
    }

    #[test]
    fn its_own_labels_are_its_to_change() {
        let mut new = node();
        new["metadata"]["labels"][HAS_TRUNK_ATTACHED] = json!("true");
        new["metadata"]["labels"][ENI_CONFIG_BY_CNI] = json!("zone-a");
        take(&mut new, &LABELS, "f:vpc.amazonaws.com/eniConfig");
        assert_eq!(refused(&node(), &new), None);
        assert_eq!(refused(&new, &node()), None, "nor to take away");
    }

    #[test]
    fn what_another_webhook_changes_besides_does_not_count() {
        let mut new = node();
        new["metadata"]["labels"][ENI_CONFIG_BY_CNI] = json!("zone-a");
        take(&mut new, &LABELS, "f:vpc.amazonaws.com/eniConfig");
        new["metadata"]["labels"]["pool"] = json!("b");
        new["metadata"]["labels"]["new"] = json!("b");
        new["metadata"]["annotations"] = json!({"own": "b"});
        new["spec"] = json!({"unschedulable": true, "taints": [{"key": "b"}]});
        assert_eq!(refused(&node(), &new), None);

        // And beside it the caller's own change still does.
        take(&mut new, &ANNOTATIONS, "f:own");
        let told = refused(&node(), &new).unwrap();
        assert!(
            told.contains("this changes annotation own. Change"),
            "{told}"
        );
    }

    #[test]
    fn field_that_the_caller_has_had_counts_when_it_is_renewed() {
        let mut old = node();
        take(&mut old, &LABELS, "f:pool");
        let mut new = old.clone();
        new["metadata"]["labels"]["pool"] = json!("b");
        assert_eq!(refused(&old, &new), None, "another webhook's");
        new["metadata"]["managedFields"][ENTRY]["time"] = json!("2026-01-04T00:00:00Z");
        assert!(refused(&old, &new).is_some());
    }

    #[test]
    fn removal_counts_if_nobody_has_the_field_any_more() {
        let mut new = node();
        new["metadata"]["annotations"] = json!({});
        assert_eq!(refused(&node(), &new), None, "kubelet has it still");
        let kubelets = &mut new["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"];
        kubelets["f:annotations"] = json!({});
        let told = refused(&node(), &new).unwrap();
        assert!(told.contains("annotation note"), "{told}");
    }

    /// Times are of whole seconds, and the caller chooses the manager as which he writes.
    #[test]
    fn what_was_taken_just_now_counts_whoever_has_it() {
        let lately = |seconds| {
            let mut old = node();
            let time = (now() - SignedDuration::from_secs(seconds)).to_string();
            old["metadata"]["managedFields"][0]["time"] = json!(time);
            let mut new = old.clone();
            new["metadata"]["labels"]["pool"] = json!("b");
            refused(&old, &new)
        };
        for seconds in [0, 10, -3_600] {
            let told = lately(seconds).unwrap();
            assert!(told.contains("this changes label pool. Change"), "{told}");
        }
        assert_eq!(lately(11), None);
    }

    #[test]
    fn wiping_out_what_is_noted_counts_as_a_change() {
        for entries in [
            json!([]),
            json!([node()["metadata"]["managedFields"][ENTRY]]),
        ] {
            let mut new = node();
            new["metadata"]["managedFields"] = entries;
            let told = refused(&node(), &new).unwrap();
            assert!(
                told.contains("changes metadata.managedFields. Change"),
                "{told}"
            );
        }
        // Its own label is its own, whoever sets it again.
        let mut new = node();
        new["metadata"]["managedFields"][ENTRY]["fieldsV1"] = json!({});
        assert_eq!(refused(&node(), &new), None);
    }

    #[test]
    fn everything_counts_where_nothing_is_noted() {
        let mut new = node();
        new["metadata"]["managedFields"] = json!([]);
        new["metadata"]["labels"]["pool"] = json!("b");
        assert!(refused(&node(), &new).is_some());
    }

    #[test]
    fn many_changes_are_counted_rather_than_listed() {
        let mut new = node();
        for key in ["a", "b", "c", "d", "e", "f", "g"] {
            new["metadata"]["annotations"][key] = json!("");
            take(&mut new, &ANNOTATIONS, &format!("f:{key}"));
        }
        let told = refused(&node(), &new).unwrap();
        assert!(told.contains("annotation e and 2 more. Change"), "{told}");
    }
}
