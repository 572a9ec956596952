//! Who may write the annotations that name a pod's interface and its groups.

use super::messages;
use crate::api::names::{EKS_CONTROLLER_USERS, FARGATE_POD_SG, POD_ENI};
use crate::policy::Pod;
use crate::policy::pod::{Annotations, Text};
use crate::webhook::review::Request;

/// What somebody is about to do with an annotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Act {
    /// Create a pod with it.
    BringAlong,
    /// Add it to a pod.
    Set,
    /// Give it another value.
    Change,
    /// Take it away.
    Remove,
}

/// Why the request is refused, if it touches an annotation that is not its user's to touch.
pub fn denial(request: &Request<'_, Pod<'_>>, allocator_users: &[String]) -> Option<String> {
    let (name, act) = touched(request)?;
    let user = request.user_info.username.as_str();
    let may_write = EKS_CONTROLLER_USERS.contains(&user)
        || allocator_users.iter().any(|allocator| allocator == user);
    let pod = request.object.as_ref()?;
    (!may_write).then(|| messages::annotation(pod, name, act, user))
}

/// A guarded annotation that the request touches, the pod's interface first.
fn touched(request: &Request<'_, Pod<'_>>) -> Option<(&'static str, Act)> {
    let old = annotations(request.old_object.as_ref());
    let new = annotations(Some(request.object.as_ref()?));
    let eni = act(
        old.and_then(|all| all.pod_eni.as_ref()),
        new.and_then(|all| all.pod_eni.as_ref()),
    );
    let groups = act(
        old.and_then(|all| all.fargate_groups.as_ref()),
        new.and_then(|all| all.fargate_groups.as_ref()),
    );
    let is_new_pod = request.operation.as_str() == "CREATE" && request.kind.kind.as_str() == "Pod";
    match (eni, groups) {
        (Some(_), _) if is_new_pod => Some((POD_ENI, Act::BringAlong)),
        // What it may have there follows from its policies, not from its creator: the
        // annotation is our own patch.
        (None, _) if is_new_pod => None,
        (Some(act), _) => Some((POD_ENI, act)),
        (None, Some(act)) => Some((FARGATE_POD_SG, act)),
        (None, None) => None,
    }
}

fn annotations<'p, 'a>(pod: Option<&'p Pod<'a>>) -> Option<&'p Annotations<'a>> {
    pod?.metadata.annotations.as_ref()
}

fn act(old: Option<&Text<'_>>, new: Option<&Text<'_>>) -> Option<Act> {
    match (old, new) {
        (None, Some(_)) => Some(Act::Set),
        (Some(_), None) => Some(Act::Remove),
        (Some(old), Some(new)) if old.as_str() != new.as_str() => Some(Act::Change),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::review;
    use serde_json::{Value, json};

    const ENI: &str = "vpc.amazonaws.com/pod-eni";
    const GROUPS: &str = "fargate.amazonaws.com/pod-sg";

    fn ask(user: &str, operation: &str, kind: &str, old: Value, new: Value) -> Option<String> {
        let object = |annotations: Value| {
            let metadata = json!({"name": "web", "annotations": annotations});
            json!({ "metadata": metadata })
        };
        let body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "operation": operation,
                "kind": {"kind": kind},
                "userInfo": {"username": user},
                "object": object(new),
                "oldObject": if old.is_null() { Value::Null } else { object(old) }
            }
        });
        let body = body.to_string();
        let allocators = ["sgp".to_owned(), "other".to_owned()];
        denial(&review::read(body.as_bytes()).unwrap(), &allocators)
    }

    #[test]
    fn touched_annotation_is_refused_whoever_touches_it_but_its_writers() {
        let none = json!({});
        for (operation, kind, old, new, refused) in [
            ("CREATE", "Pod", Value::Null, json!({ENI: "[]"}), "bring"),
            ("CREATE", "Pod", Value::Null, json!({GROUPS: "sg-1"}), ""),
            ("CREATE", "Pod", Value::Null, json!({"a": "b"}), ""),
            ("CREATE", "Binding", Value::Null, json!({ENI: "[]"}), "set"),
            ("CREATE", "Binding", Value::Null, json!({GROUPS: ""}), "set"),
            ("CREATE", "Binding", Value::Null, none.clone(), ""),
            ("UPDATE", "Pod", none.clone(), json!({ENI: "[]"}), "set"),
            ("UPDATE", "Pod", Value::Null, json!({ENI: "[]"}), "set"),
            ("UPDATE", "Pod", json!({ENI: "[]"}), none.clone(), "remove"),
            ("UPDATE", "Pod", json!({ENI: "[]"}), Value::Null, "remove"),
            (
                "UPDATE",
                "Pod",
                json!({ENI: "a"}),
                json!({ENI: "b"}),
                "change",
            ),
            ("UPDATE", "Pod", json!({ENI: "a"}), json!({ENI: "a"}), ""),
            ("UPDATE", "Pod", json!({GROUPS: "a"}), none, "remove"),
            ("UPDATE", "Pod", json!({"a": "b"}), json!({"a": "c"}), ""),
        ] {
            let case = format!("{operation} {kind} {old} {new}");
            let told = ask("alice", operation, kind, old.clone(), new.clone());
            match (told, refused) {
                (None, "") => {}
                (Some(told), _) if !refused.is_empty() => {
                    let verb = format!("user \"alice\" may not {refused} ");
                    assert!(told.contains(&verb), "{case}: {told}");
                }
                (told, _) => panic!("{case}: {told:?}"),
            }
            for user in ["sgp", "other", "eks:vpc-resource-controller"] {
                let told = ask(user, operation, kind, old.clone(), new.clone());
                assert_eq!(told, None, "{case} by {user}");
            }
        }
    }
}
