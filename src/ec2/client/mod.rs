//! The calls to EC2 over AWS's own SDK.
//!
//! The SDK signs, writes and reads; when a request goes out, and how often, is decided here:
//! every one waits for its turn at the [rate limiter](RateLimiter), and is sent again while
//! there is [no answer](hedging). The SDK's own retries are off, for they would go past both.

mod answers;
mod failures;
mod gate;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{
    Config, Credentials, IdentityCache, SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    Filter as SdkFilter, NetworkInterfaceAttachmentChanges, NetworkInterfaceCreationType,
    ResourceType, Tag, TagSpecification,
};
use futures::FutureExt;

use self::gate::Gate;
use super::calls::{
    Answer, Association, Ec2, Filter, Instance, Interface, NewAssociation, NewInterface, Priority,
    SecurityGroup, Subnet,
};
use super::error::{Ec2Error, ErrorClass, NO_ANSWER, NO_CREDENTIALS, NOT_SENT};
use super::hedging;
use super::instance_limits::InstanceLimits;
use super::metrics::Ec2Metrics;
use super::rate_limit::RateLimiter;

/// A connection within a region is there in milliseconds, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Finding credentials takes an answer of STS, of the Pod Identity agent or of the instance's
/// metadata. Shorter than a call's whole time, so that its failure tells of the credentials.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(8);

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
    client: Client,
    limiter: RateLimiter,
    metrics: Ec2Metrics,
    gate: Gate,
}

/// No source of configuration names an AWS region.
#[derive(Debug, thiserror::Error)]
#[error(
    "no AWS region is known; set AWS_REGION, or `region` in the profile of AWS_CONFIG_FILE \
     that AWS_PROFILE names, or let the instance metadata service answer (from inside of a \
     pod it needs a hop limit of 2)"
)]
pub struct NoRegion;

impl AwsEc2 {
    /// Finds region, credentials and endpoint as every AWS SDK does: environment (such as
    /// `AWS_ENDPOINT_URL_EC2`), profile, IRSA, EKS Pod Identity, instance metadata.
    ///
    /// Credentials are looked for with the first call, and again before they expire.
    ///
    /// # Errors
    ///
    /// When no region is found.
    pub async fn connect(metrics: Ec2Metrics) -> Result<Self, NoRegion> {
        let mut sources = aws_config::defaults(BehaviorVersion::latest());
        if let Ok(name) = AppName::new("sgp") {
            sources = sources.app_name(name);
        }
        Self::with_config(&sources.load().await, metrics)
    }

    /// An EC2 at this URL that takes any credentials, such as the simulator.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn with_endpoint(url: &str, region: &str, metrics: Ec2Metrics) -> Self {
        let credentials = Credentials::new("any", "any", None, None, "sgp");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(url)
            .region(Region::new(region.to_owned()))
            .build();
        Self::with_config(&config, metrics).expect("the region is given")
    }

    /// Takes region, credentials and endpoint from there; retries and timeouts are its own.
    ///
    /// # Errors
    ///
    /// When there is no region.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn with_config(config: &SdkConfig, metrics: Ec2Metrics) -> Result<Self, NoRegion> {
        if config.region().is_none() {
            return Err(NoRegion);
        }
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT);
        let identities = IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT);
        let config: Config = aws_sdk_ec2::config::Builder::from(config)
            .identity_cache(identities.build())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts.build())
            .build();
        Ok(Self {
            client: Client::from_conf(config),
            limiter: RateLimiter::new(metrics.clone()),
            metrics,
            gate: Gate::new(|| true),
        })
    }

    /// Asks of each call that changes something whether it may be sent: before it is begun,
    /// which spares a connection, and when the connection takes its body, however long that
    /// took.
    #[must_use]
    pub fn only_while(mut self, may_change: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.gate = Gate::new(may_change);
        let config = self.client.config().to_builder();
        self.client = Client::from_conf(config.interceptor(self.gate.clone()).build());
        self
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
        let ids = Vec::from_iter(ids);
        let mut chunks: Vec<Vec<String>> = ids.chunks(INSTANCES).map(<[_]>::to_vec).collect();
        let mut known = Vec::new();
        while let Some(chunk) = chunks.pop() {
            let request = self
                .client
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
        let request = self
            .client
            .describe_network_interfaces()
            .set_filters(Some(sdk_filters(filters)))
            .max_results(PAGE);
        async move {
            let interfaces = self.pages(
                "DescribeNetworkInterfaces",
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
        async move {
            let mut subnets = Vec::new();
            for filter in id_filters("subnet-id", ids) {
                let request = self.client.describe_subnets();
                let request = request.filters(filter).max_results(PAGE);
                let found = self.pages(
                    "DescribeSubnets",
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
        async move {
            let mut groups = Vec::new();
            for filter in id_filters("group-id", ids) {
                let request = self.client.describe_security_groups();
                let request = request.filters(filter).max_results(PAGE);
                let found = self.pages(
                    "DescribeSecurityGroups",
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
        // By filter, not by name: a type that EC2 does not know is no error then.
        let filter = Filter::new("instance-type", instance_type);
        let request = self
            .client
            .describe_instance_types()
            .set_filters(Some(sdk_filters(vec![filter])));
        async move {
            let types = self.pages(
                "DescribeInstanceTypes",
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
        let request = self
            .client
            .describe_trunk_interface_associations()
            .max_results(ASSOCIATIONS_PAGE);
        async move {
            let associations = self.pages(
                "DescribeTrunkInterfaceAssociations",
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
        let request = self
            .client
            .create_network_interface()
            .set_interface_type(
                interface
                    .trunk
                    .then_some(NetworkInterfaceCreationType::Trunk),
            )
            .subnet_id(interface.subnet_id)
            .set_groups(Some(interface.group_ids))
            .description(interface.description)
            .set_tag_specifications(tags.map(|tags| vec![tags]))
            .set_ipv6_address_count(interface.ipv6.then_some(1))
            .client_token(interface.client_token);
        async move {
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
        let request = self
            .client
            .attach_network_interface()
            .network_interface_id(interface_id)
            .instance_id(instance_id)
            .device_index(device_index);
        async move {
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
        let request = self
            .client
            .modify_network_interface_attribute()
            .network_interface_id(interface_id)
            .attachment(change);
        async move {
            let send = || request.clone().send();
            self.call(MODIFY, Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn set_groups(&self, interface_id: String, group_ids: Vec<String>) -> Answer<'_, ()> {
        let request = self
            .client
            .modify_network_interface_attribute()
            .network_interface_id(interface_id)
            .set_groups(Some(group_ids));
        async move {
            let send = || request.clone().send();
            self.call(MODIFY, Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn associate(&self, association: NewAssociation) -> Answer<'_, String> {
        const CALL: &str = "AssociateTrunkInterface";
        let request = self
            .client
            .associate_trunk_interface()
            .trunk_interface_id(association.trunk_id)
            .branch_interface_id(association.branch_id)
            .vlan_id(association.vlan.into())
            .client_token(association.client_token);
        async move {
            let send = || request.clone().send();
            let answer = self.call(CALL, Priority::Allocation, send).await?;
            let association = answer.interface_association;
            made(CALL, association.and_then(|made| made.association_id))
        }
        .boxed()
    }

    fn disassociate(&self, association_id: String) -> Answer<'_, ()> {
        // An association ends once, so its id tells a repeated call from another one.
        let request = self
            .client
            .disassociate_trunk_interface()
            .client_token(&association_id)
            .association_id(association_id);
        async move {
            let send = || request.clone().send();
            self.call("DisassociateTrunkInterface", Priority::Deletion, send)
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn detach(&self, attachment_id: String) -> Answer<'_, ()> {
        let request = self.client.detach_network_interface();
        let request = request.attachment_id(attachment_id);
        async move {
            let send = || request.clone().send();
            self.call("DetachNetworkInterface", Priority::Deletion, send)
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn tag_interface(
        &self,
        interface_id: String,
        tags: BTreeMap<String, String>,
    ) -> Answer<'_, ()> {
        let request = self.client.create_tags().resources(interface_id);
        let request = request.set_tags(Some(sdk_tags(tags)));
        async move {
            let send = || request.clone().send();
            self.call("CreateTags", Priority::Allocation, send).await?;
            Ok(())
        }
        .boxed()
    }

    fn delete_interface(&self, interface_id: String) -> Answer<'_, ()> {
        let request = self.client.delete_network_interface();
        let request = request.network_interface_id(interface_id);
        async move {
            let send = || request.clone().send();
            self.call("DeleteNetworkInterface", Priority::Deletion, send)
                .await?;
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
    async fn missing_region_is_told_with_the_ways_to_give_one() {
        let config = SdkConfig::builder().build();
        let error = AwsEc2::with_config(&config, Ec2Metrics::default()).unwrap_err();
        assert!(error.to_string().contains("AWS_REGION"), "{error}");
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
