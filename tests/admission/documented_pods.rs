//! Every denial and warning about pods and nodes that docs/webhook.md promises, word for word.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sgp::dev::control_plane::free_port;

use crate::cluster::{
    DEFAULT, GROUP, LENIENT, Namespace, Output, STRICT, eventually, everything, kubectl, pod,
    policy,
};
use crate::neighbour::{mutating, rule};
use crate::shutdown::second_webhook;
use crate::{
    allocator, annotation_guard, final_check, forced_deletion, node_guard, protocol, too_long,
};

documented!("webhook.md",
    grace_period_of_0 => |texts| {
        let namespace = Namespace::new();
        namespace.policies(&[("database-clients", everything(&[GROUP]))]);
        let hasty = pod(json!({"name": "hasty"}), json!({"terminationGracePeriodSeconds": 0}));
        assert_denied(&namespace.apply(&hasty), &texts[0]);
        assert_eq!(texts.len(), 1);
    },
    pods_that_can_have_no_interface => |texts| {
        let namespace = Namespace::of(&STRICT);
        namespace.policies(&[("all", everything(&[GROUP]))]);
        let specs = [
            vec![json!({"hostNetwork": true})],
            vec![
                json!({"os": {"name": "windows"}}),
                json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            ],
        ];
        assert_eq!(texts.len(), specs.len());
        for (specs, text) in specs.into_iter().zip(texts) {
            for spec in specs {
                assert_denied(&namespace.apply(&pod(json!({}), spec)), text);
            }
        }
    },
    groups_that_can_not_be_had => allocator::creator_is_refused,
    pods_that_lack_their_groups_at_last => |texts| {
        let [request, scheduler, changed, unselected] = texts else {
            panic!("four texts");
        };
        final_check::pod_whose_request_another_webhook_takes_away(request);
        final_check::pod_of_fargate_in_name_only(scheduler);
        final_check::fargate_pod_whose_groups_another_webhook_changes(changed, unselected);
    },
    service_account_that_does_not_exist => protocol::missing_service_account_is_named,
    api_server_that_does_not_answer => |texts| {
        api_server_that_is_held_back(&texts[0]);
        assert_eq!(texts.len(), 1);
    },
    warnings_of_policies => |texts| {
        let [ignored, malformed, too_many @ ..] = texts else {
            panic!("two texts and more");
        };
        let near = json!({"matchExpressions": [{"key": "app", "operator": "Near"}]});
        let broken = json!({"podSelector": near, "securityGroups": {"groupIds": [GROUP]}});
        let six = ["1", "2", "3", "4", "5", "6"].map(|number| format!("sg-0000000{number}"));
        let six = everything(&six.each_ref().map(String::as_str));
        let web = pod(json!({}), json!({}));
        for (name, spec, warnings) in [
            ("broken", broken, std::slice::from_ref(ignored)),
            ("many", everything(&["sg-0000000X"]), std::slice::from_ref(malformed)),
            ("many", six, too_many),
        ] {
            let namespace = Namespace::of(&LENIENT);
            namespace.apply(&policy(name, &spec)).ok();
            assert_eq!(namespace.apply(&web).ok().warnings(), warnings);
        }
    },
    policies_that_are_ignored => |texts| {
        let groups = json!({"groupIds": [GROUP]});
        let specs = [json!({"securityGroups": groups}), json!({"podSelector": {}})];
        assert_eq!(texts.len(), specs.len());
        for (spec, text) in specs.iter().zip(texts) {
            let namespace = Namespace::of(&LENIENT);
            namespace.apply(&policy("broken", spec)).ok();
            let created = namespace.apply(&pod(json!({}), json!({}))).ok();
            assert_eq!(created.warnings(), [text]);
        }
    },
    warnings_of_what_ec2_has => allocator::creator_is_told,
    warnings_of_the_pod_itself => |texts| {
        let at_once = json!({"terminationGracePeriodSeconds": 0});
        let cases = [
            (&*DEFAULT, json!({"hostNetwork": true})),
            (&*DEFAULT, json!({"os": {"name": "windows"}})),
            (&*STRICT, at_once.clone()),
            (&*LENIENT, at_once),
        ];
        assert_eq!(texts.len(), cases.len());
        for ((sandbox, spec), text) in cases.into_iter().zip(texts) {
            let namespace = Namespace::of(sandbox);
            namespace.policies(&[("all", everything(&[GROUP]))]);
            let created = namespace.apply(&pod(json!({}), spec)).ok();
            assert_eq!(created.warnings(), [text]);
        }
    },
    annotations_that_others_write => annotation_guard::others_write,
    deletions_by_force => forced_deletion::whoever_deletes_a_pod_by_force_is_told_what_stays_behind,
    objects_that_are_too_long => too_long::refused_or_warned_of,
    nodes_that_the_cni_plugin_changes => node_guard::cni_plugin_changes_its_two_labels_and_nothing_else,
);

#[track_caller]
fn assert_denied(output: &Output, text: &str) {
    let denial = format!("denied the request: {text}\n");
    assert!(!output.success, "{output:#?}");
    assert!(
        output.stderr.ends_with(&denial),
        "{denial}\n{}",
        output.stderr
    );
    assert!(output.stderr.contains("(Forbidden)"), "{}", output.stderr);
}

/// A connection to the API server that can be held back.
struct Proxy {
    port: u16,
    is_held: Arc<AtomicBool>,
}

impl Proxy {
    fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_held = Arc::new(AtomicBool::new(false));
        let held = is_held.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let held = held.clone();
                thread::spawn(move || forward(client, server, &held));
                thread::spawn(move || forward(back, forth, &AtomicBool::new(false)));
            }
        });
        Self { port, is_held }
    }
}

/// Passes on what comes, but for what comes while it is held back.
fn forward(mut from: TcpStream, mut to: TcpStream, is_held: &AtomicBool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        while is_held.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

fn api_server_that_is_held_back(text: &str) {
    let kubeconfig = std::fs::read(DEFAULT.service_account_kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_json::from_slice(&kubeconfig).unwrap();
    let server = &mut kubeconfig["clusters"][0]["cluster"]["server"];
    let address = server.as_str().unwrap().strip_prefix("https://").unwrap();
    let proxy = Proxy::to(address.trim_end_matches('/').to_owned());
    *server = json!(format!("https://127.0.0.1:{}", proxy.port));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();

    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (_webhook, _files) = second_webhook(port, &pair, "held-back-webhook", &path, "0");
    let namespace = Namespace::new();
    let entry = json!({
        "name": "held-back.vpc.k8s.aws",
        "clientConfig": {
            "url": format!("https://127.0.0.1:{port}/mutate-v1-pod/enforced"),
            "caBundle": BASE64.encode(pair.cert.pem())
        },
        "rules": [rule("CREATE", "pods")],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"]
    });
    let configuration = mutating(&namespace.name, &[entry]);
    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&configuration)).ok();
    let web = pod(json!({}), json!({}));
    // It may be asked before it knows the cluster.
    eventually("an answer", || {
        namespace.dry_run(&web).success.then_some(())
    });

    proxy.is_held.store(true, Ordering::Relaxed);
    let denial = format!(
        "Error from server (ServiceUnavailable): error when creating \"STDIN\": admission webhook \
         \"held-back.vpc.k8s.aws\" denied the request: {}\n",
        text.replace("shop", &namespace.name)
    );
    eventually("the refusal", || {
        let refused = namespace.dry_run(&web);
        (!refused.success).then(|| assert_eq!(refused.stderr, denial))
    });
    proxy.is_held.store(false, Ordering::Relaxed);
    eventually("an answer again", || {
        namespace.dry_run(&web).success.then_some(())
    });
}
