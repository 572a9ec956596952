//! The calls to EC2 over AWS's own SDK.
//!
//! The SDK signs, writes and reads; when a request goes out, and how often, is decided here:
//! every one waits for its turn at the [rate limiter](RateLimiter), and is sent again while
//! there is [no answer](hedging). The SDK's own retries are off, for they would go past both.

mod answers;
mod connection;
mod failures;
mod gate;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::future::Future;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    Filter as SdkFilter, NetworkInterfaceAttachmentChanges, NetworkInterfaceCreationType,
    ResourceType, Tag, TagSpecification,
};
use futures::FutureExt;

use self::connection::Connection;
use self::gate::Gate;
use super::calls::{
    Answer, Association, Ec2, Filter, Instance, Interface, NewAssociation, NewInterface, Priority,
    SecurityGroup, Subnet,
};
use super::error::{Ec2Error, ErrorClass, NO_ANSWER, NO_CREDENTIALS, NO_REGION, NOT_SENT};
use super::hedging;
use super::instance_limits::InstanceLimits;
use super::metrics::Ec2Metrics;
use super::rate_limit::RateLimiter;

/// The largest page of most lists.
const PAGE: i32 = 1_000;

/// The largest page of DescribeTrunkInterfaceAssociations.
const ASSOCIATIONS_PAGE: i32 = 255;

/// How often a page in the middle of a list is asked for.
const PAGE_ATTEMPTS: u32 = 4;

/// The most values of a filter.
const FILTER_VALUES: usize = 200;

/// Instances in one call by id. EC2 sets no number, and answers with all of them, so that
/// this bounds the size of an answer (about 10 kB for each).
const INSTANCES: usize = 500;

/// Changes one attribute at a time.
const MODIFY: &str = "ModifyNetworkInterfaceAttribute";

/// Amazon EC2, in one region with one set of credentials.
///
/// Its futures can be dropped at any time; whether EC2 does what was asked is open then.
#[derive(Debug)]
pub struct AwsEc2 {
    connection: Connection,
    limiter: RateLimiter,
    metrics: Ec2Metrics,
    gate: Gate,
}

impl AwsEc2 {
    /// Finds region, credentials and endpoint as every AWS SDK does: environment (such as
    /// `AWS_ENDPOINT_URL_EC2`), profile, IRSA, EKS Pod Identity, instance metadata.
    ///
    /// Nothing is looked for before the first call. As long as no region is found, calls fail
    /// with [`NO_REGION`], and it is looked for again. Credentials are looked for once a
    /// region is known, and again before they expire.
    pub fn from_environment(metrics: Ec2Metrics) -> Self {
        let source = || async {
            let mut sources = aws_config::defaults(BehaviorVersion::latest());
            if let Ok(name) = AppName::new("sgp") {
                sources = sources.app_name(name);
            }
            sources.load().await
        };
        Self::new(Connection::new(source, Gate::default()), metrics)
    }

    /// An EC2 at this URL that takes any credentials, such as the simulator.
    pub fn with_endpoint(url: &str, region: &str, metrics: Ec2Metrics) -> Self {
        let credentials = Credentials::new("any", "any", None, None, "sgp");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(url)
            .region(Region::new(region.to_owned()))
            .build();
        Self::with_config(config, metrics)
    }

    /// Takes region, credentials and endpoint from there; retries and timeouts are its own.
    pub fn with_config(config: SdkConfig, metrics: Ec2Metrics) -> Self {
        let source = move || std::future::ready(config.clone());
        Self::new(Connection::new(source, Gate::default()), metrics)
    }

    fn new(connection: Connection, metrics: Ec2Metrics) -> Self {
        Self {
            connection,
            limiter: RateLimiter::new(metrics.clone()),
            metrics,
            gate: Gate::default(),
        }
    }

    /// Asks of each call that changes something whether it may be sent: before it is begun,
    /// which spares a connection, and when the connection takes its body, however long that
    /// took.
    #[must_use]
    pub fn only_while(self, may_change: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let gate = Gate::new(may_change);
        Self {
            connection: self.connection.with_gate(gate.clone()),
            gate,
            ..self
        }
    }

    /// The SDK's client for a call, which fails without a region.
    async fn client(&self, call: &'static str) -> Result<&Client, Ec2Error> {
        let client = self.connection.client().await;
        client.map_err(|error| {
            let error = Ec2Error::new(call, NO_REGION, error.to_string());
            self.metrics.begin(call).failed(&error);
            error
        })
    }

    fn may_begin(&self, call: &'static str) -> Result<(), Ec2Error> {
        if call.starts_with("Describe") {
            return Ok(());
        }
        let passed = self.gate.pass();
        passed.map_err(|closed| Ec2Error::new(call, NOT_SENT, closed.to_string()))
    }

    /// Makes one call: one request, or several alike while there is no answer.
    async fn call<T, E, F>(
        &self,
        call: &'static str,
        priority: Priority,
        send: impl Fn() -> F,
    ) -> Result<T, Ec2Error>
    where
        E: Error + ProvideErrorMetadata + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let turn = || self.limiter.turn(priority);
        let send = || async {
            self.may_begin(call)?;
            let request = self.metrics.begin(call);
            let answer = send().await;
            let answer = answer.map_err(|error| failures::failure(call, error));
            match &answer {
                Err(error) if error.class == ErrorClass::Throttled => self.limiter.throttled(),
                Err(error) if !error.is_conclusive() || error.code == NO_CREDENTIALS => {}
                Err(error) if error.code == NOT_SENT => {}
                _ => self.limiter.served(),
            }
            request.end(&answer);
            answer
        };
        hedging::ask(call, turn, send).await
    }

    /// Gathers a list from all of its pages. `send` asks for the page of a token, `read` takes
    /// the page and the next one's token out of an answer.
    ///
    /// A page in the middle that EC2 can't give now is asked for again: a list of a hundred
    /// pages would hardly come to its end otherwise.
    async fn pages<T, O, E, F>(
        &self,
        call: &'static str,
        priority: Priority,
        send: impl Fn(Option<String>) -> F,
        read: impl Fn(O) -> (Option<Vec<T>>, Option<String>),
    ) -> Result<Vec<T>, Ec2Error>
    where
        E: Error + ProvideErrorMetadata + 'static,
        F: Future<Output = Result<O, SdkError<E, HttpResponse>>>,
    {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        let mut failures = 0;
        loop {
            match self.call(call, priority, || send(token.clone())).await {
                Ok(answer) => {
                    let (items, next) = read(answer);
                    all.extend(items.unwrap_or_default());
                    token = next.filter(|token| !token.is_empty());
                    failures = 0;
                }
                Err(error) if token.is_some() && !error.is_conclusive() => {
                    failures += 1;
                    if failures == PAGE_ATTEMPTS {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            if token.is_none() {
                return Ok(all);
            }
        }
    }

    /// As many of these instances as EC2 knows, in few calls when that is all of them.
    ///
    /// A filter would leave out the unknown ones by itself, but takes 200 ids only.
    async fn known_instances(
        &self,
        ids: BTreeSet<String>,
        priority: Priority,
    ) -> Result<Vec<Instance>, Ec2Error> {
        const CALL: &str = "DescribeInstances";
        let client = self.client(CALL).await?;
        let ids = Vec::from_iter(ids);
        let mut chunks: Vec<Vec<String>> = ids.chunks(INSTANCES).map(<[_]>::to_vec).collect();
        let mut known = Vec::new();
        while let Some(chunk) = chunks.pop() {
            let request = client
                .describe_instances()
                .set_instance_ids(Some(chunk.clone()));
            match self.call(CALL, priority, || request.clone().send()).await {
                Ok(answer) => {
                    let reservations = answer.reservations.unwrap_or_default().into_iter();
                    let instances = reservations.flat_map(|one| one.instances.unwrap_or_default());
                    known.extend(instances.filter_map(answers::instance));
                }
                Err(error) if is_of_unknown_instances(&error) => {
                    chunks.extend(without_unknown(chunk, &error.message));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }
}

fn is_of_unknown_instances(error: &Ec2Error) -> bool {
    let codes = ["InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"];
    codes.contains(&error.code.as_str())
}

/// What is left to ask for when EC2 does not know all of `ids`: all but those that its
/// message names, or, as EC2 need not name any, both halves.
fn without_unknown(mut ids: Vec<String>, message: &str) -> Vec<Vec<String>> {
    let part_of_id = |character: char| character.is_ascii_alphanumeric() || character == '-';
    let named: HashSet<&str> = message.split(|one| !part_of_id(one)).collect();
    let before = ids.len();
    ids.retain(|id| !named.contains(id.as_str()));
    if ids.is_empty() || before == 1 {
        Vec::new()
    } else if ids.len() < before {
        vec![ids]
    } else {
        let rest = ids.split_off(before / 2);
        vec![ids, rest]
    }
}

/// The only thing that EC2 was asked to make. Its answer always names it.
fn made<T>(call: &'static str, made: Option<T>) -> Result<T, Ec2Error> {
    made.ok_or_else(|| Ec2Error::new(call, NO_ANSWER, "the answer does not say what was made"))
}

fn sdk_tags(tags: BTreeMap<String, String>) -> Vec<Tag> {
    let tags = tags.into_iter();
    let tags = tags.map(|(key, value)| Tag::builder().key(key).value(value).build());
    tags.collect()
}

fn sdk_filters(filters: Vec<Filter>) -> Vec<SdkFilter> {
    let filter = |filter: Filter| {
        SdkFilter::builder()
            .name(filter.name)
            .set_values(Some(filter.values))
            .build()
    };
    filters.into_iter().map(filter).collect()
}

/// Filters by id, each as big as a filter may be. None for no ids: no filter selects all.
fn id_filters(name: &str, ids: Vec<String>) -> Vec<SdkFilter> {
    let ids = Vec::from_iter(BTreeSet::from_iter(ids));
    let filter = |values: &[String]| {
        SdkFilter::builder()
            .name(name)
            .set_values(Some(values.to_vec()))
            .build()
    };
    ids.chunks(FILTER_VALUES).map(filter).collect()
}

impl Ec2 for AwsEc2 {
    fn interfaces(&self, filters: Vec<Filter>, priority: Priority) -> Answer<'_, Vec<Interface>> {
        const CALL: &str = "DescribeNetworkInterfaces";
        async move {
            let request = self.client(CALL).await?.describe_network_interfaces();
            let request = request
                .set_filters(Some(sdk_filters(filters)))
                .max_results(PAGE);
            let interfaces = self.pages(
                CALL,
                priority,
                |token| request.clone().set_next_token(token).send(),
                |answer| (answer.network_interfaces, answer.next_token),
            );
            let interfaces = interfaces.await?.into_iter();
            Ok(interfaces.filter_map(answers::interface).collect())
        }
        .boxed()
    }

    fn instances(&self, ids: Vec<String>, priority: Priority) -> Answer<'_, Vec<Instance>> {
        self.known_instances(BTreeSet::from_iter(ids), priority)
            .boxed()
    }

    fn subnets(&self, ids: Vec<String>) -> Answer<'_, Vec<Subnet>> {
        const CALL: &str = "DescribeSubnets";
        async move {
            let client = self.client(CALL).await?;
            let mut subnets = Vec::new();
            for filter in id_filters("subnet-id", ids) {
                let request = client.describe_subnets();
                let request = request.filters(filter).max_results(PAGE);
                let found = self.pages(
                    CALL,
                    Priority::Allocation,
                    |token| request.clone().set_next_token(token).send(),
                    |answer| (answer.subnets, answer.next_token),
                );
                let found = found.await?.into_iter();
                subnets.extend(found.filter_map(answers::subnet));
            }
            Ok(subnets)
        }
        .boxed()
    }

    fn security_groups(&self, ids: Vec<String>) -> Answer<'_, Vec<SecurityGroup>> {
        const CALL: &str = "DescribeSecurityGroups";
        async move {
            let client = self.client(CALL).await?;
            let mut groups = Vec::new();
            for filter in id_filters("group-id", ids) {
                let request = client.describe_security_groups();
                let request = request.filters(filter).max_results(PAGE);
                let found = self.pages(
                    CALL,
                    Priority::Allocation,
                    |token| request.clone().set_next_token(token).send(),
                    |answer| (answer.security_groups, answer.next_token),
                );
                let found = found.await?.into_iter();
                groups.extend(found.filter_map(answers::security_group));
            }
            Ok(groups)
        }
        .boxed()
    }

    fn instance_limits(&self, instance_type: String) -> Answer<'_, Option<InstanceLimits>> {
        const CALL: &str = "DescribeInstanceTypes";
        // By filter, not by name: a type that EC2 does not know is no error then.
        let filter = Filter::new("instance-type", instance_type);
        async move {
            let request = self.client(CALL).await?.describe_instance_types();
            let request = request.set_filters(Some(sdk_filters(vec![filter])));
            let types = self.pages(
                CALL,
                Priority::Allocation,
                |token| request.clone().set_next_token(token).send(),
                |answer| (answer.instance_types, answer.next_token),
            );
            let mut types = types.await?.into_iter();
            Ok(types.find_map(answers::instance_limits))
        }
        .boxed()
    }

    fn associations(&self) -> Answer<'_, Vec<Association>> {
        const CALL: &str = "DescribeTrunkInterfaceAssociations";
        async move {
            let client = self.client(CALL).await?;
            let request = client
                .describe_trunk_interface_associations()
                .max_results(ASSOCIATIONS_PAGE);
            let associations = self.pages(
                CALL,
                Priority::Audit,
                |token| request.clone().set_next_token(token).send(),
                |answer| (answer.interface_associations, answer.next_token),
            );
            let associations = associations.await?.into_iter();
            Ok(associations.filter_map(answers::association).collect())
        }
        .boxed()
    }

    fn create_interface(&self, interface: NewInterface) -> Answer<'_, Interface> {
        const CALL: &str = "CreateNetworkInterface";
        let tags = sdk_tags(interface.tags);
        // EC2 takes no specification without a tag.
        let tags = (!tags.is_empty()).then(|| {
            TagSpecification::builder()
                .resource_type(ResourceType::NetworkInterface)
                .set_tags(Some(tags))
                .build()
        });
        let interface_type = interface
            .trunk
            .then_some(NetworkInterfaceCreationType::Trunk);
        async move {
            let client = self.client(CALL).await?;
            let request = client
                .create_network_interface()
                .set_interface_type(interface_type)
                .subnet_id(interface.subnet_id)
                .set_groups(Some(interface.group_ids))
                .description(interface.description)
                .set_tag_specifications(tags.map(|tags| vec![tags]))
                .set_ipv6_address_count(interface.ipv6.then_some(1))
                .client_token(interface.client_token);
            let send = || request.clone().send();
            let answer = self.call(CALL, Priority::Allocation, send).await?;
            let interface = answer.network_interface.and_then(answers::interface);
            made(CALL, interface)
        }
        .boxed()
    }

    fn attach(
        &self,
        interface_id: String,
        instance_id: String,
        device_index: i32,
    ) -> Answer<'_, String> {
        const CALL: &str = "AttachNetworkInterface";
        async move {
            let client = self.client(CALL).await?;
            let request = client
                .attach_network_interface()
                .network_interface_id(interface_id)
                .instance_id(instance_id)
                .device_index(device_index);
            let send = || request.clone().send();
            let answer = self.call(CALL, Priority::Allocation, send).await?;
            made(CALL, answer.attachment_id)
        }
        .boxed()
    }

    fn delete_on_termination(&self, interface_id: String, attachment_id: String) -> Answer<'_, ()> {
        let change = NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(attachment_id)
            .delete_on_termination(true)
            .build();
        async move {
            let client = self.client(MODIFY).await?;
            let request = client
                .modify_network_interface_attribute()
                .network_interface_id(interface_id)
                .attachment(change);
            let send = || request.clone().send();
            self.call(MODIFY, Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn set_groups(&self, interface_id: String, group_ids: Vec<String>) -> Answer<'_, ()> {
        async move {
            let client = self.client(MODIFY).await?;
            let request = client
                .modify_network_interface_attribute()
                .network_interface_id(interface_id)
                .set_groups(Some(group_ids));
            let send = || request.clone().send();
            self.call(MODIFY, Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn associate(&self, association: NewAssociation) -> Answer<'_, String> {
        const CALL: &str = "AssociateTrunkInterface";
        async move {
            let client = self.client(CALL).await?;
            let request = client
                .associate_trunk_interface()
                .trunk_interface_id(association.trunk_id)
                .branch_interface_id(association.branch_id)
                .vlan_id(association.vlan.into())
                .client_token(association.client_token);
            let send = || request.clone().send();
            let answer = self.call(CALL, Priority::Allocation, send).await?;
            let association = answer.interface_association;
            made(CALL, association.and_then(|made| made.association_id))
        }
        .boxed()
    }

    fn disassociate(&self, association_id: String) -> Answer<'_, ()> {
        const CALL: &str = "DisassociateTrunkInterface";
        async move {
            // An association ends once, so its id tells a repeated call from another one.
            let client = self.client(CALL).await?;
            let request = client
                .disassociate_trunk_interface()
                .client_token(&association_id)
                .association_id(association_id);
            let send = || request.clone().send();
            self.call(CALL, Priority::Deletion, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn detach(&self, attachment_id: String) -> Answer<'_, ()> {
        const CALL: &str = "DetachNetworkInterface";
        async move {
            let request = self.client(CALL).await?.detach_network_interface();
            let request = request.attachment_id(attachment_id);
            let send = || request.clone().send();
            self.call(CALL, Priority::Deletion, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn tag_interface(
        &self,
        interface_id: String,
        tags: BTreeMap<String, String>,
    ) -> Answer<'_, ()> {
        const CALL: &str = "CreateTags";
        async move {
            let request = self.client(CALL).await?.create_tags();
            let request = request
                .resources(interface_id)
                .set_tags(Some(sdk_tags(tags)));
            let send = || request.clone().send();
            self.call(CALL, Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn delete_interface(&self, interface_id: String) -> Answer<'_, ()> {
        const CALL: &str = "DeleteNetworkInterface";
        async move {
            let request = self.client(CALL).await?.delete_network_interface();
            let request = request.network_interface_id(interface_id);
            let send = || request.clone().send();
            self.call(CALL, Priority::Deletion, send).await?;
            Ok(())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn instances_that_ec2_names_as_unknown_are_left_out() {
        let message = "The instance IDs 'i-1a2b3c4d5e6f70811, i-2' do not exist";
        let asked = ids(&["i-1a2b3c4d", "i-1a2b3c4d5e6f70811", "i-2", "i-3"]);
        let left = without_unknown(asked, message);
        assert_eq!(left, [ids(&["i-1a2b3c4d", "i-3"])]);
        assert!(without_unknown(ids(&["i-2"]), message).is_empty());
    }

    #[test]
    fn unknown_instances_that_ec2_does_not_name_are_searched_by_halves() {
        let message = "One of the instances does not exist";
        let left = without_unknown(ids(&["i-1", "i-2", "i-3"]), message);
        assert_eq!(left, [ids(&["i-1"]), ids(&["i-2", "i-3"])]);
        assert!(without_unknown(ids(&["i-1"]), message).is_empty());
    }

    #[tokio::test]
    async fn call_without_a_region_fails_with_the_ways_to_give_one_and_is_counted() {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Ec2Metrics::register(&mut registry);
        let ec2 = AwsEc2::with_config(SdkConfig::builder().build(), metrics);
        let detached = ec2.detach("eni-attach-1".to_owned()).await;
        let error = detached.unwrap_err();
        assert_eq!((error.class, &*error.code), (ErrorClass::Retry, NO_REGION));
        assert!(error.had_no_effect, "{error}");
        assert!(error.message.contains("AWS_REGION"), "{error}");

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = "ec2_requests_total{action=\"DetachNetworkInterface\",outcome=\"retry\"} 1";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn documented_policy_allows_what_is_called_and_nothing_else() {
        let verbs = [
            "Associate",
            "Attach",
            "Create",
            "Delete",
            "Describe",
            "Detach",
            "Disassociate",
            "Modify",
        ];
        let (code, _) = include_str!("mod.rs").split_once("#[cfg(test)]").unwrap();
        let texts = code.split('"').skip(1).step_by(2);
        let is_call = |text: &&str| {
            verbs
                .iter()
                .any(|verb| text.starts_with(verb) && text != verb)
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let called: BTreeSet<_> = texts.filter(is_call).collect();

        let page = include_str!("../../../docs/allocator.md");
        let (_, policy) = page.split_once("```json\n{\n  \"Version\"").unwrap();
        let (policy, _) = policy.split_once("```").unwrap();
        let policy = format!("{{\"Version\"{policy}");
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap().iter();
        let actions = statements.flat_map(|statement| match &statement["Action"] {
            serde_json::Value::Array(actions) => actions.iter().collect(),
            action => vec![action],
        });
        let actions = actions.map(|action| action.as_str().unwrap());
        let allowed: BTreeSet<_> = actions
            .map(|action| action.strip_prefix("ec2:").unwrap())
            .collect();
        assert_eq!(allowed, called);
    }
}
