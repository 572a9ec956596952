//! The rules of EC2, checked without a socket and without a clock.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::actions;
use super::cloud::{Behaviour, Cloud, Quotas};
use super::faults::{Fault, FaultOutcome, Moment};
use super::index::Index;
use super::settings::Settings;
use super::throttling::Bucket;
use super::timestamp::Timestamp;
use super::world::{ReplyKind, World};
use super::{Simulator, serve};

/// A world whose time stands still until a test moves it.
struct Ec2 {
    world: World,
    now: Timestamp,
}

impl Ec2 {
    fn new() -> Self {
        Self {
            world: World::new(
                Cloud::new("us-west-2", "123456789012", 0),
                Settings::default(),
            ),
            now: Timestamp(1_800_000_000_000),
        }
    }

    fn with(behaviour: Behaviour) -> Self {
        let mut ec2 = Self::new();
        ec2.world.set(Settings {
            cloud: behaviour,
            ..Settings::default()
        });
        ec2
    }

    /// The status and the body.
    fn answer(&mut self, form: &str) -> (u16, String) {
        match self.world.call(form.as_bytes(), "", self.now).kind {
            ReplyKind::Answer { status, body, .. } => (status, String::from_utf8(body).unwrap()),
            other => panic!("{form}: {other:?}"),
        }
    }

    fn ok(&mut self, form: &str) -> String {
        let (status, body) = self.answer(form);
        assert_eq!(status, 200, "{form}: {body}");
        body
    }

    /// The first text of an element of the answer.
    fn get(&mut self, form: &str, element: &str) -> String {
        let body = self.ok(form);
        first(&body, element).unwrap_or_else(|| panic!("no {element} in {body}"))
    }

    fn error(&mut self, form: &str) -> String {
        let (status, body) = self.answer(form);
        assert_ne!(status, 200, "{form}: {body}");
        first(&body, "Code").unwrap()
    }

    fn network(&mut self) -> Network {
        let vpc = self.get("Action=CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let subnet = |block| format!("Action=CreateSubnet&VpcId={vpc}&CidrBlock={block}");
        Network {
            subnet: self.get(&subnet("10.0.0.0/18"), "subnetId"),
            small_subnet: self.get(&subnet("10.0.64.0/28"), "subnetId"),
            vpc,
        }
    }

    fn run(&mut self, network: &Network, kind: &str) -> String {
        let form = format!(
            "Action=RunInstances&ImageId=ami-1&InstanceType={kind}&MinCount=1&MaxCount=1\
             &SubnetId={}",
            network.subnet
        );
        self.get(&form, "instanceId")
    }

    fn interface(&mut self, network: &Network, more: &str) -> String {
        let subnet = &network.subnet;
        let form = format!("Action=CreateNetworkInterface&SubnetId={subnet}{more}");
        self.get(&form, "networkInterfaceId")
    }

    fn status(&mut self, interface: &str) -> String {
        let form = format!("Action=DescribeNetworkInterfaces&NetworkInterfaceId.1={interface}");
        self.get(&form, "status")
    }

    /// The index is what a fresh look at the maps gives, and nothing contradicts EC2.
    fn check(&self) {
        let cloud = &self.world.cloud;
        assert_eq!(cloud.contradictions(), Vec::<String>::new());
        let mut index = cloud.index.clone();
        index.taken.retain(|_, taken| !taken.is_empty());
        index.rules_of_group.retain(|_, rules| !rules.is_empty());
        assert_eq!(index, Index::of(cloud).unwrap());
    }
}

struct Network {
    vpc: String,
    subnet: String,
    small_subnet: String,
}

fn first(body: &str, element: &str) -> Option<String> {
    let start = format!("<{element}>");
    let from = body.find(&start)? + start.len();
    let text = body[from..].split('<').next()?;
    Some(text.to_owned())
}

fn delayed(interface_visibility_delay_ms: u64, transition_ms: u64) -> Behaviour {
    Behaviour {
        interface_visibility_delay_ms,
        transition_ms,
        quotas: Quotas::default(),
    }
}

#[test]
fn every_action_of_the_list_is_there() {
    let mut names: Vec<&str> = actions::all().map(|action| action.name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "AssociateTrunkInterface",
            "AssociateVpcCidrBlock",
            "AttachNetworkInterface",
            "AuthorizeSecurityGroupEgress",
            "AuthorizeSecurityGroupIngress",
            "CreateNetworkInterface",
            "CreateNetworkInterfacePermission",
            "CreateSecurityGroup",
            "CreateSubnet",
            "CreateTags",
            "CreateVpc",
            "DeleteNetworkInterface",
            "DeleteSecurityGroup",
            "DeleteTags",
            "DescribeInstanceTypes",
            "DescribeInstances",
            "DescribeNetworkInterfaces",
            "DescribeRouteTables",
            "DescribeSecurityGroupRules",
            "DescribeSecurityGroups",
            "DescribeSubnets",
            "DescribeTags",
            "DescribeTrunkInterfaceAssociations",
            "DescribeVpcs",
            "DetachNetworkInterface",
            "DisassociateTrunkInterface",
            "ModifyNetworkInterfaceAttribute",
            "RevokeSecurityGroupEgress",
            "RevokeSecurityGroupIngress",
            "RunInstances",
            "TerminateInstances",
        ]
    );
}

#[test]
fn the_documentation_names_every_action() {
    let documentation = include_str!("../../../docs/ec2-simulator.md");
    for action in actions::all() {
        let name = format!("`{}`", action.name);
        assert!(documentation.contains(&name), "{name} is missing");
    }
}

#[test]
fn the_documentation_shows_the_default_settings() {
    let documentation = include_str!("../../../docs/ec2-simulator.md");
    let (_, after) = documentation
        .split_once("The defaults:\n\n```json\n")
        .unwrap();
    let (json, _) = after.split_once("```").unwrap();
    let shown: Settings = serde_json::from_str(json).unwrap();
    assert_eq!(shown, Settings::default());
}

#[test]
fn the_same_calls_give_the_same_cloud() {
    let build = || {
        let mut ec2 = Ec2::new();
        let network = ec2.network();
        ec2.run(&network, "m5.large");
        ec2.interface(&network, "");
        serde_json::to_value(&ec2.world.cloud).unwrap()
    };
    assert_eq!(build(), build());
}

#[test]
fn a_new_interface_is_seen_only_after_the_delay() {
    let mut ec2 = Ec2::with(delayed(5_000, 0));
    let network = ec2.network();
    let interface = ec2.interface(&network, "");
    let by_id = format!("Action=DescribeNetworkInterfaces&NetworkInterfaceId.1={interface}");
    let delete = format!("Action=DeleteNetworkInterface&NetworkInterfaceId={interface}");
    let missing = "InvalidNetworkInterfaceID.NotFound";

    ec2.now = ec2.now.plus_ms(4_999);
    assert_eq!(ec2.error(&by_id), missing);
    assert_eq!(ec2.error(&delete), missing);
    assert!(
        !ec2.ok("Action=DescribeNetworkInterfaces")
            .contains(&interface)
    );
    assert!(!ec2.ok("Action=DescribeTags").contains(&interface));

    ec2.now = ec2.now.plus_ms(1);
    assert_eq!(ec2.status(&interface), "available");
    ec2.ok(&delete);
}

#[test]
fn states_between_last_as_long_as_they_are_told_to() {
    let mut ec2 = Ec2::with(delayed(0, 1_000));
    let network = ec2.network();
    let instance = ec2.run(&network, "m5.large");
    let interface = ec2.interface(&network, "");
    assert_eq!(ec2.status(&interface), "pending");
    ec2.now = ec2.now.plus_ms(1_000);
    assert_eq!(ec2.status(&interface), "available");

    let attach = format!(
        "Action=AttachNetworkInterface&NetworkInterfaceId={interface}&InstanceId={instance}\
         &DeviceIndex=1"
    );
    let attachment = ec2.get(&attach, "attachmentId");
    let detach = format!("Action=DetachNetworkInterface&AttachmentId={attachment}");
    ec2.ok(&detach);
    assert_eq!(ec2.status(&interface), "in-use");
    assert_eq!(ec2.error(&detach), "IncorrectState");
    ec2.now = ec2.now.plus_ms(999);
    assert_eq!(ec2.status(&interface), "in-use");
    ec2.now = ec2.now.plus_ms(1);
    assert_eq!(ec2.status(&interface), "available");

    let state = format!("Action=DescribeInstances&InstanceId.1={instance}");
    assert_eq!(ec2.get(&state, "name"), "running");
    ec2.ok(&format!(
        "Action=TerminateInstances&InstanceId.1={instance}"
    ));
    assert_eq!(ec2.get(&state, "name"), "shutting-down");
    ec2.now = ec2.now.plus_ms(1_000);
    assert_eq!(ec2.get(&state, "name"), "terminated");
    ec2.check();
}

#[test]
fn a_launch_that_fails_leaves_nothing() {
    let mut ec2 = Ec2::new();
    let network = ec2.network();
    let before = ec2.interface(&network, "");
    let form = format!(
        "Action=RunInstances&ImageId=ami-1&InstanceType=m5.large&MinCount=1&MaxCount=12\
         &SubnetId={}",
        network.small_subnet
    );
    assert_eq!(ec2.error(&form), "InsufficientFreeAddressesInSubnet");
    let form = format!(
        "Action=RunInstances&ImageId=ami-1&InstanceType=m5.large&MinCount=2&MaxCount=2\
         &NetworkInterface.1.DeviceIndex=0&NetworkInterface.1.SubnetId={}\
         &NetworkInterface.2.DeviceIndex=1&NetworkInterface.2.NetworkInterfaceId={before}\
         &NetworkInterface.2.DeleteOnTermination=true",
        network.subnet
    );
    assert_eq!(ec2.error(&form), "InvalidNetworkInterface.InUse");

    assert!(!ec2.ok("Action=DescribeInstances").contains("<instanceId>"));
    let left = ec2.ok("Action=DescribeNetworkInterfaces");
    assert_eq!(left.matches("<networkInterfaceId>").count(), 1);
    assert_eq!(ec2.status(&before), "available");
    ec2.check();
}

#[test]
fn a_token_is_remembered_for_a_day() {
    let mut ec2 = Ec2::new();
    let network = ec2.network();
    let first = ec2.interface(&network, "&ClientToken=one");
    ec2.now = ec2.now.plus_ms(24 * 3_600 * 1_000);
    assert_eq!(ec2.interface(&network, "&ClientToken=one"), first);
    ec2.now = ec2.now.plus_ms(120_000);
    assert_ne!(ec2.interface(&network, "&ClientToken=one"), first);
}

#[test]
fn a_refused_call_does_not_use_up_its_token() {
    let mut ec2 = Ec2::new();
    let network = ec2.network();
    let form =
        |subnet: &str| format!("Action=CreateNetworkInterface&SubnetId={subnet}&ClientToken=one");
    ec2.error(&form("subnet-0123"));
    ec2.ok(&form(&network.subnet));
}

#[test]
fn a_fault_after_the_effect_hides_an_error_too() {
    let mut ec2 = Ec2::new();
    ec2.world.faults.add(Fault {
        action: "CreateVpc".to_owned(),
        skip: 0,
        times: Some(2),
        moment: Moment::After,
        outcome: FaultOutcome::Error {
            code: "InternalError".to_owned(),
            message: None,
        },
    });

    assert_eq!(
        ec2.error("Action=CreateVpc&CidrBlock=10.0.0.0/8"),
        "InternalError"
    );
    assert_eq!(
        ec2.error("Action=CreateVpc&CidrBlock=10.0.0.0/16"),
        "InternalError"
    );

    assert_eq!(ec2.world.cloud.vpcs.len(), 1);
    let counts = ec2.world.calls.counts();
    assert_eq!(counts.of("CreateVpc"), 2);
    assert!(ec2.world.calls.calls().all(|call| call.injected));
}

#[tokio::test]
async fn it_serves_inside_of_a_program_until_told_to_end() {
    let simulator = Simulator::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = ended.await;
    };
    let server = tokio::spawn(serve(listener, simulator.clone(), shutdown));
    let ask = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let call = b"GET /?Action=DescribeVpcs HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(call).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };

    assert!(ask().await.unwrap().contains("<vpcSet"));
    let drop_all = Fault {
        action: "*".to_owned(),
        skip: 0,
        times: None,
        moment: Moment::Before,
        outcome: FaultOutcome::Drop,
    };
    simulator.add_fault(drop_all).unwrap();
    assert_eq!(ask().await.unwrap_or_default(), "");
    simulator.clear_faults();
    assert!(ask().await.unwrap().contains("<vpcSet"));
    assert_eq!(simulator.call_counts().of("DescribeVpcs"), 3);

    end.send(()).unwrap();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn a_throttled_call_has_no_effect_and_meets_no_fault() {
    let mut ec2 = Ec2::new();
    let bucket = Bucket {
        rate: 1.0,
        burst: 1.0,
    };
    ec2.world.set(Settings {
        throttling: [("*".to_owned(), bucket)].into(),
        ..Settings::default()
    });
    let create = "Action=CreateVpc&CidrBlock=10.0.0.0/16";
    ec2.ok(create);
    ec2.ok("Action=DescribeVpcs");
    assert_eq!(ec2.error(create), "RequestLimitExceeded");
    assert_eq!(ec2.world.cloud.vpcs.len(), 1);
    ec2.now = ec2.now.plus_ms(1_000);
    ec2.ok(create);
}

/// One step of a random history. The numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
struct Step {
    action: u8,
    one: u16,
    other: u16,
    vlan: u16,
    wait_ms: u16,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..18_u8, any::<u16>(), any::<u16>(), 0..16_u16, 0..600_u16);
    let step = step.prop_map(|(action, one, other, vlan, wait_ms)| Step {
        action,
        one,
        other,
        vlan,
        wait_ms,
    });
    proptest::collection::vec(step, 1..200)
}

fn choose<K: ToString, V>(map: &std::collections::BTreeMap<K, V>, number: u16) -> String {
    let nothing = "eni-0".to_owned();
    let place = usize::from(number).checked_rem(map.len());
    let key = place.and_then(|place| map.keys().nth(place));
    key.map_or(nothing, ToString::to_string)
}

fn form(step: Step, cloud: &Cloud, network: &Network) -> String {
    let interface = choose(&cloud.interfaces, step.one);
    let other = choose(&cloud.interfaces, step.other);
    let instance = choose(&cloud.instances, step.other);
    let group = choose(&cloud.groups, step.one);
    let subnet = if step.one.is_multiple_of(3) {
        &network.small_subnet
    } else {
        &network.subnet
    };
    let vlan = step.vlan;
    // Some actions are taken more often, so that trunks fill up.
    let action = match step.action {
        14 => 0,
        15..=17 => 3,
        action => action,
    };
    match action {
        0 => format!("CreateNetworkInterface&SubnetId={subnet}&SecurityGroupId.1={group}"),
        1 => format!("CreateNetworkInterface&SubnetId={subnet}&InterfaceType=trunk"),
        2 => format!("CreateNetworkInterface&SubnetId={subnet}&ClientToken={vlan}"),
        3 | 4 => {
            // Any two interfaces are seldom a free one and an attached trunk.
            let attached_trunk = cloud.interfaces.values();
            let trunk = attached_trunk
                .filter(|one| one.is_trunk() && one.attachment.is_some())
                .map(|one| one.id.to_string())
                .next()
                .filter(|_| action == 3)
                .unwrap_or(other);
            format!(
                "AssociateTrunkInterface&BranchInterfaceId={interface}&TrunkInterfaceId={trunk}\
                 &VlanId={vlan}"
            )
        }
        5 => {
            let association = choose(&cloud.associations, step.one);
            format!("DisassociateTrunkInterface&AssociationId={association}")
        }
        6 | 7 => format!(
            "AttachNetworkInterface&NetworkInterfaceId={interface}&InstanceId={instance}\
             &DeviceIndex={}",
            vlan % 4
        ),
        8 => {
            let attachment = cloud
                .interfaces
                .get(interface.as_str())
                .and_then(|interface| interface.attachment.as_ref())
                .map_or_else(|| "eni-attach-0".to_owned(), |one| one.id.to_string());
            format!("DetachNetworkInterface&AttachmentId={attachment}")
        }
        9 => format!("DeleteNetworkInterface&NetworkInterfaceId={interface}"),
        10 => {
            let kind = ["m5.large", "t3.medium", "c7i-flex.large"][usize::from(vlan % 3)];
            format!(
                "RunInstances&ImageId=ami-1&InstanceType={kind}&MinCount=1&MaxCount=1\
                 &SubnetId={subnet}"
            )
        }
        11 => format!("TerminateInstances&InstanceId.1={instance}"),
        12 => format!(
            "ModifyNetworkInterfaceAttribute&NetworkInterfaceId={interface}\
             &SecurityGroupId.1={}",
            choose(&cloud.groups, step.other)
        ),
        13 => format!("CreateTags&ResourceId.1={interface}&Tag.1.Key=vlan&Tag.1.Value={vlan}"),
        other => unreachable!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_history_of_calls_breaks_ec2s_rules(steps in steps(), delay in 0..300_u64) {
        let mut ec2 = Ec2::with(Behaviour {
            interface_visibility_delay_ms: delay,
            transition_ms: delay,
            quotas: Quotas { network_interfaces: 40, ..Quotas::default() },
        });
        let network = ec2.network();
        let group = format!("CreateSecurityGroup&GroupName=a&GroupDescription=a&VpcId={}", network.vpc);
        ec2.ok(&format!("Action={group}"));
        let instance = ec2.run(&network, "c7i-flex.large");
        let trunk = ec2.interface(&network, "&InterfaceType=trunk");
        ec2.now = ec2.now.plus_ms(delay);
        ec2.ok(&format!(
            "Action=AttachNetworkInterface&NetworkInterfaceId={trunk}&InstanceId={instance}\
             &DeviceIndex=1"
        ));
        for step in steps {
            let form = form(step, &ec2.world.cloud, &network);
            ec2.now = ec2.now.plus_ms(step.wait_ms.into());
            ec2.answer(&format!("Action={form}"));
            ec2.check();
            prop_assert!(ec2.world.cloud.interfaces.len() <= 40);
        }
        // What was saved is what was there.
        let json = serde_json::to_vec(&ec2.world.cloud).unwrap();
        let mut loaded: Cloud = serde_json::from_slice(&json).unwrap();
        loaded.reindex().unwrap();
        prop_assert_eq!(serde_json::to_vec(&loaded).unwrap(), json);
    }
}

/// With optimisation 5,000 instances with 100,000 interfaces, of which 90,000 are branches;
/// without it, where the building takes long, a tenth of that.
#[test]
fn a_big_cloud_answers_pages_soon() {
    let (instances, bound_ms) = if cfg!(debug_assertions) {
        (500, 1_000)
    } else {
        (5_000, 100)
    };
    let quotas = Quotas {
        network_interfaces: 100_000,
        ..Quotas::default()
    };
    let mut ec2 = Ec2::with(Behaviour {
        quotas,
        ..Behaviour::default()
    });
    let vpc = ec2.get("Action=CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
    ec2.ok(&format!(
        "Action=AssociateVpcCidrBlock&VpcId={vpc}&CidrBlock=10.1.0.0/16"
    ));
    let subnets: Vec<String> = ["10.0.0.0/16", "10.1.0.0/16"]
        .iter()
        .map(|block| {
            let form = format!("Action=CreateSubnet&VpcId={vpc}&CidrBlock={block}");
            ec2.get(&form, "subnetId")
        })
        .collect();
    let tags = "&TagSpecification.1.ResourceType=network-interface\
                &TagSpecification.1.Tag.1.Key=cluster&TagSpecification.1.Tag.1.Value=big";
    for number in 0..instances {
        let network = Network {
            vpc: vpc.clone(),
            subnet: subnets[number % 2].clone(),
            small_subnet: String::new(),
        };
        let instance = ec2.run(&network, "m5.4xlarge");
        let trunk = ec2.interface(&network, &format!("&InterfaceType=trunk{tags}"));
        ec2.ok(&format!(
            "Action=AttachNetworkInterface&NetworkInterfaceId={trunk}&InstanceId={instance}\
             &DeviceIndex=1"
        ));
        for vlan in 1..=18 {
            let branch = ec2.interface(&network, tags);
            ec2.ok(&format!(
                "Action=AssociateTrunkInterface&BranchInterfaceId={branch}\
                 &TrunkInterfaceId={trunk}&VlanId={vlan}"
            ));
        }
    }
    assert_eq!(ec2.world.cloud.interfaces.len(), instances * 20);

    let by_tag = "&Filter.1.Name=tag:cluster&Filter.1.Value.1=big";
    let one_in_all = "&Filter.1.Name=private-ip-address&Filter.1.Value.1=10.1.255.*";
    let mut slowest = Duration::ZERO;
    for filter in ["", by_tag, one_in_all] {
        let page = format!("Action=DescribeNetworkInterfaces&MaxResults=1000{filter}");
        let mut token = String::new();
        for _ in 0..3 {
            // The best of three: other work on the machine says nothing about this.
            let took = (0..3).map(|_| {
                let begin = Instant::now();
                let body = ec2.ok(&format!("{page}{token}"));
                let took = begin.elapsed();
                (took, first(&body, "nextToken"))
            });
            let (took, next) = took.min().unwrap();
            slowest = slowest.max(took);
            token = next.map_or_else(String::new, |next| format!("&NextToken={next}"));
        }
    }
    assert!(slowest < Duration::from_millis(bound_ms), "{slowest:?}");

    let mut pages = 1;
    let page = format!("Action=DescribeNetworkInterfaces&MaxResults=1000{by_tag}");
    let mut token = first(&ec2.ok(&page), "nextToken");
    while let Some(next) = token {
        token = first(&ec2.ok(&format!("{page}&NextToken={next}")), "nextToken");
        pages += 1;
    }
    assert_eq!(pages, (instances * 19).div_ceil(1_000));
}
