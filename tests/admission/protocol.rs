//! What the webhook answers to requests that the API server would not send, and to those
//! that `kubectl` can't make it send.

use hyper::Request;
use serde_json::{Value, json};

use crate::cluster::{DEFAULT, GROUP, Namespace, everything, pod};
use crate::https::{Answer, Version, get, metrics, post, send};

const JSON: &str = "application/json";

fn review(namespace: &str, object: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "object": object
        }
    })
}

fn ask(review: &Value) -> Answer {
    send(&DEFAULT, Version::Http2, post(JSON, review.to_string()))
}

/// The status of a denial; checks what every denial has.
#[track_caller]
fn denial(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    let response = &answer.json()["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(response["allowed"], false, "{response:#}");
    response["status"].clone()
}

#[test]
fn raw_pod_without_a_grace_period_gets_30_seconds() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let mut raw = pod(json!({}), json!({}));
    let answer = ask(&review(&namespace.name, raw.clone())).json();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["patchType"], "JSONPatch");

    let patch = base64(answer["response"]["patch"].as_str().unwrap());
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut raw, &patch).unwrap();
    assert_eq!(raw["spec"]["terminationGracePeriodSeconds"], 30);
    assert!(crate::cluster::requests_interface(&raw));

    let again = ask(&review(&namespace.name, raw)).json();
    assert_eq!(again["response"]["allowed"], true);
    assert!(
        again["response"].get("patch").is_none(),
        "nothing is left to change: {again:#}"
    );
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

pub fn missing_service_account_is_named(texts: &[String]) {
    let namespace = Namespace::new();
    let spec = json!({"serviceAccountSelector": {}, "securityGroups": {"groupIds": [GROUP]}});
    namespace.policies(&[("by-account", spec)]);
    // The API server's own admission asks first, so that only a raw request gets this far.
    let pod = pod(json!({}), json!({"serviceAccountName": "reader"}));
    let status = denial(&ask(&review(&namespace.name, pod)));

    assert_eq!(status["code"], 403);
    assert_eq!(status["reason"], "Forbidden");
    let text = texts[0].replace("shop", &namespace.name);
    assert_eq!(status["message"], text);
    assert_eq!(texts.len(), 1);
}

#[test]
fn creation_without_an_object_is_refused() {
    let status = denial(&ask(&review("default", Value::Null)));
    assert_eq!(status["code"], 400);
}

#[test]
fn that_no_policy_selects_a_pod_is_confirmed_by_the_api_server() {
    let namespace = Namespace::new();
    let asked = || {
        let text = metrics(DEFAULT.metrics_port());
        let all = text.lines().filter_map(|line| {
            line.strip_prefix("sgp_live_lookups_total{resource=\"securitygrouppolicies\"} ")
        });
        all.map(|count| count.parse::<u64>().unwrap()).sum::<u64>()
    };
    // Other tests make it ask too, but never without need.
    let before = asked();
    let response = ask(&review(&namespace.name, pod(json!({}), json!({})))).json();
    assert_eq!(response["response"]["allowed"], true);
    assert!(response["response"].get("patch").is_none());
    assert!(
        asked() > before,
        "that no policy selects a pod is confirmed"
    );
}

#[test]
fn request_that_is_for_another_path_is_refused_in_a_review() {
    let mut wrong_kind = review("default", pod(json!({}), json!({})));
    wrong_kind["request"]["kind"]["kind"] = json!("Deployment");
    let mut wrong_resource = review("default", pod(json!({}), json!({})));
    wrong_resource["request"]["resource"]["resource"] = json!("deployments");
    let mut sub_resource = review("default", pod(json!({}), json!({})));
    sub_resource["request"]["subResource"] = json!("ephemeralcontainers");
    for review in [wrong_kind, wrong_resource, sub_resource] {
        let status = denial(&ask(&review));
        assert_eq!(status["code"], 400);
        let message = status["message"].as_str().unwrap();
        assert!(
            message.contains("this path takes kind Pod of v1 and resource pods"),
            "{message}"
        );
    }
}

#[test]
fn object_that_is_no_pod_is_refused_in_a_review() {
    let status = denial(&ask(&review(
        "default",
        json!({"spec": {"hostNetwork": "yes"}}),
    )));
    assert_eq!(status["code"], 400);
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("the object of the AdmissionReview can't be read"),
        "{message}"
    );
}

#[test]
fn other_operations_are_let_through() {
    for operation in ["UPDATE", "DELETE", "CONNECT"] {
        let mut review = review("default", pod(json!({}), json!({})));
        review["request"]["operation"] = json!(operation);
        review["request"]["object"] = Value::Null;
        let response = &ask(&review).json()["response"];
        assert_eq!(response["allowed"], true, "{operation}");
        assert!(response.get("patch").is_none());
    }
}

#[test]
fn what_is_no_review_is_refused_by_http_status() {
    let good = review("default", pod(json!({}), json!({}))).to_string();
    let mut other_version: Value = serde_json::from_str(&good).unwrap();
    other_version["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let too_long = format!("{}{good}", " ".repeat(3 * 1024 * 1024));
    let deep = "[".repeat(100_000);
    for version in [Version::Http1, Version::Http2] {
        for (request, status) in [
            (post(JSON, good.clone()), 200),
            (post("application/json; charset=utf-8", good.clone()), 200),
            (post("text/plain", good.clone()), 415),
            (post("", good.clone()), 415),
            (post(JSON, ""), 400),
            (post(JSON, "{}"), 400),
            (post(JSON, good[..good.len() / 2].to_owned()), 400),
            (post(JSON, other_version.to_string()), 400),
            (post(JSON, b"\xff\xfe".to_vec()), 400),
            (post(JSON, deep.clone()), 400),
            (post(JSON, too_long.clone()), 413),
            (
                Request::get("https://127.0.0.1/mutate-v1-pod")
                    .body(Default::default())
                    .unwrap(),
                405,
            ),
            (
                Request::get("https://127.0.0.1/elsewhere")
                    .body(Default::default())
                    .unwrap(),
                404,
            ),
        ] {
            let what = format!("{version:?} {} {:?}", request.method(), request.headers());
            let answer = send(&DEFAULT, version, request);
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            if status == 400 {
                assert!(answer.body.contains("not an AdmissionReview"), "{answer:?}");
            }
        }
    }
}

#[test]
fn probes_and_metrics_tell_that_all_is_well() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    assert_eq!(get(&DEFAULT, "/healthz").status, 200);
    assert_eq!(get(&DEFAULT, "/readyz").status, 200);

    let counted = || {
        let text = metrics(DEFAULT.metrics_port());
        let prefix = r#"sgp_admission_requests_total{webhook="mpod",outcome="patched"} "#;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix(prefix))
            .unwrap();
        count.parse::<u64>().unwrap()
    };
    let before = counted();
    ask(&review(&namespace.name, pod(json!({}), json!({}))));
    assert!(counted() > before);
}
