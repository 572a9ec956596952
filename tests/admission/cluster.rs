//! The shared sandbox, and what a test does in its own namespace of it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sgp::dev::control_plane::Binaries;
use sgp::dev::{Sandbox, SandboxOptions};

pub use crate::waiting::eventually;

pub const GROUP: &str = "sg-0123456789abcdef0";

/// The extended resource, written out here so that a slip in the product's constant shows.
pub const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";
pub const FARGATE_GROUPS: &str = "fargate.amazonaws.com/pod-sg";

/// For `kubectl`: with the allocator's rights and no others.
pub const AS_ALLOCATOR: &str = "--as=system:serviceaccount:sgp-system:sgp";

/// The webhook as it is by default.
pub static DEFAULT: LazyLock<Sandbox> = LazyLock::new(|| start(&[]));

/// The webhook with every choice that is not the default.
pub static STRICT: LazyLock<Sandbox> = LazyLock::new(|| {
    start(&[
        "--grace-period-policy=set",
        "--unsupported-pods=deny",
        "--policy-endpoint-user=system:serviceaccount:netpol:controller",
        "--allocator-user=carol",
    ])
});

/// The webhook where it lets in what others refuse, in a cluster that holds policies from
/// times before it: they are stored without a look at them.
pub static LENIENT: LazyLock<Sandbox> = LazyLock::new(|| {
    let sandbox = start(&["--grace-period-policy=warn"]);
    let configuration = "validatingwebhookconfiguration/vpc-resource-validating-webhook";
    let removal = json!({"webhooks": [{"$patch": "delete", "name": "vsgp.vpc.k8s.aws"}]});
    let patch = format!("--patch={removal}");
    let arguments = ["patch", configuration, "--type=strategic", &patch];
    kubectl(&sandbox, &arguments, None).ok();
    // The API server learns of it by a watch of its own.
    let invalid = policy("old", &json!({}));
    let dry_run = ["create", "--dry-run=server", "-f", "-"];
    eventually("policies to be stored without a look at them", || {
        let tried = kubectl(&sandbox, &dry_run, Some(&invalid));
        tried.success.then_some(())
    });
    sandbox
});

/// Lets a user do everything, as far as nobody but the webhook is asked.
pub fn empower(sandbox: &Sandbox, user: &str) {
    let name = user.replace(':', "-");
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": format!("test-{name}")},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user
        }]
    });
    kubectl(sandbox, &["apply", "-f", "-"], Some(&binding)).ok();
    let ask = [
        "auth",
        "can-i",
        "*",
        "*",
        "--all-namespaces",
        &format!("--as={user}"),
    ];
    eventually("the right to count", || {
        kubectl(sandbox, &ask, None).success.then_some(())
    });
}

/// Lets the allocator's user read what `kubectl patch` changes for it: kubectl reads first, and
/// the allocator has no need to.
fn let_allocator_use_kubectl(sandbox: &Sandbox) {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "test-status"},
        "rules": [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["get"]}]
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "test-status"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "test-status"
        },
        "subjects": [{"kind": "ServiceAccount", "namespace": "sgp-system", "name": "sgp"}]
    });
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]});
    kubectl(sandbox, &["apply", "-f", "-"], Some(&both)).ok();
    let ask = ["auth", "can-i", "get", "pods", "--subresource=status"];
    let ask = [&ask[..], &["--all-namespaces", AS_ALLOCATOR]].concat();
    eventually("the right to count", || {
        kubectl(sandbox, &ask, None).success.then_some(())
    });
}

/// A Node object of this name without a kubelet.
pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

/// Starts a sandbox of one's own. It ends with this process at the latest.
pub fn start(webhook_arguments: &[&str]) -> Sandbox {
    let options = SandboxOptions {
        webhook_arguments: webhook_arguments
            .iter()
            .map(|argument| argument.to_string())
            .collect(),
        ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
    };
    let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let sandbox = runtime.block_on(Sandbox::start(&binaries, options, |_| ()));
    sandbox.unwrap_or_else(|error| panic!("{error:#}"))
}

/// What a command printed.
#[derive(Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.success, "{self:#?}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Whether a pod was refused in an enforced namespace because nobody could be asked in time.
    fn is_undecided(&self) -> bool {
        let is_told = |how: &str, entry: &str| {
            let told = format!("{how} \"{entry}-enforced.vpc.k8s.aws\"");
            self.stderr.contains(&told)
        };
        let is_by = |how: &str| is_told(how, "mpod") || is_told(how, "vpod");
        let is_denied = is_by("admission webhook");
        let is_unknown = is_denied && self.stderr.contains("it can't be decided whether");
        !self.success && (is_unknown || is_by("failed calling webhook"))
    }

    /// The texts of the `Warning:` lines.
    pub fn warnings(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter_map(|line| line.strip_prefix("Warning: "))
            .collect()
    }
}

/// Runs `kubectl` as administrator of the sandbox.
pub fn kubectl(sandbox: &Sandbox, arguments: &[&str], input: Option<&Value>) -> Output {
    run(sandbox.control_plane().kubectl().args(arguments), input)
}

fn run(command: &mut Command, input: Option<&Value>) -> Output {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.to_string().as_bytes()).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    Output {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A namespace of one test. Pods are refused in it while the webhook can't be reached, so
/// that none slips through unseen.
pub struct Namespace {
    pub name: String,
    pub sandbox: &'static Sandbox,
}

impl Namespace {
    /// A new namespace of the default sandbox.
    #[track_caller]
    pub fn new() -> Self {
        Self::of(&DEFAULT)
    }

    /// A new namespace, ready for pods.
    #[track_caller]
    pub fn of(sandbox: &'static Sandbox) -> Self {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "generateName": "test-",
                "labels": {"vpcresources.k8s.aws/enforce": "true"}
            }
        });
        let created = kubectl(
            sandbox,
            &["create", "-o", "json", "-f", "-"],
            Some(&namespace),
        )
        .ok()
        .json();
        let name = created["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = Self { name, sandbox };
        namespace
            .kubectl(&[
                "wait",
                "--for=create",
                "--timeout=120s",
                "serviceaccount/default",
            ])
            .ok();
        namespace
    }

    /// Runs `kubectl` in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with(arguments, None)
    }

    /// The same with an object on standard input. It is done again where the webhook could not
    /// be asked in time, or could not ask, which happens on a machine that is very busy.
    pub fn kubectl_with(&self, arguments: &[&str], input: Option<&Value>) -> Output {
        let namespace = format!("--namespace={}", self.name);
        let arguments: Vec<_> = arguments
            .iter()
            .copied()
            .chain([namespace.as_str()])
            .collect();
        eventually("the webhook's decision", || {
            let output = kubectl(self.sandbox, &arguments, input);
            (!output.is_undecided()).then_some(output)
        })
    }

    /// `kubectl apply` of one object; the output is what the API server made of it.
    pub fn apply(&self, object: &Value) -> Output {
        self.kubectl_with(&["apply", "-o", "json", "-f", "-"], Some(object))
    }

    /// `kubectl create` of one object, which needs no name.
    pub fn create(&self, object: &Value) -> Output {
        self.kubectl_with(&["create", "-o", "json", "-f", "-"], Some(object))
    }

    /// `kubectl apply --dry-run=server` of one object.
    pub fn dry_run(&self, object: &Value) -> Output {
        let arguments = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
        self.kubectl_with(&arguments, Some(object))
    }

    /// Writes the annotation that names a pod's interface as the allocator does; `None` takes it
    /// away.
    #[track_caller]
    pub fn annotate_as_allocator(
        &self,
        pod: &str,
        value: Option<&str>,
        arguments: &[&str],
    ) -> Output {
        let patch = json!({"metadata": {"annotations": {POD_ENI: value}}});
        self.patch_as_allocator(pod, &patch, arguments)
    }

    /// Changes a pod as the allocator does: by its status and with the allocator's rights.
    #[track_caller]
    pub fn patch_as_allocator(&self, pod: &str, patch: &Value, arguments: &[&str]) -> Output {
        let_allocator_use_kubectl(self.sandbox);
        let patch = patch.to_string();
        let by_status = [
            "patch",
            "pod",
            pod,
            "--subresource=status",
            "--type=merge",
            "--patch",
            &patch,
            AS_ALLOCATOR,
        ];
        self.kubectl(&[&by_status[..], arguments].concat())
    }

    /// Applies policies, by name and spec, and waits until the webhook knows them.
    #[track_caller]
    pub fn policies(&self, policies: &[(&str, Value)]) {
        for (name, spec) in policies {
            self.apply(&policy(name, spec)).ok();
        }
        self.settle();
    }

    /// Waits until the webhook has seen every policy of this namespace as it is now: the
    /// watch brings changes in their order, so once the last one has come, all have.
    #[track_caller]
    pub fn settle(&self) {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("mark-{}", MARKS.fetch_add(1, Ordering::Relaxed));
        let spec = json!({
            "podSelector": {"matchLabels": {"mark": mark}},
            "securityGroups": {"groupIds": [GROUP]}
        });
        self.apply(&policy(&mark, &spec)).ok();
        let probe = pod(json!({"labels": {"mark": mark}}), json!({}));
        eventually("the webhook to see the policies", || {
            requests_interface(&self.dry_run(&probe).ok().json()).then_some(())
        });
    }
}

/// A policy by name and spec.
pub fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1",
        "kind": "SecurityGroupPolicy",
        "metadata": {"name": name},
        "spec": spec
    })
}

/// The spec of a policy that selects pods by labels.
pub fn by_pod(labels: Value) -> Value {
    json!({
        "podSelector": {"matchLabels": labels},
        "securityGroups": {"groupIds": [GROUP]}
    })
}

/// The spec of a policy that selects every pod and gives these groups.
pub fn everything(group_ids: &[&str]) -> Value {
    json!({"podSelector": {}, "securityGroups": {"groupIds": group_ids}})
}

/// A pod of one container called `web`; `metadata` and `spec` are added.
pub fn pod(metadata: Value, spec: Value) -> Value {
    let mut whole = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "web"}]}
    });
    for (part, added) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in added.as_object().unwrap() {
            whole[part][key] = value.clone();
        }
    }
    whole
}

/// Whether the pod's first container requests one branch interface, in limits and requests.
pub fn requests_interface(pod: &Value) -> bool {
    let resources = &pod["spec"]["containers"][0]["resources"];
    ["limits", "requests"]
        .iter()
        .all(|list| resources[list][POD_ENI] == "1")
}

/// Whether the pod's JSON says nothing of a branch interface.
pub fn knows_no_interface(pod: &Value) -> bool {
    !pod["spec"].to_string().contains(POD_ENI)
}
