//! The simulated EC2 of a sandbox, in this process: a network set up through EC2's own
//! actions, and the instances that are the cluster's nodes.
//!
//! It has a thread and a runtime of its own, so that it answers while whoever started it is
//! busy, or has left the runtime in which it was started.

mod network;
mod server;
mod state_file;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_ec2::types::{Filter, InstanceStateName, InstanceType, ResourceType, TagSpecification};

use crate::api::names::{OWNED, TAG_CLUSTER_PREFIX};
use crate::ec2::simulator::{Cloud, Simulator};
pub(super) use network::SHARED_POD_BLOCK;
pub use network::{GroupIds, Network, Zone};
use server::Server;
use state_file::StateFile;

/// The cluster's name, which its resources in EC2 are tagged with.
pub const CLUSTER_NAME: &str = "sgp-dev";
/// The region of all zones.
pub const REGION: &str = "us-west-2";

const ACCOUNT: &str = "123456789012";
/// The same ids in each new cloud: the examples name security groups of it.
const SEED: u64 = 0;
/// What EC2 would start from. Nobody looks at it.
const IMAGE: &str = "ami-0123456789abcdef0";
/// Any will do; no signature is verified.
const ACCESS_KEY: &str = "any";

/// A running simulated EC2. Ends when dropped, after saving what it keeps.
#[derive(Debug)]
pub struct SimulatedCloud {
    server: Server,
    simulator: Simulator,
    network: Network,
    state_file: Option<Arc<StateFile>>,
}

/// An instance that is not terminated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Such as `m5.large`.
    pub instance_type: String,
    /// The availability zone that it is in.
    pub zone: String,
    /// The primary IPv4 address of its first interface.
    pub private_ip: String,
    /// The name that EC2 gives it, which EKS also gives its node.
    pub private_dns_name: String,
}

impl SimulatedCloud {
    /// Starts with the cloud in `state`, if the file is there, or else with a new one. The
    /// cloud is saved there shortly after each change, and at the end.
    ///
    /// # Errors
    ///
    /// When the file is no saved cloud of a sandbox, or no port is free.
    pub async fn start(state: Option<PathBuf>) -> anyhow::Result<Self> {
        let simulator = Simulator::new(Cloud::new(REGION, ACCOUNT, SEED));
        if let Some(path) = state.as_deref().filter(|path| path.exists()) {
            let load = || anyhow::Ok(simulator.load(&fs::read(path)?)?);
            load().with_context(|| {
                let path = path.display();
                format!("can't use the simulated EC2 in {path}; remove the file for a new one")
            })?;
        }
        let state_file = state.map(|path| Arc::new(StateFile::new(path)));
        let server = Server::start(simulator.clone(), state_file.clone())?;
        let client = client(server.endpoint_url());
        let network = match Network::find(&client).await? {
            Some(network) => network,
            None => {
                network::create(&client).await?;
                let created = Network::find(&client).await?;
                created.context("the simulated EC2 does not show what was created in it")?
            }
        };
        let cloud = Self {
            server,
            simulator,
            network,
            state_file,
        };
        cloud.forget_own_calls();
        cloud.save()?;
        Ok(cloud)
    }

    /// The simulator itself, for faults, settings and what it was called for.
    pub fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    /// Where EC2's clients find it.
    pub fn endpoint_url(&self) -> &str {
        self.server.endpoint_url()
    }

    /// The VPC with its subnets and security groups.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The variables with which the AWS CLI and the SDKs use it.
    pub fn environment(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL_EC2", self.endpoint_url()),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", ACCESS_KEY),
        ]
    }

    /// Gives a program this EC2 and nothing of the user's own: no account, no profile, and no
    /// proxy, for all that it needs is on this machine.
    pub fn give_to(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.starts_with("AWS_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command
            .envs(self.environment())
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_EC2_METADATA_DISABLED", "true");
    }

    /// A new client of the SDK. It works in the runtime in which it is made.
    pub fn client(&self) -> Client {
        client(self.endpoint_url())
    }

    /// Runs an instance of the cluster.
    ///
    /// # Errors
    ///
    /// What EC2 says, for one to a type that it does not know.
    pub async fn run_instance(&self, instance_type: &str, zone: &str) -> anyhow::Result<Instance> {
        let zone = self.network.zone(zone)?;
        let started = self
            .client()
            .run_instances()
            .image_id(IMAGE)
            .instance_type(InstanceType::from(instance_type))
            .min_count(1)
            .max_count(1)
            .subnet_id(&zone.subnet_id)
            .security_group_ids(&self.network.groups.nodes)
            .tag_specifications(tags(ResourceType::Instance, "node"))
            .tag_specifications(tags(ResourceType::NetworkInterface, "node"))
            .send()
            .await
            .map_err(aws_sdk_ec2::Error::from)
            .with_context(|| format!("no {instance_type} was started in {}", zone.name))?;
        let instance = started.instances().first().and_then(Instance::read);
        // Before anybody can know of it, so that no node outlives its instance.
        self.save()?;
        instance.context("EC2 does not show the instance that it started")
    }

    /// Terminates an instance; its interfaces go as EC2 lets them go.
    ///
    /// # Errors
    ///
    /// What EC2 says, for one if it does not know the instance.
    pub async fn terminate_instance(&self, id: &str) -> anyhow::Result<()> {
        let call = self.client().terminate_instances().instance_ids(id);
        let ended = call.send().await.map_err(aws_sdk_ec2::Error::from);
        ended.with_context(|| format!("{id} was not terminated"))?;
        self.save()
    }

    /// The cluster's instances, by id, but for terminated ones.
    ///
    /// # Errors
    ///
    /// What EC2 says.
    pub async fn instances(&self) -> anyhow::Result<Vec<Instance>> {
        let living = [InstanceStateName::Pending, InstanceStateName::Running];
        let living = living.map(|state| state.as_str().to_owned());
        let call = self.client().describe_instances().filters(of_cluster());
        let call = call.filters(filter("instance-state-name", living));
        let pages = call.into_paginator().items().send();
        let reservations = pages.collect::<Result<Vec<_>, _>>().await;
        let reservations = reservations.map_err(aws_sdk_ec2::Error::from)?;
        let instances = reservations.iter().flat_map(|it| it.instances());
        let mut instances: Vec<_> = instances.filter_map(Instance::read).collect();
        instances.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(instances)
    }

    /// Counts and lists calls from here on, so that those of a set-up are in nobody's way.
    pub(super) fn forget_own_calls(&self) {
        self.simulator.reset_calls();
    }

    fn save(&self) -> anyhow::Result<()> {
        match &self.state_file {
            Some(file) => file.save(&self.simulator),
            None => Ok(()),
        }
    }
}

impl Instance {
    fn read(instance: &aws_sdk_ec2::types::Instance) -> Option<Self> {
        Some(Self {
            id: instance.instance_id()?.to_owned(),
            instance_type: instance.instance_type()?.as_str().to_owned(),
            zone: instance.placement()?.availability_zone()?.to_owned(),
            private_ip: instance.private_ip_address()?.to_owned(),
            private_dns_name: instance.private_dns_name()?.to_owned(),
        })
    }
}

fn client(endpoint_url: &str) -> Client {
    let credentials = Credentials::new(ACCESS_KEY, ACCESS_KEY, None, None, "sandbox");
    #[expect(
        deprecated,
        reason = "later ones send calls to 127.0.0.1 through the proxy in the environment"
    )]
    let behaviour = BehaviorVersion::v2025_01_17();
    let config = aws_sdk_ec2::Config::builder()
        .behavior_version(behaviour)
        .region(Region::from_static(REGION))
        .credentials_provider(credentials)
        .endpoint_url(endpoint_url);
    Client::from_conf(config.build())
}

/// The tags of everything in EC2 that goes with the cluster.
fn tags(resource: ResourceType, name: &str) -> TagSpecification {
    let tag = |key: String, value: &str| {
        let tag = aws_sdk_ec2::types::Tag::builder();
        tag.key(key).value(value).build()
    };
    TagSpecification::builder()
        .resource_type(resource)
        .tags(tag("Name".to_owned(), &format!("{CLUSTER_NAME}-{name}")))
        .tags(tag(cluster_tag(), OWNED))
        .build()
}

fn cluster_tag() -> String {
    format!("{TAG_CLUSTER_PREFIX}{CLUSTER_NAME}")
}

fn of_cluster() -> Filter {
    filter(&format!("tag:{}", cluster_tag()), [OWNED.to_owned()])
}

fn filter<const N: usize>(name: &str, values: [String; N]) -> Filter {
    let filter = Filter::builder().name(name);
    filter.set_values(Some(values.into())).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn examples_name_the_green_group_of_a_new_cloud() {
        let cloud = SimulatedCloud::start(None).await.unwrap();

        let example = include_str!("../../../examples/1-policy.yaml");
        let green = &cloud.network().groups.green;
        assert!(
            example.contains(&format!("- {green}\n")),
            "write {green} in examples/1-policy.yaml, README.md and the demo"
        );
        assert_eq!(cloud.simulator().call_counts().total, 0);
        assert_eq!(cloud.simulator().contradictions(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn cloud_that_is_loaded_is_the_one_that_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("ec2.json");
        let first = SimulatedCloud::start(Some(state.clone())).await.unwrap();
        let instance = first.run_instance("m5.large", "us-west-2c").await.unwrap();
        let ended = first.run_instance("m5.large", "us-west-2a").await.unwrap();
        first.terminate_instance(&ended.id).await.unwrap();
        let network = first.network().clone();
        drop(first);

        let second = SimulatedCloud::start(Some(state)).await.unwrap();

        assert_eq!(second.network(), &network);
        assert_eq!(second.instances().await.unwrap(), [instance]);
    }

    #[tokio::test]
    async fn file_that_is_no_cloud_is_named_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("ec2.json");
        fs::write(&state, "{}").unwrap();

        let error = SimulatedCloud::start(Some(state)).await.unwrap_err();

        let error = format!("{error:#}");
        assert!(error.contains("ec2.json; remove the file"), "{error}");
    }

    #[tokio::test]
    async fn programs_get_this_ec2_and_nothing_of_the_users() {
        let cloud = SimulatedCloud::start(None).await.unwrap();
        let mut command = Command::new("true");

        cloud.give_to(&mut command);

        let given: Vec<_> = command.get_envs().collect();
        let of = |name: &str| {
            let mut named = given.iter().filter(|(key, _)| *key == name);
            named
                .next()
                .and_then(|(_, value)| value.and_then(|value| value.to_str()))
        };
        assert_eq!(of("AWS_ENDPOINT_URL_EC2"), Some(cloud.endpoint_url()));
        assert_eq!(of("AWS_SHARED_CREDENTIALS_FILE"), Some("/dev/null"));
    }
}
