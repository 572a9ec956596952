//! Calls to the simulated EC2: each gets an answer in XML that can be read, and none leaves a
//! cloud that contradicts itself or can't be saved.
//!
//! The input is a call on each line. `$vpc`, `$subnet`, `$group`, `$instance`, `$trunk`,
//! `$branch` and `$association` stand for ids of what there is.

use std::sync::LazyLock;

use quick_xml::Reader;
use quick_xml::events::Event;
use sgp::ec2::simulator::{Cloud, Simulator};

/// More calls take longer and show nothing else.
const CALLS: usize = 12;

/// Panics if the property does not hold for this input.
pub fn check(calls: &[u8]) {
    let simulator = Simulator::new(Cloud::new("us-west-2", "123456789012", 0));
    simulator.load(&PREPARED.state).expect("a saved cloud");
    for call in calls.split(|&byte| byte == b'\n').take(CALLS) {
        answer(&simulator, &PREPARED.with_ids(call));
    }
    let contradictions = simulator.contradictions();
    assert!(contradictions.is_empty(), "{contradictions:?}");
    let saved = simulator.save().expect("a cloud can be saved");
    if let Err(error) = simulator.load(&saved) {
        panic!("a saved cloud can't be loaded: {error}");
    }
}

/// The body of an answer, whose XML was read to its end.
fn answer(simulator: &Simulator, call: &[u8]) -> String {
    let answer = simulator.answer(call);
    let (status, body) = answer.expect("without faults, each call is answered");
    assert!((200..600).contains(&status), "{status}");
    let body = String::from_utf8(body).expect("answers are UTF-8");
    let mut reader = Reader::from_str(&body);
    let mut depth = 0_usize;
    loop {
        match reader.read_event() {
            Ok(Event::Start(_)) => depth += 1,
            Ok(Event::End(_)) => depth -= 1,
            Ok(Event::Eof) => break,
            Ok(_) => {}
            Err(error) => panic!("{error} in {body}"),
        }
    }
    assert_eq!(depth, 0, "{body}");
    body
}

/// A cloud in which a call finds something.
struct Prepared {
    state: Vec<u8>,
    ids: Vec<(&'static str, String)>,
}

static PREPARED: LazyLock<Prepared> = LazyLock::new(Prepared::new);

impl Prepared {
    fn new() -> Self {
        let simulator = Simulator::new(Cloud::new("us-west-2", "123456789012", 0));
        let get = |call: String, element: &str| {
            let body = answer(&simulator, call.as_bytes());
            let start = format!("<{element}>");
            let text = body.split_once(&start).map(|(_, rest)| rest);
            let text = text.and_then(|rest| rest.split('<').next());
            text.unwrap_or_else(|| panic!("{call}: no {element} in {body}"))
                .to_owned()
        };
        let vpc = get("Action=CreateVpc&CidrBlock=10.0.0.0/16".to_owned(), "vpcId");
        let subnet = get(
            format!("Action=CreateSubnet&VpcId={vpc}&CidrBlock=10.0.0.0/24"),
            "subnetId",
        );
        let group = get(
            format!(
                "Action=CreateSecurityGroup&VpcId={vpc}&GroupName=green&GroupDescription=green"
            ),
            "groupId",
        );
        let instance = get(
            format!(
                "Action=RunInstances&ImageId=ami-0123456789abcdef0&InstanceType=m5.large\
                 &MinCount=1&MaxCount=1&SubnetId={subnet}"
            ),
            "instanceId",
        );
        let interface = format!("Action=CreateNetworkInterface&SubnetId={subnet}");
        let trunk = get(
            format!("{interface}&InterfaceType=trunk"),
            "networkInterfaceId",
        );
        get(
            format!(
                "Action=AttachNetworkInterface&NetworkInterfaceId={trunk}\
                 &InstanceId={instance}&DeviceIndex=1"
            ),
            "attachmentId",
        );
        let branch = get(
            format!("{interface}&SecurityGroupId.1={group}"),
            "networkInterfaceId",
        );
        let association = get(
            format!(
                "Action=AssociateTrunkInterface&BranchInterfaceId={branch}\
                 &TrunkInterfaceId={trunk}&VlanId=1"
            ),
            "associationId",
        );
        Self {
            state: simulator.save().expect("a cloud can be saved"),
            ids: vec![
                ("$vpc", vpc),
                ("$subnet", subnet),
                ("$group", group),
                ("$instance", instance),
                ("$trunk", trunk),
                ("$branch", branch),
                ("$association", association),
            ],
        }
    }

    fn with_ids(&self, call: &[u8]) -> Vec<u8> {
        // What is no text holds no name.
        let Ok(text) = std::str::from_utf8(call) else {
            return call.to_vec();
        };
        let mut text = text.to_owned();
        for (name, id) in &self.ids {
            text = text.replace(name, id);
        }
        text.into_bytes()
    }
}
