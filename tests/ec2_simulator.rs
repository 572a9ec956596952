//! The simulated EC2, driven by programs that were not written here.
//!
//! boto3 and the AWS CLI come from PyPI, into a virtual environment in this user's cache. What
//! boto3 must make of the answers is in `ec2-simulator/scenarios.py`.

use std::cell::{OnceCell, RefCell};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const REQUIREMENTS: &str = include_str!("ec2-simulator/requirements.txt");

/// The Python of the virtual environment; made by whichever test needs it first.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let cache = std::env::var_os("SGP_CACHE_DIR")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(dirs::cache_dir()?.join("sgp")))
        .expect("a cache folder; SGP_CACHE_DIR sets one");
    let hash: String = Sha256::digest(REQUIREMENTS)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = cache.join(format!("python-{hash}"));
    let finished = folder.join("finished");
    fs::create_dir_all(&cache).unwrap();
    // Other test processes wait here. The lock goes with the file, and the file stays.
    let lock = File::create(cache.join(format!("python-{hash}.lock"))).unwrap();
    lock.lock().unwrap();
    if !finished.exists() {
        make_environment(&folder);
        File::create(finished).unwrap();
    }
    folder.join("bin/python")
});

/// Into its final place: an environment can't be moved.
fn make_environment(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).unwrap();
    }
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(folder)
        .output();
    let made = made.expect(
        "python3 is needed to test against boto3 and the AWS CLI; install Python 3.10 or later \
         (on Debian and Ubuntu: apt-get install python3 python3-venv)",
    );
    assert!(
        made.status.success(),
        "`python3 -m venv` failed; on Debian and Ubuntu: apt-get install python3-venv\n{}",
        String::from_utf8_lossy(&made.stdout)
    );
    let requirements =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ec2-simulator/requirements.txt");
    let installed = Command::new(folder.join("bin/python"))
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(requirements)
        .output()
        .unwrap();
    assert!(
        installed.status.success(),
        "boto3 and the AWS CLI could not be installed from PyPI:\n{}",
        String::from_utf8_lossy(&installed.stderr)
    );
}

/// A simulator of its own for each test.
struct Simulator {
    child: Child,
    endpoint: String,
    cli: OnceCell<RefCell<Cli>>,
}

/// The AWS CLI, in one process for all commands of a test: each start of it takes most of a
/// second of processor time.
struct Cli {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// How a command ended.
#[derive(Debug, Deserialize)]
struct Ended {
    code: i64,
    written: String,
    said: String,
}

impl Cli {
    fn start(endpoint: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ec2-simulator/cli.py");
        let mut child = Command::new(&*PYTHON)
            .arg(script)
            .env("AWS_ENDPOINT_URL_EC2", endpoint)
            .env("AWS_DEFAULT_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("AWS_PAGER", "")
            .env_remove("AWS_PROFILE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            commands: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// `aws ec2 ...`.
    fn run(&mut self, arguments: &str) -> Ended {
        let words: Vec<&str> = ["ec2"]
            .into_iter()
            .chain(arguments.split_whitespace())
            .collect();
        writeln!(self.commands, "{}", json!(words)).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Simulator {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sgp"))
            .args(["ec2-simulator", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut endpoint).unwrap();
        // The rest is read so that the program can write it.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        Self {
            child,
            endpoint: endpoint.trim().to_owned(),
            cli: OnceCell::new(),
        }
    }

    fn address(&self) -> &str {
        self.endpoint.strip_prefix("http://").unwrap()
    }

    /// Asks it to end, and says how long that took.
    fn stop(mut self, signal: Signal) -> Duration {
        let begin = Instant::now();
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        begin.elapsed()
    }

    fn run_cli(&self, arguments: &str) -> Ended {
        let cli = self
            .cli
            .get_or_init(|| RefCell::new(Cli::start(&self.endpoint)));
        cli.borrow_mut().run(arguments)
    }

    /// `aws ec2 ...`; what it prints as JSON.
    fn aws(&self, arguments: &str) -> Value {
        let ended = self.run_cli(arguments);
        assert_eq!(ended.code, 0, "aws ec2 {arguments}: {}", ended.said);
        if ended.written.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&ended.written).unwrap()
    }

    /// `aws ec2 ...` that must fail; what it prints as its error.
    fn aws_error(&self, arguments: &str) -> String {
        let ended = self.run_cli(arguments);
        assert_ne!(ended.code, 0, "aws ec2 {arguments} went well");
        ended.said
    }

    /// One HTTP/1.1 request as it stands; the whole answer.
    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str) -> String {
        self.raw(&format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        ))
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} in {value}"))
}

fn boto3(scenario: &str) {
    let simulator = Simulator::start();
    let output = Command::new(&*PYTHON)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ec2-simulator/scenarios.py"))
        .args([scenario, &simulator.endpoint])
        // Python's caches don't belong into the sources.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env_remove("AWS_PROFILE")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{scenario}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

macro_rules! boto3_scenarios {
    ($($test:ident: $scenario:literal,)*) => {$(
        #[test]
        fn $test() {
            boto3($scenario);
        }
    )*};
}

boto3_scenarios! {
    boto3_makes_and_finds_vpcs_and_subnets: "vpcs_and_subnets",
    boto3_makes_groups_and_changes_their_rules: "security_groups",
    boto3_runs_and_terminates_instances: "instances",
    boto3_lists_all_instance_types: "instance_types",
    boto3_makes_attaches_changes_and_deletes_interfaces: "interfaces",
    boto3_is_refused_interfaces_that_ec2_would_refuse: "interface_rules",
    boto3_gets_ipv6_addresses: "ipv6",
    boto3_ties_branches_to_trunks_by_ec2s_rules: "trunks",
    boto3_tags_all_kinds_of_resources: "tag_calls",
    boto3_filters_with_wildcards: "filters",
    boto3_pages_through_lists: "pagination",
    boto3_repeats_calls_by_client_token: "idempotency",
    boto3_learns_of_dry_runs_and_missing_permissions: "dry_run_and_permissions",
    boto3_meets_the_faults_that_are_set: "faults",
    boto3_is_throttled: "throttling",
    boto3_sees_things_late_when_told_so: "delays",
    boto3s_calls_are_logged_and_counted: "log",
    boto3_finds_a_saved_state_again: "state",
    boto3_calls_from_many_threads: "parallel_callers",
}

#[test]
fn the_aws_cli_sets_up_networks_and_groups() {
    let simulator = Simulator::start();
    let aws = |arguments: &str| simulator.aws(arguments);

    let vpc = aws("create-vpc --cidr-block 10.0.0.0/16 \
         --tag-specifications ResourceType=vpc,Tags=[{Key=Name,Value=one}]");
    let vpc = text(&vpc, "/Vpc/VpcId");
    let second = aws(&format!(
        "associate-vpc-cidr-block --vpc-id {vpc} --cidr-block 100.64.0.0/16"
    ));
    assert_eq!(
        text(&second, "/CidrBlockAssociation/CidrBlock"),
        "100.64.0.0/16"
    );
    let subnet = aws(&format!(
        "create-subnet --vpc-id {vpc} --cidr-block 100.64.0.0/24"
    ));
    let subnet = text(&subnet, "/Subnet/SubnetId");
    let vpcs = aws("describe-vpcs --filters Name=tag:Name,Values=o*");
    assert_eq!(text(&vpcs, "/Vpcs/0/VpcId"), vpc);
    let subnets = aws(&format!("describe-subnets --subnet-ids {subnet}"));
    assert_eq!(subnets["Subnets"][0]["AvailableIpAddressCount"], 251);
    let tables = aws(&format!(
        "describe-route-tables --filters Name=vpc-id,Values={vpc}"
    ));
    assert_eq!(tables["RouteTables"][0]["Associations"][0]["Main"], true);

    let green = aws(&format!(
        "create-security-group --group-name green --description g --vpc-id {vpc}"
    ));
    let green = text(&green, "/GroupId");
    let database = aws(&format!(
        "create-security-group --group-name database --description d --vpc-id {vpc}"
    ));
    let database = text(&database, "/GroupId");
    let rule = aws(&format!(
        "authorize-security-group-ingress --group-id {database} --protocol tcp --port 5432 \
         --source-group {green}"
    ));
    assert_eq!(
        text(&rule, "/SecurityGroupRules/0/ReferencedGroupInfo/GroupId"),
        green
    );
    let out = aws(&format!(
        "authorize-security-group-egress --group-id {green} --protocol tcp --port 443 \
         --cidr 10.0.0.0/8"
    ));
    let out = text(&out, "/SecurityGroupRules/0/SecurityGroupRuleId");
    let rules = aws(&format!(
        "describe-security-group-rules --filters Name=group-id,Values={green}"
    ));
    assert_eq!(rules["SecurityGroupRules"].as_array().unwrap().len(), 2);
    let groups = aws("describe-security-groups --filters Name=group-name,Values=d?tabase");
    assert_eq!(text(&groups, "/SecurityGroups/0/GroupId"), database);

    let in_use = simulator.aws_error(&format!("delete-security-group --group-id {green}"));
    assert!(in_use.contains("(DependencyViolation)"), "{in_use}");
    aws(&format!(
        "revoke-security-group-egress --group-id {green} --security-group-rule-ids {out}"
    ));
    aws(&format!(
        "revoke-security-group-ingress --group-id {database} --protocol tcp --port 5432 \
         --source-group {green}"
    ));
    aws(&format!("delete-security-group --group-id {green}"));
    let gone = simulator.aws_error(&format!("describe-security-groups --group-ids {green}"));
    assert!(
        gone.contains("(InvalidGroup.NotFound)")
            && gone.contains(&format!("The security group '{green}' does not exist")),
        "{gone}"
    );
}

#[test]
fn the_aws_cli_gives_an_instance_a_trunk_and_a_branch() {
    let simulator = Simulator::start();
    let aws = |arguments: &str| simulator.aws(arguments);
    let vpc = aws("create-vpc --cidr-block 10.0.0.0/16");
    let vpc = text(&vpc, "/Vpc/VpcId");
    let subnet = aws(&format!(
        "create-subnet --vpc-id {vpc} --cidr-block 10.0.0.0/24"
    ));
    let subnet = text(&subnet, "/Subnet/SubnetId");
    let create = |more: &str| {
        let made = aws(&format!(
            "create-network-interface --subnet-id {subnet} {more}"
        ));
        text(&made, "/NetworkInterface/NetworkInterfaceId").to_owned()
    };

    let run = aws(&format!(
        "run-instances --image-id ami-1 --instance-type m5.large --subnet-id {subnet} --count 1"
    ));
    let instance = text(&run, "/Instances/0/InstanceId");
    let shown = aws(&format!("describe-instances --instance-ids {instance}"));
    let state = text(&shown, "/Reservations/0/Instances/0/State/Name");
    assert_eq!(state, "running");
    let types = aws("describe-instance-types --instance-types m5.large");
    assert_eq!(
        types["InstanceTypes"][0]["NetworkInfo"]["MaximumNetworkInterfaces"],
        3
    );

    let trunk = create("--interface-type trunk --description aws-k8s-trunk-eni");
    let attached = aws(&format!(
        "attach-network-interface --network-interface-id {trunk} --instance-id {instance} \
         --device-index 1"
    ));
    let attachment = text(&attached, "/AttachmentId");
    let branch = create("--description aws-k8s-branch-eni --client-token pod");
    let same = create("--description aws-k8s-branch-eni --client-token pod");
    assert_eq!(branch, same);
    let tied = aws(&format!(
        "associate-trunk-interface --trunk-interface-id {trunk} --branch-interface-id {branch} \
         --vlan-id 12"
    ));
    let association = text(&tied, "/InterfaceAssociation/AssociationId");
    let found = aws(&format!(
        "describe-trunk-interface-associations --association-ids {association}"
    ));
    assert_eq!(found["InterfaceAssociations"][0]["VlanId"], 12);
    let listed = aws(
        "describe-network-interfaces --filters Name=description,Values=aws-k8s-branch-eni \
         Name=status,Values=in-use",
    );
    assert_eq!(
        text(&listed, "/NetworkInterfaces/0/NetworkInterfaceId"),
        branch
    );
    assert_eq!(
        text(&listed, "/NetworkInterfaces/0/InterfaceType"),
        "branch"
    );

    aws(&format!(
        "modify-network-interface-attribute --network-interface-id {trunk} \
         --attachment AttachmentId={attachment},DeleteOnTermination=true"
    ));
    aws(&format!(
        "create-network-interface-permission --network-interface-id {branch} \
         --aws-account-id 210987654321 --permission INSTANCE-ATTACH"
    ));
    aws(&format!(
        "create-tags --resources {branch} --tags Key=team,Value=red"
    ));
    let tags = aws(&format!(
        "describe-tags --filters Name=resource-id,Values={branch}"
    ));
    assert_eq!(text(&tags, "/Tags/0/Value"), "red");
    aws(&format!("delete-tags --resources {branch} --tags Key=team"));

    let busy = simulator.aws_error(&format!(
        "delete-network-interface --network-interface-id {branch}"
    ));
    assert!(busy.contains("(InvalidNetworkInterface.InUse)"), "{busy}");
    aws(&format!(
        "disassociate-trunk-interface --association-id {association}"
    ));
    aws(&format!(
        "delete-network-interface --network-interface-id {branch}"
    ));
    aws(&format!(
        "detach-network-interface --attachment-id {attachment}"
    ));
    let ended = aws(&format!("terminate-instances --instance-ids {instance}"));
    let state = text(&ended, "/TerminatingInstances/0/CurrentState/Name");
    assert_eq!(state, "shutting-down");
    let left = aws("describe-network-interfaces --page-size 5");
    assert_eq!(left["NetworkInterfaces"].as_array().unwrap().len(), 1);
    let dry = simulator.aws_error("create-vpc --cidr-block 10.0.0.0/16 --dry-run");
    assert!(dry.contains("(DryRunOperation)"), "{dry}");
}

#[test]
fn it_ends_within_a_second_although_a_call_hangs() {
    for signal in [Signal::TERM, Signal::INT] {
        // A machine that is busy needs a while for any end.
        let ordinary = Simulator::start().stop(signal);
        let simulator = Simulator::start();
        let fault = r#"{"action": "DescribeVpcs", "outcome": "hang"}"#;
        let set = simulator.raw(&format!(
            "POST /simulator/faults HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{fault}",
            fault.len()
        ));
        assert!(set.starts_with("HTTP/1.1 200"), "{set}");
        let mut hanging = TcpStream::connect(simulator.address()).unwrap();
        hanging
            .write_all(b"GET /?Action=DescribeVpcs HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .unwrap();
        let idle = TcpStream::connect(simulator.address()).unwrap();
        wait_until(|| simulator.get("/simulator/calls").contains("hung"));

        let took = simulator.stop(signal);

        let limit = Duration::from_secs(1) + ordinary;
        assert!(
            took < limit,
            "{signal:?}: {took:?}, ordinarily {ordinary:?}"
        );
        let mut rest = String::new();
        let _ = hanging.read_to_string(&mut rest);
        assert_eq!(rest, "", "no answer");
        drop(idle);
    }
}

#[test]
fn a_state_file_carries_the_cloud_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloud.json");
    let arguments = ["--state", file.to_str().unwrap()];
    let create = "/?Action=CreateVpc&CidrBlock=10.0.0.0/16";

    let simulator = Simulator::start_with(&arguments);
    let made = simulator.get(create);
    assert!(made.contains("<vpcId>"), "{made}");
    simulator.stop(Signal::TERM);
    let simulator = Simulator::start_with(&arguments);
    let shown = simulator.get("/?Action=DescribeVpcs");
    let again = simulator.get(create);

    let id = |answer: &str| {
        let start = answer.find("<vpcId>").unwrap() + "<vpcId>".len();
        answer[start..].split('<').next().unwrap().to_owned()
    };
    assert_eq!(id(&made), id(&shown));
    assert_ne!(id(&made), id(&again), "ids go on where they ended");
}

#[test]
fn a_damaged_state_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloud.json");
    fs::write(&file, "{").unwrap();

    let output = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["ec2-simulator", "--state"])
        .arg(&file)
        .output()
        .unwrap();

    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cloud.json"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{", "left as it was");
}

#[test]
fn calls_that_make_no_sense_get_ec2s_answers() {
    let simulator = Simulator::start();
    for (path, status, says) in [
        ("/", "400", "MissingAction"),
        ("/?Action=MakeCoffee", "400", "<Code>InvalidAction</Code>"),
        (
            "/?Action=CreateSubnet",
            "400",
            "<Code>MissingParameter</Code>",
        ),
        (
            "/?Action=CreateVpc&CidrBlock=%00",
            "400",
            "invalid characters",
        ),
        (
            "/?Action=DescribeVpcs&Colour=red",
            "400",
            "<Code>UnknownParameter</Code>",
        ),
        ("/?Action=DescribeVpcs&Version=2016-11-15", "200", "<vpcSet"),
        ("/nowhere", "404", ""),
        ("/simulator/", "200", "/simulator/faults"),
    ] {
        let answer = simulator.get(path);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {answer}"
        );
        assert!(answer.contains(says), "{path}: {answer}");
    }
    let too_long = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        2 << 20
    );
    let answer = simulator.raw(&too_long);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(120), "in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}
