//! AdmissionReviews: whatever comes, the reader says what is wrong or reads it, and a pod that
//! was read and patched needs no further patch.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sgp::policy::{
    GracePeriodPolicy, MissingGroupPolicy, NamespacePolicies, Pod, Policy, PolicyIndex,
    ServiceAccount, Settings, UnsupportedPodPolicy, decide,
};
use sgp::webhook::pods::messages;
use sgp::webhook::pods::patch::encoded_patch;
use sgp::webhook::review;

/// What the API server passes on of a warning, and of all warnings of an answer.
const WARNING_CHARACTERS: usize = 256;
const WARNINGS_CHARACTERS: usize = 4096;

/// Panics if the property does not hold for this input.
pub fn check(body: &[u8]) {
    let Ok(request) = review::read::<Pod<'_>>(body) else {
        return;
    };
    let Some(pod) = &request.object else { return };
    for settings in every_setting() {
        changes(pod, settings);
    }
    // The reader is laxer than JSON where it skips what it does not need, and the API server
    // only sends what it takes for a pod itself.
    let Ok(review) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let object = &review["request"]["object"];
    if serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(object.clone()).is_err() {
        return;
    }
    for settings in every_setting() {
        needs_one_patch_at_most(object, settings);
    }
}

/// The pod as it would be stored gets no second patch.
fn needs_one_patch_at_most(object: &Value, settings: Settings) {
    let json = object.to_string();
    let Ok(pod) = serde_json::from_str::<Pod<'_>>(&json) else {
        return;
    };
    let Some(patch) = changes(&pod, settings) else {
        return;
    };
    let patch = BASE64.decode(patch).expect("a patch is in base64");
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch is JSON");
    let mut patched = object.clone();
    if let Err(error) = json_patch::patch(&mut patched, &patch) {
        panic!("the patch {patch} can't be applied to {object}: {error}");
    }
    let json = patched.to_string();
    let pod: Pod<'_> = serde_json::from_str(&json).expect("a patched pod is a pod");
    let again = changes(&pod, settings);
    assert_eq!(again, None, "{object} became {patched} by {patch}");
}

/// The patch for this pod, if it is let in and needs one.
fn changes(pod: &Pod<'_>, settings: Settings) -> Option<String> {
    let labels = BTreeMap::from([("role".to_owned(), "reader".to_owned())]);
    let policies = &*POLICIES;
    let missing = ServiceAccount::<'_, BTreeMap<String, String>>::Missing;
    let denied = decide(pod, policies, missing, settings);
    if let Some(denial) = &denied.denial {
        messages::denial(pod, "shop", &denied, denial);
    }
    let decision = decide(pod, policies, ServiceAccount::Labels(&labels), settings);
    check_warnings(&messages::warnings(pod, &decision));
    if let Some(denial) = &decision.denial {
        messages::denial(pod, "shop", &decision, denial);
        return None;
    }
    encoded_patch(pod, &decision.changes).map(|patch| patch.into_owned())
}

fn check_warnings(warnings: &[String]) {
    let mut all = 0;
    for warning in warnings {
        let characters = warning.chars().count();
        assert!(characters <= WARNING_CHARACTERS, "{warning}");
        assert!(!warning.contains(char::is_control), "{warning:?}");
        all += characters;
    }
    assert!(all <= WARNINGS_CHARACTERS, "{warnings:?}");
}

static POLICIES: LazyLock<Arc<NamespacePolicies>> = LazyLock::new(|| {
    let groups = |id: &str| json!({"groupIds": [id]});
    let mut index = PolicyIndex::default();
    for (name, spec) in [
        (
            "broken",
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Near"}]}}),
        ),
        (
            "by-account",
            json!({
                "serviceAccountSelector": {"matchLabels": {"role": "reader"}},
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
                "securityGroups": groups("sg-0000000c")
            }),
        ),
        (
            "by-pod",
            json!({
                "podSelector": {"matchLabels": {"app": "web"}},
                "securityGroups": groups("sg-0000000a")
            }),
        ),
        (
            "most",
            json!({
                "podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "NotIn", "values": ["none"]}
                ]},
                "securityGroups": groups("not-an-id")
            }),
        ),
    ] {
        index.apply("shop", Policy::parse(name, &spec));
    }
    index.namespace("shop").expect("it has policies")
});

fn every_setting() -> impl Iterator<Item = Settings> {
    use GracePeriodPolicy::{Deny, Set, Warn};
    let unsupported = [UnsupportedPodPolicy::Warn, UnsupportedPodPolicy::Deny];
    let missing = [MissingGroupPolicy::Warn, MissingGroupPolicy::Deny];
    [Deny, Set, Warn].into_iter().flat_map(move |grace_period| {
        unsupported.into_iter().flat_map(move |unsupported_pods| {
            missing.map(move |missing_groups| Settings {
                grace_period,
                unsupported_pods,
                missing_groups,
                ..Settings::default()
            })
        })
    })
}
