//! What users see when they write Services, network policies and PolicyEndpoints.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use serde_json::{Value, json};
use sgp::dev::Sandbox;

use crate::cluster::{
    DEFAULT, GROUP, Namespace, Output, STRICT, by_pod, eventually, everything, kubectl, policy,
};
use crate::https::metrics;

const CONTROLLER: &str = "eks:network-policy-controller";
/// Named by `--policy-endpoint-user` in the strict sandbox.
const FURTHER_CONTROLLER: &str = "system:serviceaccount:netpol:controller";

documented!("networks.md",
    services_that_keep_traffic_on_the_node => |texts| {
        let by_account = json!({
            "serviceAccountSelector": {"matchLabels": {"role": "reader"}},
            "securityGroups": {"groupIds": [GROUP]}
        });
        let clients = ("clients", by_pod(json!({"app": "web"})));
        let other = ("database", by_pod(json!({"app": "db"})));
        let all = ("everything", everything(&[GROUP]));
        for (kind, policies, text) in [
            ("NodePort", vec![clients.clone(), other.clone()], &texts[0]),
            ("NodePort", vec![("readers", by_account), other], &texts[1]),
            ("LoadBalancer", vec![clients.clone()], &texts[2]),
            ("LoadBalancer", vec![clients, all], &texts[3]),
        ] {
            let namespace = Namespace::new();
            for (name, spec) in policies {
                namespace.apply(&policy(name, &spec)).ok();
            }
            let local = service(json!({"type": kind, "externalTrafficPolicy": "Local"}));
            assert_eq!(warned(|| namespace.dry_run(&local)).warnings(), [text]);
        }
        assert_eq!(texts.len(), 4);
    },
    services_that_translate_ports => |texts| {
        let namespace = Namespace::new();
        namespace.apply(&network_policy(json!({"podSelector": {}}))).ok();
        for (ports, text) in [
            (json!([{"port": 80, "targetPort": 8080}]), &texts[0]),
            (
                json!([
                    {"name": "http", "port": 80, "targetPort": "web"},
                    {"name": "https", "port": 443, "targetPort": 8443},
                    {"name": "metrics", "port": 9090, "targetPort": "metrics"}
                ]),
                &texts[1],
            ),
        ] {
            let translating = service(json!({ "ports": ports }));
            assert_eq!(warned(|| namespace.dry_run(&translating)).warnings(), [text]);
        }
        assert_eq!(texts.len(), 2);
    },
    network_policies_with_too_many_ports => |texts| {
        let namespace = Namespace::new();
        let selector = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
        let from = json!([
            {"from": [selector("db"), selector("web")], "ports": ports(1, 20)},
            {"from": [selector("web")], "ports": ports(16, 25)},
        ]);
        for (policy, text) in [
            (network_policy(json!({"podSelector": {}, "ingress": from})), &texts[0]),
            (egress_policy(json!([{"ports": ports(70, 99)}])), &texts[1]),
        ] {
            let written = namespace.apply(&policy).ok();
            assert_eq!(written.warnings(), [text]);
        }
        assert_eq!(texts.len(), 2);
    },
    network_policies_that_cut_off_credentials => |texts| {
        let namespace = Namespace::new();
        let to = |cidr: &str| json!([{"to": [{"ipBlock": {"cidr": cidr}}]}]);
        for (egress, text) in [
            (to("10.0.0.0/8"), &texts[0]),
            (to("169.254.170.23/32"), &texts[1]),
            (to("169.254.169.254/32"), &texts[2]),
        ] {
            let written = namespace.apply(&egress_policy(egress)).ok();
            assert_eq!(written.warnings(), [text]);
        }
        assert_eq!(texts.len(), 3);
    },
    edits_of_policy_endpoints => |texts| {
        let endpoints = Endpoints::new(&DEFAULT);
        let mut endpoint = endpoint();
        endpoints.refuses(&endpoints.create("alice", &endpoint), &texts[0]);
        endpoints.create(CONTROLLER, &endpoint).ok();
        endpoint["spec"]["ingress"] = json!([{"cidr": "0.0.0.0/0"}]);
        endpoints.refuses(&endpoints.replace("alice", &endpoint), &texts[1]);
        endpoints.refuses(&endpoints.delete("alice"), &texts[2]);
        endpoints.replace(CONTROLLER, &endpoint).ok();
        endpoints.delete(CONTROLLER).ok();
        assert_eq!(texts.len(), 3);
    },
);

/// Tries to write a Service until the webhook had the API server's answer in time, which it has
/// not on a machine that is very busy: then it has nothing to say.
#[track_caller]
fn warned(attempt: impl Fn() -> Output) -> Output {
    eventually("a warning", || {
        let tried = attempt().ok();
        (!tried.warnings().is_empty()).then_some(tried)
    })
}

/// A Service of the pods with `app: web`; the spec is added.
fn service(spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn network_policy(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "limits"},
        "spec": spec
    })
}

fn egress_policy(egress: Value) -> Value {
    network_policy(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress}))
}

fn ports(first: u16, last: u16) -> Value {
    let ports = (first..=last).map(|port| json!({"port": port, "protocol": "TCP"}));
    ports.collect()
}

fn endpoint() -> Value {
    json!({
        "apiVersion": "networking.k8s.aws/v1alpha1",
        "kind": "PolicyEndpoint",
        "metadata": {"name": "web-x7k2p"},
        "spec": {"policyRef": {"name": "web", "namespace": "shop"}}
    })
}

/// PolicyEndpoints in a namespace of their own, edited by various users who all have the
/// rights to.
struct Endpoints {
    sandbox: &'static Sandbox,
    namespace: Namespace,
}

impl Endpoints {
    fn new(sandbox: &'static Sandbox) -> Self {
        define_policy_endpoints(sandbox);
        let namespace = Namespace::of(sandbox);
        Self { sandbox, namespace }
    }

    fn by(&self, user: &str, arguments: &[&str], input: Option<&Value>) -> Output {
        let user = format!("--as={user}");
        let namespace = format!("--namespace={}", self.namespace.name);
        let who = [&*user, "--as-group=system:masters", &*namespace];
        kubectl(self.sandbox, &[arguments, &who].concat(), input)
    }

    fn create(&self, user: &str, endpoint: &Value) -> Output {
        self.by(user, &["create", "-f", "-"], Some(endpoint))
    }

    fn replace(&self, user: &str, endpoint: &Value) -> Output {
        self.by(user, &["replace", "-f", "-"], Some(endpoint))
    }

    fn patch(&self, user: &str, patch: Value) -> Output {
        let patch = format!("--patch={patch}");
        let arguments = [
            "patch",
            "policyendpoint",
            "web-x7k2p",
            "--type=merge",
            &patch,
        ];
        self.by(user, &arguments, None)
    }

    fn delete(&self, user: &str) -> Output {
        self.by(user, &["delete", "policyendpoint", "web-x7k2p"], None)
    }

    fn exists(&self) -> bool {
        let arguments = ["get", "policyendpoints", "--output=name"];
        !self.namespace.kubectl(&arguments).ok().stdout.is_empty()
    }

    #[track_caller]
    fn refuses(&self, output: &Output, text: &str) {
        assert!(!output.success, "{output:#?}");
        let denied = "admission webhook \"vnetwork-policyendpoints.vpc.k8s.aws\" denied the \
                      request: ";
        let (start, told) = output.stderr.trim_end().split_once(denied).unwrap();
        assert!(start.contains("(Forbidden)"), "{start}");
        assert_eq!(told, text);
    }
}

/// As little of the definition as the tests need; EKS installs the whole.
fn define_policy_endpoints(sandbox: &'static Sandbox) {
    static DEFAULT_DEFINED: Once = Once::new();
    static STRICT_DEFINED: Once = Once::new();
    let defined = if std::ptr::eq(sandbox, &*DEFAULT) {
        &DEFAULT_DEFINED
    } else {
        &STRICT_DEFINED
    };
    defined.call_once(|| {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "policyendpoints.networking.k8s.aws"},
            "spec": {
                "group": "networking.k8s.aws",
                "scope": "Namespaced",
                "names": {
                    "kind": "PolicyEndpoint",
                    "plural": "policyendpoints",
                    "singular": "policyendpoint"
                },
                "versions": [{
                    "name": "v1alpha1",
                    "served": true,
                    "storage": true,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": any, "status": any}
                    }}
                }]
            }
        });
        kubectl(sandbox, &["apply", "-f", "-"], Some(&definition)).ok();
        let established = [
            "wait",
            "--for=condition=Established",
            "--timeout=120s",
            "crd/policyendpoints.networking.k8s.aws",
        ];
        kubectl(sandbox, &established, None).ok();
        // The API server serves a new resource a moment after it says so.
        eventually("PolicyEndpoints to be served", || {
            let arguments = ["get", "policyendpoints", "--all-namespaces"];
            kubectl(sandbox, &arguments, None).success.then_some(())
        });
    });
}

#[test]
fn services_that_work_are_written_without_a_word() {
    let namespace = Namespace::new();
    namespace
        .apply(&policy("clients", &by_pod(json!({"app": "web"}))))
        .ok();
    let mut limits = network_policy(json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    namespace.apply(&limits).ok();
    let local = |kind: &str| json!({"type": kind, "externalTrafficPolicy": "Local"});
    let mut elsewhere = local("NodePort");
    elsewhere["selector"] = json!({"app": "db"});
    elsewhere["ports"] = json!([{"port": 443}]);
    for spec in [
        json!({"type": "NodePort", "externalTrafficPolicy": "Cluster"}),
        elsewhere,
        json!({"ports": [{"port": 80, "targetPort": 8080}]}),
    ] {
        let written = namespace.apply(&service(spec)).ok();
        assert!(written.warnings().is_empty(), "{written:#?}");
        namespace.kubectl(&["delete", "service", "web"]).ok();
    }
    let targets = "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type";
    let mut balanced = service(local("LoadBalancer"));
    balanced["metadata"]["annotations"] = json!({targets: "ip"});
    let written = namespace.apply(&balanced).ok();
    assert!(written.warnings().is_empty(), "{written:#?}");

    // The same objects, once they go together.
    let instance = format!("{targets}=instance");
    let annotate = ["annotate", "--overwrite", "service", "web", &instance];
    let changed = warned(|| namespace.kubectl(&[&annotate[..], &["--dry-run=server"]].concat()));
    assert_eq!(changed.warnings().len(), 1);
    namespace.kubectl(&annotate).ok();
    limits["spec"]["podSelector"]["matchLabels"]["app"] = json!("web");
    namespace.apply(&limits).ok();
    let both = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "targetPort": 8080}]
    });
    // Who knows of one may have been late for the other.
    eventually("both warnings", || {
        let tried = namespace.dry_run(&service(both.clone())).ok();
        (tried.warnings().len() == 2).then_some(())
    });
}

#[test]
fn network_policies_that_work_are_written_without_a_word() {
    let namespace = Namespace::new();
    let everywhere = json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": ports(77, 99)}]);
    for policy in [
        network_policy(json!({"podSelector": {}})),
        network_policy(json!({"podSelector": {}, "ingress": [{"ports": ports(1, 24)}]})),
        egress_policy(json!([{}])),
        egress_policy(everywhere),
    ] {
        let written = namespace.apply(&policy).ok();
        assert!(written.warnings().is_empty(), "{written:#?}");
    }
}

#[test]
fn dry_runs_are_answered_as_other_calls_are() {
    let endpoints = Endpoints::new(&DEFAULT);
    let told = endpoints.namespace.dry_run(&egress_policy(json!([]))).ok();
    assert_eq!(told.warnings().len(), 1);
    let refused = endpoints.namespace.dry_run(&endpoint());
    assert!(!refused.success, "{refused:#?}");
    assert!(
        refused.stderr.contains("user \"admin\" may not create it"),
        "{refused:#?}"
    );
}

#[test]
fn policy_endpoint_goes_with_its_network_policy_and_with_its_namespace() {
    let endpoints = Endpoints::new(&DEFAULT);
    let limits = network_policy(json!({"podSelector": {}}));
    let owner = endpoints.namespace.apply(&limits).ok().json();
    let mut owned = endpoint();
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"]
    }]);
    endpoints.create(CONTROLLER, &owned).ok();
    let mine = endpoints.patch("alice", json!({"metadata": {"ownerReferences": null}}));
    assert!(
        !mine.success,
        "it would be for the garbage collector then: {mine:#?}"
    );
    endpoints
        .namespace
        .kubectl(&["delete", "networkpolicy", "limits"])
        .ok();
    eventually("the garbage collector to delete it", || {
        (!endpoints.exists()).then_some(())
    });

    let mut held = endpoint();
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    endpoints.create(CONTROLLER, &held).ok();
    let namespace = &endpoints.namespace.name;
    let arguments = ["delete", "namespace", "--wait=false", namespace];
    kubectl(endpoints.sandbox, &arguments, None).ok();
    eventually("the namespace's deletion to reach it", || {
        let arguments = ["get", "policyendpoint", "web-x7k2p", "-o", "json"];
        let stored = endpoints.namespace.kubectl(&arguments).ok().json();
        stored["metadata"]["deletionTimestamp"]
            .is_string()
            .then_some(())
    });
    let let_go = json!({"metadata": {"finalizers": null}});
    endpoints.patch("alice", let_go).ok();
    let gone = format!("namespace/{namespace}");
    let arguments = ["wait", "--for=delete", "--timeout=120s", &gone];
    kubectl(endpoints.sandbox, &arguments, None).ok();
}

#[test]
fn further_user_that_the_operator_names_edits_policy_endpoints() {
    let _alone = counting();
    let endpoints = Endpoints::new(&STRICT);
    let mut endpoint = endpoint();
    endpoints.create(FURTHER_CONTROLLER, &endpoint).ok();
    endpoint["spec"]["ingress"] = json!([]);
    endpoints.replace(FURTHER_CONTROLLER, &endpoint).ok();
    let refused = endpoints.delete("alice");
    assert!(!refused.success, "{refused:#?}");
    endpoints.delete(FURTHER_CONTROLLER).ok();
}

/// Tests that call the strict sandbox's webhook for networks take turns, as they count its
/// calls.
fn counting() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the API server asks the strict sandbox's webhook in the course of a command, which
/// may fail.
fn asks(command: impl FnOnce() -> Output) -> bool {
    let calls = || {
        let text = metrics(STRICT.metrics_port());
        let counters = text.lines().filter_map(|line| {
            let line = line.strip_prefix("sgp_admission_requests_total{webhook=\"vnetwork\",")?;
            line.rsplit_once(' ')?.1.parse::<u64>().ok()
        });
        counters.sum::<u64>()
    };
    let before = calls();
    command();
    calls() > before
}

#[test]
fn api_server_asks_only_about_services_that_can_matter() {
    let _alone = counting();
    let namespace = Namespace::of(&STRICT);
    let apply = |spec: Value| asks(|| namespace.apply(&service(spec)).ok());
    let translating = json!([{"port": 80, "targetPort": 8080}]);
    let local = |kind: &str| json!({"type": kind, "externalTrafficPolicy": "Local"});
    for (spec, is_asked) in [
        (json!({}), false),
        (json!({"ports": [{"port": 80, "targetPort": 80}]}), false),
        (
            json!({"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}),
            false,
        ),
        (
            json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}),
            true,
        ),
        (json!({"ports": [{"port": 80, "targetPort": "web"}]}), true),
        (json!({ "ports": translating }), true),
        (json!({"ports": translating, "clusterIP": "None"}), false),
        (json!({"ports": translating, "selector": null}), false),
        (
            json!({"ports": translating, "type": "ExternalName", "externalName": "example.com"}),
            false,
        ),
        (json!({"type": "NodePort"}), false),
        (json!({"type": "LoadBalancer"}), false),
        (local("NodePort"), true),
        (local("LoadBalancer"), true),
    ] {
        assert_eq!(apply(spec.clone()), is_asked, "creation with {spec}");
        let deletion = asks(|| namespace.kubectl(&["delete", "service", "web"]).ok());
        assert!(!deletion, "deletion with {spec}");
    }

    namespace.apply(&service(local("NodePort"))).ok();
    let touch = |verb: &str, change: &str| {
        asks(|| namespace.kubectl(&[verb, "service", "web", change]).ok())
    };
    assert!(!touch("label", "seen=yes"));
    assert!(touch("annotate", "seen=yes"));
    assert!(touch("annotate", "seen-"));
    assert!(apply(local("LoadBalancer")));
    let status = "--patch={\"status\":{\"loadBalancer\":{\"ingress\":[{\"ip\":\"10.0.0.1\"}]}}}";
    let patch = ["patch", "service", "web", "--subresource=status", status];
    assert!(!asks(|| namespace.kubectl(&patch).ok()));
}

#[test]
fn api_server_asks_only_about_network_policies_that_can_matter() {
    let _alone = counting();
    let namespace = Namespace::of(&STRICT);
    let apply = |policy: Value| asks(|| namespace.apply(&policy).ok());
    let with_ports = |count: u16| {
        let rules = json!([{"ports": ports(1, count)}, {"from": [{"podSelector": {}}]}]);
        network_policy(json!({"podSelector": {}, "ingress": rules}))
    };
    for (policy, is_asked) in [
        (network_policy(json!({"podSelector": {}})), false),
        (with_ports(23), false),
        (with_ports(24), true),
        (egress_policy(json!([{}])), true),
        (
            network_policy(json!({"podSelector": {}, "egress": []})),
            false,
        ),
        (
            network_policy(json!({"podSelector": {}, "egress": [{}]})),
            true,
        ),
    ] {
        assert_eq!(apply(policy.clone()), is_asked, "creation of {policy}");
        let delete = ["delete", "networkpolicy", "limits"];
        let deletion = asks(|| namespace.kubectl(&delete).ok());
        assert!(!deletion, "deletion of {policy}");
    }

    assert!(apply(egress_policy(json!([]))));
    let label = ["label", "networkpolicy", "limits", "seen=yes"];
    assert!(!asks(|| namespace.kubectl(&label).ok()));
    assert!(apply(egress_policy(json!([{}]))));
}

#[test]
fn api_server_asks_only_about_edits_of_policy_endpoints_that_can_matter() {
    let _alone = counting();
    let endpoints = Endpoints::new(&STRICT);
    assert!(asks(|| endpoints.create("alice", &endpoint())));
    assert!(!asks(|| endpoints.create(CONTROLLER, &endpoint()).ok()));
    let spec = json!({"spec": {"ingress": []}});
    let owners = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "0"}
    ]}});
    for (patch, is_asked) in [
        (json!({"metadata": {"labels": {"seen": "yes"}}}), false),
        (
            json!({"metadata": {"finalizers": ["example.com/held"]}}),
            false,
        ),
        (json!({"metadata": {"finalizers": null}}), false),
        (json!({"spec": null}), true),
        (spec.clone(), true),
        (owners, true),
    ] {
        let patched = asks(|| endpoints.patch("alice", patch.clone()));
        assert_eq!(patched, is_asked, "{patch}");
    }
    assert!(asks(|| endpoints
        .patch(FURTHER_CONTROLLER, spec.clone())
        .ok()));
    assert!(!asks(|| endpoints.patch(CONTROLLER, spec).ok()));
    assert!(asks(|| endpoints.delete("alice")));
    assert!(!asks(|| endpoints.delete(CONTROLLER).ok()));
}
