//! Calls to the simulated EC2, written as arguments of the AWS CLI and answered as it would.
//!
//! The AWS CLI itself need not be there: the calls go over the SDK, to the same endpoint.

use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{Filter, NetworkInterface};
use aws_sdk_ec2::{Client, Error};
use tokio::runtime::Handle;

use super::{Known, Outcome};
use crate::dev::cloud::SimulatedCloud;

/// What is known from the start, by these names.
pub(super) const NAMES: [&str; 3] = ["vpc", "database", "new-group"];

/// The security group that a walkthrough makes; a later one on the same data needs another
/// name, with a number.
const NEW_GROUP: &str = "analytics";

/// A call.
pub(super) enum Call {
    /// Interfaces that pass all filters, each of a name and a value.
    DescribeInterfaces(&'static [(&'static str, &'static str)], Shown),
    /// A new security group with this description.
    CreateGroup(&'static str),
}

/// What is shown of interfaces.
pub(super) enum Shown {
    /// A line for each.
    Lines,
    /// How many there are.
    Count,
}

impl Shown {
    /// A JMESPath expression for `--query`.
    fn query(&self) -> &'static str {
        match self {
            Self::Lines => {
                "NetworkInterfaces[].\
                 [NetworkInterfaceId,PrivateIpAddress,Description,join(' ',Groups[].GroupId)]"
            }
            Self::Count => "length(NetworkInterfaces)",
        }
    }

    fn of(&self, interfaces: &[NetworkInterface]) -> String {
        match self {
            Self::Lines => interfaces.iter().map(line).collect(),
            Self::Count => interfaces.len().to_string(),
        }
    }
}

fn line(interface: &NetworkInterface) -> String {
    let groups = interface.groups().iter().filter_map(|it| it.group_id());
    let groups: Vec<_> = groups.collect();
    let columns = [
        interface.network_interface_id().unwrap_or_default(),
        interface.private_ip_address().unwrap_or_default(),
        interface.description().unwrap_or_default(),
        &groups.join(" "),
    ];
    columns.join("\t") + "\n"
}

impl Call {
    /// The arguments of `aws` for it.
    pub(super) fn arguments(&self, known: &Known) -> Vec<String> {
        let mut arguments = vec!["ec2".to_owned()];
        match self {
            Self::DescribeInterfaces(filters, shown) => {
                arguments.extend(["describe-network-interfaces", "--filters"].map(str::to_owned));
                arguments.extend(filters.iter().map(|(name, value)| {
                    let value = known.fill_in(value);
                    format!("Name={name},Values={value}")
                }));
                arguments.extend(["--query", shown.query()].map(str::to_owned));
            }
            Self::CreateGroup(description) => {
                arguments.push("create-security-group".to_owned());
                let values = [
                    ("--group-name", "{new-group}"),
                    ("--description", description),
                    ("--vpc-id", "{vpc}"),
                    ("--query", "GroupId"),
                ];
                arguments.extend(
                    values
                        .into_iter()
                        .flat_map(|(flag, value)| [flag.to_owned(), known.fill_in(value)]),
                );
            }
        }
        arguments.extend(["--output", "text"].map(str::to_owned));
        arguments
    }

    #[cfg(test)]
    pub(super) fn only_reads(&self) -> bool {
        matches!(self, Self::DescribeInterfaces(..))
    }
}

/// The way to a simulated EC2.
#[derive(Clone, Debug)]
pub struct Aws {
    client: Client,
    runtime: Handle,
    vpc_id: String,
    database: String,
}

impl Aws {
    /// To this EC2, for a thread that may block.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn new(cloud: &SimulatedCloud) -> Self {
        let network = cloud.network();
        Self {
            client: cloud.client(),
            runtime: Handle::current(),
            vpc_id: network.vpc_id.clone(),
            database: network.groups.database.clone(),
        }
    }

    /// What steps can name from the start.
    pub(super) fn known(&self) -> Known {
        let values = [
            self.vpc_id.clone(),
            self.database.clone(),
            self.runtime.block_on(self.free_name()),
        ];
        Known(NAMES.into_iter().zip(values).collect())
    }

    /// A name that no security group has. A failure shows when the name is used.
    async fn free_name(&self) -> String {
        let groups = self.client.describe_security_groups();
        let named = groups.filters(filter("group-name", &format!("{NEW_GROUP}*")));
        match named
            .send()
            .await
            .map(|answer| answer.security_groups().len())
        {
            Ok(0) | Err(_) => NEW_GROUP.to_owned(),
            Ok(number) => format!("{NEW_GROUP}-{}", number + 1),
        }
    }

    /// Makes a call and gives what the AWS CLI would print.
    pub(super) fn carry_out(&self, call: &Call, known: &Known) -> Outcome {
        let answer = match call {
            Call::DescribeInterfaces(filters, shown) => {
                let filters = filters.iter();
                let filters = filters.map(|(name, value)| filter(name, &known.fill_in(value)));
                let request = self.client.describe_network_interfaces();
                let request = request.set_filters(Some(filters.collect()));
                let pages = request.into_paginator().items().send();
                let interfaces = self.runtime.block_on(pages.collect::<Result<Vec<_>, _>>());
                let shown = interfaces.map(|interfaces| shown.of(&interfaces));
                shown.map_err(|error| told(error.into(), "DescribeNetworkInterfaces"))
            }
            Call::CreateGroup(description) => {
                let request = self.client.create_security_group();
                let request = request
                    .group_name(known.fill_in("{new-group}"))
                    .description(*description)
                    .vpc_id(&self.vpc_id);
                let created = self.runtime.block_on(request.send());
                let id = created.map(|created| created.group_id().unwrap_or_default().to_owned());
                id.map_err(|error| told(error.into(), "CreateSecurityGroup"))
            }
        };
        Outcome {
            success: answer.is_ok(),
            text: answer.unwrap_or_else(|told| told),
        }
    }
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// An error in the words of the AWS CLI.
fn told(error: Error, operation: &str) -> String {
    let (code, message) = (error.code(), error.message());
    format!(
        "An error occurred ({}) when calling the {operation} operation: {}",
        code.unwrap_or("Unknown"),
        message.unwrap_or("EC2 gave no answer")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls are made from a thread that may block, as the walkthrough makes them.
    async fn in_new_cloud<T: Send + 'static>(act: impl FnOnce(&Aws) -> T + Send + 'static) -> T {
        let cloud = SimulatedCloud::start(None).await.unwrap();
        let aws = Aws::new(&cloud);
        let done = tokio::task::spawn_blocking(move || act(&aws)).await;
        drop(cloud);
        done.unwrap()
    }

    #[tokio::test]
    async fn groups_are_made_one_a_walkthrough() {
        in_new_cloud(|aws| {
            let create = Call::CreateGroup("For a test");
            let first = aws.carry_out(&create, &aws.known());
            assert!(
                first.success && first.text.starts_with("sg-"),
                "{}",
                first.text
            );

            let known = aws.known();
            assert!(create.arguments(&known).contains(&"analytics-2".to_owned()));
            let second = aws.carry_out(&create, &known);
            assert!(
                second.success && second.text != first.text,
                "{}",
                second.text
            );

            let third = aws.carry_out(&create, &known);
            assert!(!third.success);
            assert!(
                third.text.starts_with(
                    "An error occurred (InvalidGroup.Duplicate) when calling the \
                     CreateSecurityGroup operation: "
                ),
                "{}",
                third.text
            );
        })
        .await;
    }

    #[tokio::test]
    async fn interfaces_are_counted_and_shown_line_by_line() {
        in_new_cloud(|aws| {
            let subnet = aws.client.describe_subnets();
            let subnet = aws.runtime.block_on(subnet.send()).unwrap();
            let subnet = subnet.subnets()[0].subnet_id().unwrap();
            let create = aws.client.create_network_interface().subnet_id(subnet);
            let create = create.groups(&aws.database).description("mine").send();
            let created = aws.runtime.block_on(create).unwrap();
            let interface = created.network_interface().unwrap();

            let known = aws.known();
            let filters = &[("group-id", "{database}")];
            let count = aws.carry_out(&Call::DescribeInterfaces(filters, Shown::Count), &known);
            assert_eq!(count.text, "1");
            let lines = aws.carry_out(&Call::DescribeInterfaces(filters, Shown::Lines), &known);
            let expected = [
                interface.network_interface_id().unwrap(),
                interface.private_ip_address().unwrap(),
                "mine",
                &aws.database,
            ];
            assert_eq!(lines.text, expected.join("\t") + "\n");
        })
        .await;
    }
}
