//! The client of EC2, against the simulated EC2 over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_ec2::types::InstanceType;
use futures::future::{join_all, try_join_all};
use sgp::ec2::calls::{
    Attachment, Ec2, Filter, Interface, InterfaceKind, NewAssociation, NewInterface, Priority,
    SecurityGroup, Subnet,
};
use sgp::ec2::client::AwsEc2;
use sgp::ec2::error::{Ec2Error, ErrorClass};
use sgp::ec2::hedging::AGAIN_AFTER;
use sgp::ec2::metrics::Ec2Metrics;
use sgp::ec2::simulator::{Fault, FaultOutcome, Moment, Settings, Simulator, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REGION: &str = "us-west-2";

/// A cloud of its own for each test, with a subnet and a security group.
struct Cloud {
    simulator: Simulator,
    endpoint: String,
    ec2: AwsEc2,
    metrics: Ec2Metrics,
    vpc: String,
    subnet: String,
    ipv6_block: String,
    group: String,
}

/// The SDK without anything of ours, for what only tests do.
fn plain_sdk(endpoint: &str) -> aws_sdk_ec2::Client {
    let credentials = Credentials::new("any", "any", None, None, "test");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(endpoint)
        .region(Region::new(REGION))
        .build();
    aws_sdk_ec2::Client::new(&config)
}

impl Cloud {
    async fn new() -> Self {
        let simulator = Simulator::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, simulator.clone(), std::future::pending()));

        let sdk = plain_sdk(&endpoint);
        let vpc = sdk
            .create_vpc()
            .cidr_block("10.0.0.0/16")
            .amazon_provided_ipv6_cidr_block(true)
            .send()
            .await
            .unwrap();
        let vpc = vpc.vpc().unwrap();
        let vpc_block = vpc.ipv6_cidr_block_association_set()[0].ipv6_cidr_block();
        let ipv6_block = vpc_block.unwrap().replace("/56", "/64");
        let vpc = vpc.vpc_id().unwrap().to_owned();
        let subnet = sdk
            .create_subnet()
            .vpc_id(&vpc)
            .cidr_block("10.0.0.0/18")
            .ipv6_cidr_block(&ipv6_block)
            .send()
            .await
            .unwrap();
        let subnet = subnet.subnet().unwrap().subnet_id().unwrap().to_owned();
        let metrics = Ec2Metrics::default();
        let mut cloud = Self {
            ec2: AwsEc2::with_endpoint(&endpoint, REGION, metrics.clone()),
            metrics,
            simulator,
            endpoint,
            vpc,
            subnet,
            ipv6_block,
            group: String::new(),
        };
        cloud.group = cloud.new_group("green").await;
        cloud.simulator.reset_calls();
        cloud
    }

    async fn new_group(&self, name: &str) -> String {
        let group = plain_sdk(&self.endpoint)
            .create_security_group()
            .group_name(name)
            .description(name)
            .vpc_id(&self.vpc)
            .send()
            .await
            .unwrap();
        group.group_id().unwrap().to_owned()
    }

    /// Starts instances; their ids, sorted.
    async fn run(&self, instance_type: &str, count: i32) -> Vec<String> {
        let started = plain_sdk(&self.endpoint)
            .run_instances()
            .image_id("ami-12345678")
            .instance_type(InstanceType::from(instance_type))
            .min_count(count)
            .max_count(count)
            .subnet_id(&self.subnet)
            .security_group_ids(&self.group)
            .send()
            .await
            .unwrap();
        let ids = started.instances().iter();
        let mut ids: Vec<String> = ids
            .map(|one| one.instance_id().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }

    fn new_interface(&self, token: &str) -> NewInterface {
        NewInterface {
            trunk: false,
            subnet_id: self.subnet.clone(),
            group_ids: vec![self.group.clone()],
            description: "aws-k8s-branch-eni".to_owned(),
            tags: BTreeMap::from([("owner".to_owned(), token.to_owned())]),
            ipv6: false,
            client_token: token.to_owned(),
        }
    }

    fn new_trunk(&self, token: &str) -> NewInterface {
        NewInterface {
            trunk: true,
            ..self.new_interface(token)
        }
    }

    /// A trunk on this instance.
    async fn trunk(&self, instance: &str) -> Interface {
        let trunk = self.ec2.create_interface(self.new_trunk(instance)).await;
        let trunk = trunk.unwrap();
        let attached = self.ec2.attach(trunk.id.clone(), instance.to_owned(), 1);
        attached.await.unwrap();
        trunk
    }

    async fn interfaces(&self, filters: Vec<Filter>) -> Vec<Interface> {
        let found = self.ec2.interfaces(filters, Priority::Audit).await;
        found.unwrap()
    }

    async fn interface(&self, id: &str) -> Interface {
        let found = self.interfaces(vec![Filter::new("network-interface-id", id)]);
        found.await.pop().unwrap()
    }

    fn fault(&self, action: &str, times: Option<u64>, moment: Moment, outcome: FaultOutcome) {
        let fault = Fault {
            action: action.to_owned(),
            skip: 0,
            times,
            moment,
            outcome,
        };
        self.simulator.add_fault(fault).unwrap();
    }

    fn latency(&self, action: &str, latency: Duration) {
        let milliseconds = latency.as_millis().try_into().unwrap();
        let settings = Settings {
            latency_ms: BTreeMap::from([(action.to_owned(), milliseconds)]),
            ..Settings::default()
        };
        self.simulator.set(settings).unwrap();
    }

    fn requests(&self, action: &str) -> u64 {
        self.simulator.call_counts().of(action)
    }
}

fn error(code: &str) -> FaultOutcome {
    FaultOutcome::Error {
        code: code.to_owned(),
        message: None,
    }
}

#[tokio::test]
async fn trunk_comes_to_its_instance_and_goes() {
    let cloud = Cloud::new().await;
    let instance = cloud.run("m5.large", 1).await.remove(0);

    let trunk = cloud.ec2.create_interface(cloud.new_trunk("t")).await;
    let trunk = trunk.unwrap();
    assert_eq!(trunk.kind, InterfaceKind::Trunk);
    assert!(!trunk.in_use);
    assert_eq!(trunk.attachment, None);

    let id = trunk.id.clone();
    let attached = cloud.ec2.attach(id.clone(), instance.clone(), 1).await;
    let attachment = attached.unwrap();
    let attachment_of = |delete_on_termination| {
        Some(Attachment {
            id: attachment.clone(),
            instance_id: instance.clone(),
            attached: true,
            delete_on_termination,
        })
    };
    let seen = cloud.interface(&id).await;
    assert!(seen.in_use);
    assert_eq!(seen.attachment, attachment_of(false));

    let changed = cloud
        .ec2
        .delete_on_termination(id.clone(), attachment.clone());
    changed.await.unwrap();
    assert_eq!(cloud.interface(&id).await.attachment, attachment_of(true));

    cloud.ec2.detach(attachment.clone()).await.unwrap();
    let tags = BTreeMap::from([("owner".to_owned(), "me".to_owned())]);
    let tagged = cloud.ec2.tag_interface(id.clone(), tags).await;
    tagged.unwrap();
    let filters = vec![Filter::new("tag:owner", "me")];
    let found = cloud
        .ec2
        .interfaces(filters, Priority::Audit)
        .await
        .unwrap();
    assert_eq!(found.len(), 1);

    cloud.ec2.delete_interface(id.clone()).await.unwrap();
    let mine = vec![Filter::new("tag:owner", "t")];
    assert_eq!(cloud.interfaces(mine).await, []);

    let again = cloud.ec2.delete_interface(id).await.unwrap_err();
    assert_eq!(again.class, ErrorClass::Gone);
    let again = cloud.ec2.detach(attachment).await.unwrap_err();
    assert_eq!(again.class, ErrorClass::Gone);
}

#[tokio::test]
async fn branch_has_its_address_groups_tags_and_vlan() {
    let cloud = Cloud::new().await;
    let instance = cloud.run("m5.large", 1).await.remove(0);
    let trunk = cloud.trunk(&instance).await;
    let red = cloud.new_group("red").await;

    let branch = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let branch = branch.unwrap();
    assert_eq!(branch.description, "aws-k8s-branch-eni");
    assert_eq!(branch.kind, InterfaceKind::Other);
    assert!(branch.private_ip.starts_with("10.0."), "{branch:?}");
    assert_eq!(branch.mac_address.split(':').count(), 6, "{branch:?}");
    assert_eq!(branch.ipv6_address, None);
    assert_eq!(branch.subnet_id, cloud.subnet);
    assert_eq!(branch.vpc_id, cloud.vpc);
    assert_eq!(branch.group_ids, [&*cloud.group]);
    assert_eq!(branch.tags["owner"], "pod");

    let association = NewAssociation {
        trunk_id: trunk.id.clone(),
        branch_id: branch.id.clone(),
        vlan: 7,
        client_token: "pod".to_owned(),
    };
    let first = cloud.ec2.associate(association.clone()).await.unwrap();
    let again = cloud.ec2.associate(association).await.unwrap();
    assert_eq!(first, again);
    let seen = cloud.ec2.associations().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].id, first);
    assert_eq!(seen[0].trunk_id, trunk.id);
    assert_eq!(seen[0].branch_id, branch.id);
    assert_eq!(seen[0].vlan, 7);

    let groups = vec![cloud.group.clone(), red.clone()];
    let set = cloud.ec2.set_groups(branch.id.clone(), groups.clone());
    set.await.unwrap();
    let seen = cloud.interface(&branch.id).await;
    assert_eq!(seen.kind, InterfaceKind::Branch);
    assert!(seen.in_use);
    assert_eq!(seen.attachment, None);
    assert_eq!(
        BTreeSet::from_iter(seen.group_ids),
        BTreeSet::from_iter(groups)
    );

    cloud.ec2.disassociate(first.clone()).await.unwrap();
    assert_eq!(cloud.ec2.associations().await.unwrap(), []);
    // By its id EC2 knows that it is the same call.
    cloud.ec2.disassociate(first).await.unwrap();
    let seen = cloud.interface(&branch.id).await;
    assert_eq!(seen.kind, InterfaceKind::Other);
    assert!(!seen.in_use);

    let unknown = cloud.ec2.disassociate("trunk-assoc-12345678".to_owned());
    assert_eq!(unknown.await.unwrap_err().class, ErrorClass::Gone);
}

#[tokio::test]
async fn interface_gets_an_ipv6_address_when_asked_for() {
    let cloud = Cloud::new().await;
    let new = NewInterface {
        ipv6: true,
        ..cloud.new_interface("pod")
    };
    let made = cloud.ec2.create_interface(new).await.unwrap();
    let prefix = cloud.ipv6_block.strip_suffix("::/64").unwrap();
    let address = made.ipv6_address.clone().unwrap();
    assert!(address.starts_with(prefix), "{address} in {prefix}");
    let seen = cloud.interface(&made.id).await;
    assert_eq!(seen.ipv6_address, made.ipv6_address);
}

#[tokio::test]
async fn subnets_and_groups_that_are_missing_are_left_out() {
    let cloud = Cloud::new().await;
    let subnet = Subnet {
        id: cloud.subnet.clone(),
        vpc_id: cloud.vpc.clone(),
        ipv4_cidr: "10.0.0.0/18".to_owned(),
        ipv6_cidr: cloud.ipv6_block.clone(),
    };
    let missing = |kind: &str| {
        (0..300)
            .map(|number| format!("{kind}-{number:08x}"))
            .collect()
    };
    let mut subnets: Vec<String> = missing("subnet");
    assert_eq!(cloud.ec2.subnets(subnets.clone()).await.unwrap(), []);
    subnets.push(cloud.subnet.clone());
    assert_eq!(cloud.ec2.subnets(subnets).await.unwrap(), [subnet]);

    let group = SecurityGroup {
        id: cloud.group.clone(),
        vpc_id: cloud.vpc.clone(),
    };
    let mut groups: Vec<String> = missing("sg");
    groups.push(cloud.group.clone());
    assert_eq!(cloud.ec2.security_groups(groups).await.unwrap(), [group]);

    cloud.simulator.reset_calls();
    assert_eq!(cloud.ec2.subnets(Vec::new()).await.unwrap(), []);
    assert_eq!(cloud.ec2.security_groups(Vec::new()).await.unwrap(), []);
    let none = cloud.ec2.instances(Vec::new(), Priority::Audit).await;
    assert_eq!(none.unwrap(), []);
    assert_eq!(cloud.simulator.call_counts().total, 0);
}

#[tokio::test]
async fn instance_shows_its_type_groups_and_taken_device_indexes() {
    let cloud = Cloud::new().await;
    let ids = cloud.run("m5.large", 2).await;
    cloud.trunk(&ids[1]).await;
    let terminated = plain_sdk(&cloud.endpoint)
        .terminate_instances()
        .instance_ids(&ids[0]);
    terminated.send().await.unwrap();

    let found = cloud.ec2.instances(ids.clone(), Priority::Allocation).await;
    let mut found = found.unwrap();
    found.sort_by(|one, other| one.id.cmp(&other.id));
    let (gone, alive) = (&found[0], &found[1]);
    assert_eq!((&gone.id, gone.alive), (&ids[0], false));
    assert_eq!((&alive.id, alive.alive), (&ids[1], true));
    assert_eq!(alive.instance_type, "m5.large");
    assert_eq!(alive.subnet_id, cloud.subnet);
    assert_eq!(alive.vpc_id, cloud.vpc);
    assert_eq!(alive.group_ids, [&*cloud.group]);
    let taken = BTreeSet::from_iter(alive.device_indexes.iter().copied());
    assert_eq!(taken, BTreeSet::from([0, 1]));
}

#[tokio::test]
async fn known_instances_are_found_among_unknown_ones_in_few_calls() {
    let cloud = Cloud::new().await;
    let known = cloud.run("m5.large", 600).await;
    let mut asked = known.clone();
    cloud.simulator.reset_calls();
    let ids = |found: Vec<sgp::ec2::calls::Instance>| {
        let ids: BTreeSet<String> = found.into_iter().map(|one| one.id).collect();
        Vec::from_iter(ids)
    };
    let found = cloud.ec2.instances(asked.clone(), Priority::Audit).await;
    assert_eq!(ids(found.unwrap()), known);
    assert_eq!(cloud.requests("DescribeInstances"), 2);

    // Well formed, malformed, and nothing that a message would show as one word.
    for unknown in ["i-1234567890abcdef0", "mi-0123456789", "not an id"] {
        asked.push(unknown.to_owned());
    }
    cloud.simulator.reset_calls();
    let found = cloud.ec2.instances(asked, Priority::Audit).await;
    assert_eq!(ids(found.unwrap()), known);
    let calls = cloud.requests("DescribeInstances");
    assert!(calls < 30, "{calls}");
}

#[tokio::test]
async fn limits_come_from_ec2_as_far_as_it_tells_them() {
    let cloud = Cloud::new().await;
    let limits = cloud.ec2.instance_limits("m5.large".to_owned()).await;
    let limits = limits.unwrap().unwrap();
    assert_eq!(limits.instance_type, "m5.large");
    assert_eq!(limits.max_interfaces, 3);
    assert_eq!(limits.default_card_interfaces, 3);
    assert_eq!(limits.ipv4_per_interface, 10);
    assert_eq!(limits.hypervisor, "nitro");
    assert!(!limits.bare_metal);
    assert_eq!((limits.trunking, limits.branch_interfaces), (false, 0));
    let unknown = cloud.ec2.instance_limits("m5.gigantic".to_owned()).await;
    assert_eq!(unknown.unwrap(), None);
}

#[tokio::test]
async fn lists_come_from_all_pages_although_one_is_refused_on_the_way() {
    let cloud = Cloud::new().await;
    cloud.run("m5.large", 1_000).await;
    cloud.run("m5.large", 5).await;
    cloud.simulator.reset_calls();
    let of_vpc = vec![Filter::new("vpc-id", &cloud.vpc)];
    let found = cloud.interfaces(of_vpc.clone()).await;
    let ids: BTreeSet<String> = found.into_iter().map(|one| one.id).collect();
    assert_eq!(ids.len(), 1_005);
    assert_eq!(cloud.requests("DescribeNetworkInterfaces"), 2);

    let fault = Fault {
        action: "DescribeNetworkInterfaces".to_owned(),
        skip: 1,
        times: Some(2),
        moment: Moment::Before,
        outcome: error("RequestLimitExceeded"),
    };
    cloud.simulator.add_fault(fault).unwrap();
    assert_eq!(cloud.interfaces(of_vpc.clone()).await.len(), 1_005);
    assert_eq!(cloud.requests("DescribeNetworkInterfaces"), 6);

    cloud.fault(
        "DescribeNetworkInterfaces",
        Some(1),
        Moment::Before,
        error("RequestLimitExceeded"),
    );
    let refused = cloud.ec2.interfaces(of_vpc, Priority::Audit).await;
    assert_eq!(refused.unwrap_err().class, ErrorClass::Throttled);
}

#[tokio::test]
async fn associations_come_from_all_pages() {
    let cloud = Cloud::new().await;
    let instances = cloud.run("m5.metal", 3).await;
    let trunks = join_all(instances.iter().map(|id| cloud.trunk(id))).await;
    let made = (0..270_usize).map(|number| {
        let (cloud, trunk) = (&cloud, &trunks[number % 3]);
        async move {
            let token = format!("pod-{number}");
            let branch = cloud.ec2.create_interface(cloud.new_interface(&token));
            let association = NewAssociation {
                trunk_id: trunk.id.clone(),
                branch_id: branch.await?.id,
                vlan: u16::try_from(number / 3 + 1).unwrap(),
                client_token: token,
            };
            cloud.ec2.associate(association).await
        }
    });
    let made: Vec<String> = try_join_all(made).await.unwrap();

    let found = cloud.ec2.associations().await.unwrap();
    let found: BTreeSet<String> = found.into_iter().map(|one| one.id).collect();
    assert_eq!(found, BTreeSet::from_iter(made));
    assert_eq!(cloud.requests("DescribeTrunkInterfaceAssociations"), 2);
}

#[tokio::test]
async fn failures_have_the_class_and_the_words_of_ec2() {
    let cloud = Cloud::new().await;
    for (code, class) in [
        ("InternalError", ErrorClass::Retry),
        ("ServiceUnavailable", ErrorClass::Retry),
        ("IncorrectState", ErrorClass::Retry),
        ("RequestLimitExceeded", ErrorClass::Throttled),
        ("InvalidSecurityGroupID.NotFound", ErrorClass::Missing),
        ("InvalidSubnetID.NotFound", ErrorClass::Missing),
        ("InvalidInstanceID.NotFound", ErrorClass::Gone),
        ("AuthFailure", ErrorClass::Forbidden),
        ("InsufficientFreeAddressesInSubnet", ErrorClass::Full),
        ("NetworkInterfaceLimitExceeded", ErrorClass::Full),
        ("SomethingNew", ErrorClass::Bug),
    ] {
        cloud.fault(
            "CreateNetworkInterface",
            Some(1),
            Moment::Before,
            error(code),
        );
        let failed = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
        let failed = failed.unwrap_err();
        assert_eq!((failed.class, failed.code.as_str()), (class, code));
        assert_eq!(failed.call, "CreateNetworkInterface");
        assert!(!failed.message.is_empty(), "{failed}");
    }
    // Without the SDK's own retries.
    assert_eq!(cloud.requests("CreateNetworkInterface"), 11);

    let settings = Settings {
        allowed_actions: Some(BTreeSet::from(["DescribeSubnets".to_owned()])),
        ..Settings::default()
    };
    cloud.simulator.set(settings).unwrap();
    let failed = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.class, ErrorClass::Forbidden);
    assert!(
        failed.message.contains("ec2:CreateNetworkInterface"),
        "{failed}"
    );

    let missing = "sg-12345678".to_owned();
    cloud.simulator.set(Settings::default()).unwrap();
    let new = NewInterface {
        group_ids: vec![missing],
        ..cloud.new_interface("pod")
    };
    let failed = cloud.ec2.create_interface(new).await.unwrap_err();
    assert_eq!(failed.class, ErrorClass::Missing);
    assert_eq!(
        failed.message,
        "The securityGroup ID 'sg-12345678' does not exist"
    );
}

#[tokio::test]
async fn same_client_token_makes_one_interface() {
    let cloud = Cloud::new().await;
    let first = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let again = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    assert_eq!(first.unwrap().id, again.unwrap().id);

    let other = NewInterface {
        description: "another".to_owned(),
        ..cloud.new_interface("pod")
    };
    let refused = cloud.ec2.create_interface(other).await.unwrap_err();
    assert_eq!(refused.class, ErrorClass::Retry);
    assert_eq!(refused.code, "IdempotentParameterMismatch");
}

#[tokio::test]
async fn dropped_connection_is_told_at_once_and_the_call_can_be_made_again() {
    let cloud = Cloud::new().await;
    cloud.fault(
        "CreateNetworkInterface",
        Some(1),
        Moment::After,
        FaultOutcome::Drop,
    );
    let begin = Instant::now();
    let failed = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let failed = failed.unwrap_err();
    assert_eq!(
        (failed.class, &*failed.code),
        (ErrorClass::Retry, "NoAnswer")
    );
    assert!(failed.message.contains("connection"), "{failed}");
    assert!(begin.elapsed() < AGAIN_AFTER, "{:?}", begin.elapsed());

    let made = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let mine = vec![Filter::new("tag:owner", "pod")];
    assert_eq!(cloud.interfaces(mine).await, [made.unwrap()]);
}

#[tokio::test]
async fn answer_that_never_comes_is_made_up_for_by_a_second_request() {
    let cloud = Cloud::new().await;
    cloud.fault(
        "CreateNetworkInterface",
        Some(1),
        Moment::After,
        FaultOutcome::Hang,
    );
    let made = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let mine = vec![Filter::new("tag:owner", "pod")];
    assert_eq!(cloud.interfaces(mine).await, [made.unwrap()]);
    assert_eq!(cloud.requests("CreateNetworkInterface"), 2);
}

#[tokio::test]
async fn slow_answers_are_waited_for() {
    let cloud = Cloud::new().await;
    cloud.latency("*", Duration::from_secs(4));
    let made = cloud.ec2.create_interface(cloud.new_interface("pod")).await;
    let made = made.unwrap();
    // Without a client token: the first request's answer comes before the second one's.
    cloud.ec2.delete_interface(made.id.clone()).await.unwrap();

    cloud.simulator.set(Settings::default()).unwrap();
    let mine = vec![Filter::new("tag:owner", "pod")];
    assert_eq!(cloud.interfaces(mine).await, []);
    assert_eq!(cloud.requests("CreateNetworkInterface"), 2);
}

#[tokio::test]
async fn silence_ends_in_an_error_after_ten_seconds() {
    let cloud = Cloud::new().await;
    cloud.fault(
        "DeleteNetworkInterface",
        None,
        Moment::Before,
        FaultOutcome::Hang,
    );
    let begin = Instant::now();
    let deleted = cloud.ec2.delete_interface("eni-12345678".to_owned()).await;
    let failed = deleted.unwrap_err();
    assert_eq!(
        (failed.class, &*failed.code),
        (ErrorClass::Retry, "NoAnswer")
    );
    assert!(begin.elapsed() >= Duration::from_secs(10));
    assert_eq!(cloud.requests("DeleteNetworkInterface"), 4);
}

async fn failure_of(ec2: &AwsEc2) -> Ec2Error {
    let deleted = ec2.delete_interface("eni-12345678".to_owned()).await;
    deleted.unwrap_err()
}

#[tokio::test]
async fn refused_connection_is_told_with_its_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let ec2 = AwsEc2::with_endpoint(&url, REGION, Ec2Metrics::default());
    let failed = failure_of(&ec2).await;
    assert_eq!(
        (failed.class, &*failed.code),
        (ErrorClass::Retry, "NoAnswer")
    );
    assert!(failed.message.contains("refused"), "{failed}");
}

#[tokio::test]
async fn answer_that_is_not_of_ec2_is_no_answer() {
    for answer in ["220 mail.example.com ready\r\n\r\n", BAD_GATEWAY] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let ec2 = AwsEc2::with_endpoint(&url, REGION, Ec2Metrics::default());
        let (failed, ()) = tokio::join!(failure_of(&ec2), server);
        let expected = (ErrorClass::Retry, "NoAnswer");
        assert_eq!((failed.class, &*failed.code), expected, "{failed}");
    }
}

const BAD_GATEWAY: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 9\r\n\r\nno luck\r\n";

#[tokio::test]
async fn absent_credentials_are_told_with_what_to_do() {
    let cloud = Cloud::new().await;
    let nobody = aws_config::profile::ProfileFileCredentialsProvider::builder()
        .profile_name("a profile that nobody has")
        .build();
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(nobody))
        .endpoint_url(&cloud.endpoint)
        .region(Region::new(REGION))
        .build();
    let ec2 = AwsEc2::with_config(config, Ec2Metrics::default());
    let failed = failure_of(&ec2).await;
    let expected = (ErrorClass::Forbidden, "NoCredentials");
    assert_eq!((failed.class, &*failed.code), expected, "{failed}");
    assert!(failed.message.contains("IRSA"), "{failed}");
    assert_eq!(cloud.simulator.call_counts().total, 0);
}

#[tokio::test]
async fn throttled_requests_slow_the_next_ones_down() {
    let cloud = Cloud::new().await;
    cloud.fault("*", Some(1), Moment::Before, error("RequestLimitExceeded"));
    assert_eq!(failure_of(&cloud.ec2).await.class, ErrorClass::Throttled);
    // Nothing was served lately, so that it falls to the slowest at once.
    assert_eq!(cloud.metrics.rate.get(), 3.0);
    assert_eq!(cloud.metrics.waiting.get(), 0);
}

#[tokio::test]
async fn call_that_was_begun_is_held_back_when_its_process_may_not_change_anything_any_more() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let ec2 = AwsEc2::with_endpoint(&endpoint, REGION, Ec2Metrics::default()).only_while({
        let asked = asked.clone();
        // The call is begun, and then the lease runs out.
        move || asked.fetch_add(1, Ordering::Relaxed) == 0
    });

    let call = ec2.delete_interface("eni-0123456789abcdef0".to_owned());
    let received = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        // A connection that is broken off may end with an error as well.
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    };
    let (refused, received) = tokio::join!(call, received);

    assert_eq!(refused.unwrap_err().code, "NotSent");
    assert_eq!(String::from_utf8_lossy(&received), "");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
