//! The changes of a decision as a JSON patch (RFC 6902) of the pod.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Value, json};

use crate::api::names::{FARGATE_POD_SG, POD_ENI};
use crate::policy::{Change, Pod};

/// The patch that makes `changes` to `pod`, as an answer carries it: its JSON in base64.
/// `None` if there is nothing to change.
pub fn encoded_patch(pod: &Pod<'_>, changes: &[Change]) -> Option<Cow<'static, str>> {
    /// Nearly every patch is one of these, and to make one takes as long as all the rest of
    /// a decision and its answer.
    static PREPARED: LazyLock<Vec<(Present, String)>> = LazyLock::new(|| {
        let lists = [(false, false), (false, true), (true, false), (true, true)];
        let shapes = [None].into_iter().chain(lists.map(Some));
        let encoded = |present| encode(&Patch(request_branch_interface(present)));
        shapes.map(|present| (present, encoded(present))).collect()
    });
    match changes {
        [] => None,
        [Change::RequestBranchInterface] if pod.requests_elsewhere().next().is_none() => {
            let present = present(pod);
            let prepared = PREPARED.iter().find(|(shape, _)| *shape == present);
            prepared.map(|(_, patch)| patch.as_str().into())
        }
        _ => Some(encode(&patch(pod, changes)).into()),
    }
}

fn encode(patch: &Patch) -> String {
    BASE64.encode(serde_json::to_vec(patch).expect("a patch is made of JSON values"))
}

/// Whether the first container has `limits` and `requests`; `None` if it has no `resources`
/// at all.
type Present = Option<(bool, bool)>;

fn present(pod: &Pod<'_>) -> Present {
    let resources = pod.first_container_resources().flatten();
    resources.map(|lists| (lists.limits.is_some(), lists.requests.is_some()))
}

/// The smallest patch that makes `changes` to `pod`. Parents that are missing are added.
fn patch(pod: &Pod<'_>, changes: &[Change]) -> Patch {
    let operations = changes.iter().flat_map(|change| match change {
        Change::RequestBranchInterface => {
            let mut operations = request_branch_interface(present(pod));
            operations.extend(requests_elsewhere(pod));
            operations
        }
        Change::SetGracePeriod(seconds) => vec![set_grace_period(pod, *seconds)],
        Change::SetFargateGroups(ids) => vec![set_fargate_groups(pod, ids)],
        Change::RemoveFargateGroups => vec![PatchOperation::Remove(RemoveOperation {
            path: pointer(&["metadata", "annotations", FARGATE_POD_SG]),
        })],
    });
    Patch(operations.collect())
}

fn request_branch_interface(present: Present) -> Vec<PatchOperation> {
    const FIRST: [&str; 4] = ["spec", "containers", "0", "resources"];
    let one = json!({POD_ENI: "1"});
    let Some((limits, requests)) = present else {
        return vec![add(&FIRST, json!({"limits": one, "requests": one}))];
    };
    let lists = [("limits", limits), ("requests", requests)];
    let add_to = |(list, is_present)| {
        let [spec, containers, first, resources] = FIRST;
        if is_present {
            add(
                &[spec, containers, first, resources, list, POD_ENI],
                json!("1"),
            )
        } else {
            add(&[spec, containers, first, resources, list], one.clone())
        }
    };
    lists.map(add_to).into()
}

/// Takes away what other containers request, so that the scheduler counts one interface: a
/// pod's first container may be another one than when we looked before.
fn requests_elsewhere(pod: &Pod<'_>) -> impl Iterator<Item = PatchOperation> {
    pod.requests_elsewhere().map(|(field, place, list)| {
        let place = place.to_string();
        PatchOperation::Remove(RemoveOperation {
            path: pointer(&["spec", field, &place, "resources", list, POD_ENI]),
        })
    })
}

fn set_grace_period(pod: &Pod<'_>, seconds: i64) -> PatchOperation {
    let path = &["spec", "terminationGracePeriodSeconds"];
    match pod.spec.termination_grace_period_seconds {
        None => add(path, json!(seconds)),
        Some(_) => replace(path, json!(seconds)),
    }
}

fn set_fargate_groups(pod: &Pod<'_>, ids: &str) -> PatchOperation {
    let path = &["metadata", "annotations", FARGATE_POD_SG];
    match &pod.metadata.annotations {
        None => add(&path[..2], json!({FARGATE_POD_SG: ids})),
        Some(annotations) if annotations.fargate_groups.is_none() => add(path, json!(ids)),
        Some(_) => replace(path, json!(ids)),
    }
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation {
        path: pointer(path),
        value,
    })
}

fn replace(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation {
        path: pointer(path),
        value,
    })
}

/// A path from its tokens, so that a `/` in a name is escaped.
fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pod after the changes, as the API server would have it.
    fn patched(pod: &Value, changes: &[Change]) -> Value {
        let json = pod.to_string();
        let encoded = encoded_patch(&serde_json::from_str(&json).unwrap(), changes).unwrap();
        let patch: Patch = serde_json::from_slice(&BASE64.decode(&*encoded).unwrap()).unwrap();
        let mut pod = pod.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        pod
    }

    #[test]
    fn branch_interface_is_added_beside_what_the_container_has() {
        let both = json!({"limits": {POD_ENI: "1"}, "requests": {POD_ENI: "1"}});
        for (resources, expected) in [
            (json!({}), both.clone()),
            (
                json!({"claims": []}),
                json!({
                    "claims": [], "limits": {POD_ENI: "1"}, "requests": {POD_ENI: "1"}
                }),
            ),
            (json!({"limits": null}), both.clone()),
            (
                json!({"limits": {"cpu": "1"}, "requests": {}}),
                json!({"limits": {"cpu": "1", POD_ENI: "1"}, "requests": {POD_ENI: "1"}}),
            ),
        ] {
            let pod = json!({"spec": {"containers": [{"resources": resources}, {"name": "b"}]}});
            let patched = patched(&pod, &[Change::RequestBranchInterface]);
            let expected =
                json!({"spec": {"containers": [{"resources": expected}, {"name": "b"}]}});
            assert_eq!(patched, expected, "{resources}");
        }
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let patched = patched(&pod, &[Change::RequestBranchInterface]);
        assert_eq!(patched["spec"]["containers"][0]["resources"], both);
    }

    #[test]
    fn grace_period_is_added_or_replaced() {
        for spec in [json!({}), json!({"terminationGracePeriodSeconds": 0})] {
            let patched = patched(&json!({ "spec": spec }), &[Change::SetGracePeriod(30)]);
            assert_eq!(
                patched,
                json!({"spec": {"terminationGracePeriodSeconds": 30}})
            );
        }
    }

    #[test]
    fn fargate_annotation_is_added_replaced_or_removed() {
        let set = [Change::SetFargateGroups("sg-1,sg-2".into())];
        for (metadata, expected) in [
            (json!({}), json!({FARGATE_POD_SG: "sg-1,sg-2"})),
            (
                json!({"annotations": {}}),
                json!({FARGATE_POD_SG: "sg-1,sg-2"}),
            ),
            (
                json!({"annotations": {"a": "b", FARGATE_POD_SG: "sg-9"}}),
                json!({"a": "b", FARGATE_POD_SG: "sg-1,sg-2"}),
            ),
        ] {
            let patched = patched(&json!({ "metadata": metadata }), &set);
            assert_eq!(patched["metadata"]["annotations"], expected);
        }
        let pod = json!({"metadata": {"annotations": {"a": "b", FARGATE_POD_SG: "sg-9"}}});
        let patched = patched(&pod, &[Change::RemoveFargateGroups]);
        assert_eq!(patched, json!({"metadata": {"annotations": {"a": "b"}}}));
    }
}
