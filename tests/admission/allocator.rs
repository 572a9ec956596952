//! What pods' creators are told of EC2: the webhook asks an allocator's socket, behind which is
//! an EC2 that knows security groups and nothing else.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use sgp::allocator::groups::GroupDirectory;
use sgp::allocator::socket::{self, Known};
use sgp::allocator::view::{NodeView, View};
use sgp::dev::Sandbox;
use sgp::ec2::calls::{
    Answer, Association, Ec2, Filter, Instance, Interface, NewAssociation, NewInterface, Priority,
    SecurityGroup, Subnet,
};
use sgp::ec2::instance_limits::InstanceLimits;
use tokio::sync::{oneshot, watch};

use crate::cluster::{
    FARGATE_GROUPS, GROUP, Namespace, Output, eventually, everything, kubectl, pod, policy,
    requests_interface, start,
};
use crate::https;

pub const MISSING: &str = "sg-00000000000000001";
pub const ELSEWHERE: &str = "sg-00000000000000002";

const VPC: &str = "vpc-0000000000000000a";
const OTHER_VPC: &str = "vpc-0000000000000000b";

struct SecurityGroups;

fn never<'a, T: 'a>() -> Answer<'a, T> {
    Box::pin(async { unreachable!("nobody asks for anything but groups") })
}

impl Ec2 for SecurityGroups {
    fn security_groups(&self, ids: Vec<String>) -> Answer<'_, Vec<SecurityGroup>> {
        let known = ids.into_iter().filter(|id| id != MISSING);
        let groups = known.map(|id| SecurityGroup {
            vpc_id: if id == ELSEWHERE { OTHER_VPC } else { VPC }.to_owned(),
            id,
        });
        let groups = groups.collect();
        Box::pin(async { Ok(groups) })
    }

    fn interfaces(&self, _: Vec<Filter>, _: Priority) -> Answer<'_, Vec<Interface>> {
        never()
    }
    fn instances(&self, _: Vec<String>, _: Priority) -> Answer<'_, Vec<Instance>> {
        never()
    }
    fn subnets(&self, _: Vec<String>) -> Answer<'_, Vec<Subnet>> {
        never()
    }
    fn instance_limits(&self, _: String) -> Answer<'_, Option<InstanceLimits>> {
        never()
    }
    fn associations(&self) -> Answer<'_, Vec<Association>> {
        never()
    }
    fn create_interface(&self, _: NewInterface) -> Answer<'_, Interface> {
        never()
    }
    fn attach(&self, _: String, _: String, _: i32) -> Answer<'_, String> {
        never()
    }
    fn delete_on_termination(&self, _: String, _: String) -> Answer<'_, ()> {
        never()
    }
    fn set_groups(&self, _: String, _: Vec<String>) -> Answer<'_, ()> {
        never()
    }
    fn associate(&self, _: NewAssociation) -> Answer<'_, String> {
        never()
    }
    fn disassociate(&self, _: String) -> Answer<'_, ()> {
        never()
    }
    fn detach(&self, _: String) -> Answer<'_, ()> {
        never()
    }
    fn tag_interface(&self, _: String, _: BTreeMap<String, String>) -> Answer<'_, ()> {
        never()
    }
    fn delete_interface(&self, _: String) -> Answer<'_, ()> {
        never()
    }
}

/// A socket that answers, with two nodes of 9 branch interfaces.
struct Allocator {
    view: watch::Sender<Arc<View>>,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Allocator {
    fn start(path: &Path) -> Self {
        let (view, shown) = watch::channel(view(0));
        let (shutdown, told) = oneshot::channel::<()>();
        let path = path.to_owned();
        let server = std::thread::spawn(move || {
            https::block_on(async {
                let known = Known {
                    view: shown,
                    groups: Arc::new(GroupDirectory::new(Arc::new(SecurityGroups))),
                    is_ready: Arc::new(AtomicBool::new(true)),
                };
                let listener = socket::bind(&path).await.unwrap();
                socket::serve(listener, known, async {
                    let _ = told.await;
                })
                .await;
            });
        });
        Self {
            view,
            shutdown,
            server,
        }
    }

    /// So many pods are on each node.
    fn show(&self, requested: usize) {
        self.view.send_replace(view(requested));
    }

    fn stop(self) {
        self.shutdown.send(()).unwrap();
        self.server.join().unwrap();
    }
}

fn view(requested: usize) -> Arc<View> {
    let node = |name: &str| NodeView {
        name: name.to_owned(),
        capacity: 9,
        requested,
        ..NodeView::default()
    };
    Arc::new(View {
        vpc_id: Some(VPC.to_owned()),
        nodes: vec![node("one"), node("two")],
        ..View::default()
    })
}

/// A webhook that asks an allocator in a cluster of two nodes, both full.
pub static FULL: LazyLock<&'static Sandbox> = LazyLock::new(|| {
    let path = tempfile::tempdir().unwrap().keep().join("allocator");
    let allocator = Allocator::start(&path);
    allocator.show(9);
    // It lives as long as this process.
    std::mem::forget(allocator);
    asking(&path, &[])
});

/// A sandbox that ends with this process at the latest, whose webhook asks this socket.
fn asking(socket: &Path, arguments: &[&str]) -> &'static Sandbox {
    let socket = format!("--allocator-socket={}", socket.display());
    let arguments = [&[socket.as_str()], arguments].concat();
    Box::leak(Box::new(start(&arguments)))
}

fn web() -> Value {
    pod(json!({"labels": {"app": "web"}}), json!({}))
}

/// A policy that gives these groups to pods like [`web`].
fn gives(namespace: &Namespace, group_ids: &[&str]) {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "securityGroups": {"groupIds": group_ids}
    });
    namespace.policies(&[("all", spec)]);
}

/// Tries a pod until the allocator answered in time, which it does not on a machine that is
/// very busy: without it there are no warnings and no denials.
#[track_caller]
fn warned(namespace: &Namespace, pod: &Value, expected: &[&str]) -> Output {
    eventually(&format!("{expected:?}"), || {
        let tried = namespace.dry_run(pod).ok();
        let warnings = tried.warnings();
        assert!(warnings.is_empty() || warnings == expected, "{tried:#?}");
        (warnings == expected).then_some(tried)
    })
}

fn unanswered(sandbox: &Sandbox) -> u64 {
    let text = https::metrics(sandbox.metrics_port());
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("sgp_allocator_lookups_total{outcome=\"unanswered\"} "))
        .expect("it is there from the start");
    count.parse().unwrap()
}

/// A pod's creator is told which groups are missing and that no interface is free.
pub fn creator_is_told(texts: &[String]) {
    let [missing, elsewhere, full] = &texts.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        panic!("three texts");
    };
    let not_to_be_had = [*missing, *elsewhere];
    let is_full = *full;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("allocator");
    let allocator = Allocator::start(&path);
    let sandbox = asking(&path, &[]);
    let namespace = Namespace::of(sandbox);
    gives(&namespace, &[GROUP, MISSING, ELSEWHERE]);
    let told = warned(&namespace, &web(), &not_to_be_had);
    assert!(requests_interface(&told.json()), "it waits for its groups");

    let fargate = json!({"labels": {"app": "web", "eks.amazonaws.com/fargate-profile": "a"}});
    let fargate = pod(fargate, json!({"schedulerName": "fargate-scheduler"}));
    let told = warned(&namespace, &fargate, &not_to_be_had).json();
    let groups = [GROUP, MISSING, ELSEWHERE].join(",");
    assert_eq!(told["metadata"]["annotations"][FARGATE_GROUPS], groups);
    let without_groups = namespace.dry_run(&pod(json!({}), json!({}))).ok();
    assert!(without_groups.warnings().is_empty(), "{without_groups:#?}");

    let full = Namespace::of(sandbox);
    gives(&full, &[GROUP]);
    let roomy = full.dry_run(&web()).ok();
    assert!(roomy.warnings().is_empty(), "{roomy:#?}");
    allocator.show(9);
    warned(&full, &web(), &[is_full]);
    // Interfaces of nodes are nothing to Fargate.
    let tried = full.dry_run(&fargate).ok();
    assert!(tried.warnings().is_empty(), "{tried:#?}");
    allocator.stop();
}

/// Stores a policy as if there were no webhook that looks at policies.
fn store_unasked(namespace: &Namespace, sandbox: &Sandbox, policy: &Value) {
    let configuration = "validatingwebhookconfiguration/vpc-resource-validating-webhook";
    let removal = json!({"webhooks": [{"$patch": "delete", "name": "vsgp.vpc.k8s.aws"}]});
    let patch = format!("--patch={removal}");
    let arguments = ["patch", configuration, "--type=strategic", &patch];
    kubectl(sandbox, &arguments, None).ok();
    // The API server learns of it by a watch of its own.
    eventually("the policy to be stored", || {
        namespace.apply(policy).success.then_some(())
    });
}

/// A pod with a missing group is refused if the operator says so and the allocator knows.
pub fn creator_is_refused(texts: &[String]) {
    let [missing, elsewhere, malformed] = texts else {
        panic!("three texts");
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("allocator");
    let allocator = Allocator::start(&path);
    let sandbox = asking(&path, &["--missing-groups=deny"]);
    let namespace = Namespace::of(sandbox);
    gives(&namespace, &[GROUP, MISSING]);
    let is_refused = |namespace: &Namespace, message: &str| {
        let refused = eventually("the refusal", || {
            let tried = namespace.dry_run(&web());
            (!tried.success).then_some(tried)
        });
        let entry = "admission webhook \"mpod-enforced.vpc.k8s.aws\"";
        let text = format!("{entry} denied the request: {message}\n");
        assert!(
            refused.stderr.contains("Error from server (Forbidden)"),
            "{refused:#?}"
        );
        assert!(refused.stderr.ends_with(&text), "{refused:#?}");
        assert!(refused.warnings().is_empty(), "{refused:#?}");
    };
    is_refused(&namespace, missing);
    let other = Namespace::of(sandbox);
    gives(&other, &[ELSEWHERE]);
    is_refused(&other, elsewhere);
    let other = Namespace::of(sandbox);
    // A cluster may hold such a policy from times before us.
    let many = policy("many", &everything(&["sg-0000000X"]));
    store_unasked(&other, sandbox, &many);
    is_refused(&other, malformed);

    // It takes connections and says nothing.
    allocator.stop();
    let silent = UnixListener::bind(&path).unwrap();
    let before = unanswered(sandbox);
    let let_in = eventually("the last answer to be too old", || {
        let tried = namespace.dry_run(&web());
        tried.success.then_some(tried)
    });
    assert!(requests_interface(&let_in.json()));
    assert!(let_in.warnings().is_empty(), "{let_in:#?}");
    assert!(unanswered(sandbox) > before);

    // Another one takes its place.
    drop(silent);
    let allocator = Allocator::start(&path);
    eventually("the refusal, again", || {
        (!namespace.dry_run(&web()).success).then_some(())
    });
    allocator.stop();
}
