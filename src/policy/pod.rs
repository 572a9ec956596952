//! The fields of a pod that a decision needs, borrowed from the pod's JSON.
//!
//! Everything else in the JSON is skipped unread, so that reading a pod costs little more
//! than finding its end, however large it is.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::labels::Labels;
use crate::api::names;

/// A pod as a decision sees it.
#[derive(Debug, Default, Deserialize)]
pub struct Pod<'a> {
    /// Names, labels and annotations.
    #[serde(borrow, default)]
    pub metadata: Metadata<'a>,
    /// What the pod runs and where.
    #[serde(borrow, default)]
    pub spec: PodSpec<'a>,
    /// What has become of it.
    #[serde(borrow, default)]
    status: PodStatus<'a>,
}

/// The part of a pod's `metadata` that a decision needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata<'a> {
    /// Empty while the API server has yet to make it from `generateName`.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// The prefix of the name that the API server makes.
    #[serde(borrow)]
    pub generate_name: Option<Text<'a>>,
    /// `None` if the object is missing altogether.
    #[serde(borrow, default)]
    pub labels: Option<LabelPairs<'a>>,
    /// `None` if the object is missing altogether.
    #[serde(borrow)]
    pub annotations: Option<Annotations<'a>>,
}

/// The annotations that a decision needs.
#[derive(Debug, Default, Deserialize)]
pub struct Annotations<'a> {
    /// [`FARGATE_POD_SG`](crate::api::names::FARGATE_POD_SG).
    #[serde(borrow, rename = "fargate.amazonaws.com/pod-sg")]
    pub fargate_groups: Option<Text<'a>>,
    /// [`POD_ENI`](crate::api::names::POD_ENI).
    #[serde(borrow, rename = "vpc.amazonaws.com/pod-eni")]
    pub pod_eni: Option<Text<'a>>,
}

/// The part of a pod's `spec` that a decision needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec<'a> {
    /// Absent or empty stands for `default`.
    #[serde(borrow)]
    service_account_name: Option<Text<'a>>,
    /// Seconds between the pod's deletion and its end; `None` if absent.
    pub termination_grace_period_seconds: Option<i64>,
    host_network: Option<bool>,
    #[serde(borrow)]
    node_selector: Option<NodeSelector<'a>>,
    #[serde(borrow)]
    os: Option<OperatingSystem<'a>>,
    #[serde(borrow)]
    scheduler_name: Option<Text<'a>>,
    #[serde(borrow)]
    node_name: Option<Text<'a>>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
struct PodStatus<'a> {
    #[serde(borrow)]
    phase: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct NodeSelector<'a> {
    #[serde(borrow, rename = "kubernetes.io/os")]
    os: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct OperatingSystem<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct Container {
    resources: Option<Resources>,
}

/// Which parts of a container's `resources` exist.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Resources {
    /// `None` if the object is missing.
    pub limits: Option<Quantities>,
    /// `None` if the object is missing.
    pub requests: Option<Quantities>,
}

impl Resources {
    /// Whether a branch interface is among what the container requests.
    pub fn request_branch_interface(self) -> bool {
        let mut lists = [self.limits, self.requests].into_iter().flatten();
        lists.any(Quantities::have_branch_interface)
    }
}

/// The quantity that a decision needs.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Quantities {
    /// [`POD_ENI`](crate::api::names::POD_ENI).
    #[serde(rename = "vpc.amazonaws.com/pod-eni")]
    pod_eni: Option<Quantity>,
}

impl Quantities {
    fn have_branch_interface(self) -> bool {
        self.pod_eni.is_some_and(|eni| !eni.is_zero)
    }
}

impl Pod<'_> {
    /// Whether the label of Fargate's scheduler is there.
    pub fn is_fargate(&self) -> bool {
        self.labels().get(names::FARGATE_PROFILE).is_some()
    }

    /// The scheduler that is to find a node; empty while the API server has yet to name one.
    pub fn scheduler_name(&self) -> &str {
        self.spec.scheduler_name.as_ref().map_or("", Text::as_str)
    }

    /// Whether a node has been found.
    pub fn is_bound(&self) -> bool {
        let node = self.spec.node_name.as_ref();
        node.is_some_and(|node| !node.as_str().is_empty())
    }

    /// Whether its containers have come to their end.
    pub fn is_finished(&self) -> bool {
        let phase = self.status.phase.as_ref().map_or("", Text::as_str);
        ["Succeeded", "Failed"].contains(&phase)
    }

    /// The pod's labels; none if the object is missing.
    pub fn labels(&self) -> &LabelPairs<'_> {
        const NONE: &LabelPairs<'_> = &LabelPairs(Vec::new());
        self.metadata.labels.as_ref().unwrap_or(NONE)
    }

    /// The name of the pod's ServiceAccount.
    pub fn service_account_name(&self) -> &str {
        match &self.spec.service_account_name {
            Some(name) if !name.as_str().is_empty() => name.as_str(),
            _ => "default",
        }
    }

    /// What its annotation for Fargate says.
    pub fn fargate_groups(&self) -> Option<&Text<'_>> {
        self.metadata.annotations.as_ref()?.fargate_groups.as_ref()
    }

    /// Whether the pod uses its node's network instead of one of its own.
    pub fn uses_host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    /// Whether the pod asks for a Windows node, by `spec.os` or by its node selector.
    pub fn is_windows(&self) -> bool {
        let by_os = self.spec.os.as_ref().and_then(|os| os.name.as_ref());
        let by_selector = self
            .spec
            .node_selector
            .as_ref()
            .and_then(|node| node.os.as_ref());
        let mut names = by_os.into_iter().chain(by_selector);
        names.any(|name| name.as_str() == names::OS_WINDOWS)
    }

    /// Whether the pod gets its branch interface: whether its first container is limited to
    /// some. The VPC CNI plugin looks nowhere else (`AddNetwork` in its
    /// `pkg/ipamd/rpc_handler.go`).
    pub fn requests_branch_interface(&self) -> bool {
        let limits = self.first_container_resources().flatten();
        let limits = limits.and_then(|resources| resources.limits);
        limits.is_some_and(Quantities::have_branch_interface)
    }

    /// Where else than in its first container the pod requests one, of which the scheduler
    /// takes note and the VPC CNI plugin does not: the field of the spec, the container's place
    /// in it, and the list in its `resources`.
    pub fn requests_elsewhere(
        &self,
    ) -> impl Iterator<Item = (&'static str, usize, &'static str)> + '_ {
        let containers = self.spec.containers.iter().flatten().enumerate().skip(1);
        let init_containers = self.spec.init_containers.iter().flatten().enumerate();
        let containers = containers.map(|(place, it)| ("containers", place, it));
        let all =
            containers.chain(init_containers.map(|(place, it)| ("initContainers", place, it)));
        all.flat_map(|(field, place, container)| {
            let resources = container.resources.unwrap_or_default();
            let lists = [
                ("limits", resources.limits),
                ("requests", resources.requests),
            ];
            let requesting = lists.into_iter().filter_map(|(list, quantities)| {
                quantities
                    .filter(|it| it.have_branch_interface())
                    .map(|_| list)
            });
            requesting.map(move |list| (field, place, list))
        })
    }

    /// The `resources` of the first container: `Some(None)` if that container has none,
    /// `None` if there is no container at all.
    pub fn first_container_resources(&self) -> Option<Option<Resources>> {
        let first = self.spec.containers.as_ref()?.first()?;
        Some(first.resources)
    }
}

/// A quantity, of which only matters whether it is none at all: a request for 0 interfaces
/// must not pass for a request.
#[derive(Clone, Copy, Debug)]
struct Quantity {
    is_zero: bool,
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a quantity")
    }

    /// Quantities are a number and a suffix, which may be an exponent (Kubernetes API
    /// reference, "Quantity").
    fn visit_str<E>(self, text: &str) -> Result<Quantity, E> {
        let number = text.split(['e', 'E']).next().unwrap_or(text);
        let is_zero = !number.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
        Ok(Quantity { is_zero })
    }

    fn visit_u64<E>(self, number: u64) -> Result<Quantity, E> {
        let is_zero = number == 0;
        Ok(Quantity { is_zero })
    }

    fn visit_i64<E>(self, number: i64) -> Result<Quantity, E> {
        let is_zero = number == 0;
        Ok(Quantity { is_zero })
    }

    fn visit_f64<E>(self, number: f64) -> Result<Quantity, E> {
        let is_zero = number == 0.0;
        Ok(Quantity { is_zero })
    }
}

/// Text that borrows from the JSON unless it is escaped there.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Labels that borrow from the JSON, sorted by key, as the API server sends them. There can be
/// hundreds of thousands: the API server checks pods only after the mutating webhooks.
#[derive(Debug, Default)]
pub struct LabelPairs<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl Labels for LabelPairs<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self
            .0
            .binary_search_by(|(candidate, _)| candidate.as_ref().cmp(key));
        found.ok().map(|place| self.0[place].1.as_ref())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for LabelPairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LabelVisitor).map(Self)
    }
}

struct LabelVisitor;

impl<'de> Visitor<'de> for LabelVisitor {
    type Value = Vec<(Cow<'de, str>, Cow<'de, str>)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut labels = Vec::with_capacity(8);
        while let Some((key, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
            labels.push((key.0, value.0));
        }
        if !labels.is_sorted_by(|(one, _), (next, _)| one < next) {
            labels.sort_by(|(one, _), (other, _)| one.cmp(other));
            // Of a key that is there twice, the last counts, as for the API server.
            labels.dedup_by(|next, kept| {
                let is_same = next.0 == kept.0;
                if is_same {
                    std::mem::swap(next, kept);
                }
                is_same
            });
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_is_found_whatever_the_order_and_the_last_of_a_key_counts() {
        let json = r#"{"c": "1", "a": "2", "b": "3", "a": "4"}"#;
        let labels: LabelPairs<'_> = serde_json::from_str(json).unwrap();
        let sorted = [("a", "4"), ("b", "3"), ("c", "1")];
        assert_eq!(labels.iter().collect::<Vec<_>>(), sorted);
        for (key, value) in sorted {
            assert_eq!(labels.get(key), Some(value));
        }
        assert_eq!(labels.get("d"), None);
    }

    #[test]
    fn names_in_field_attributes_are_the_contracts() {
        let json = json!({
            "metadata": {
                "labels": {names::FARGATE_PROFILE: "default"},
                "annotations": {names::FARGATE_POD_SG: "sg-0123abcd", names::POD_ENI: "[]"}
            },
            "spec": {
                "nodeSelector": {names::OS_LABEL: names::OS_WINDOWS},
                "containers": [{"resources": {"limits": {names::POD_ENI: "1"}}}]
            }
        })
        .to_string();
        let pod: Pod = serde_json::from_str(&json).unwrap();

        assert!(pod.is_fargate());
        assert!(pod.is_windows());
        assert!(pod.requests_branch_interface());
        let annotations = pod.metadata.annotations.unwrap();
        assert_eq!(annotations.fargate_groups.unwrap().as_str(), "sg-0123abcd");
        assert_eq!(annotations.pod_eni.unwrap().as_str(), "[]");
    }

    #[test]
    fn branch_interface_counts_in_the_limits_of_the_first_container_alone() {
        let eni = json!({names::POD_ENI: "1"});
        let other = json!({"cpu": "1"});
        for (containers, init_containers, requested) in [
            (json!([{}]), json!([]), false),
            (
                json!([{"resources": {"limits": other}}]),
                json!(null),
                false,
            ),
            (json!([{"resources": {"limits": eni}}, {}]), json!([]), true),
            (
                json!([{}, {"resources": {"limits": eni}}]),
                json!([]),
                false,
            ),
            (json!([{"resources": {"requests": eni}}]), json!([]), false),
            (json!([{}]), json!([{"resources": {"limits": eni}}]), false),
            (json!(null), json!(null), false),
        ] {
            let spec = json!({"containers": containers, "initContainers": init_containers});
            let json = json!({ "spec": spec }).to_string();
            let pod: Pod = serde_json::from_str(&json).unwrap();
            assert_eq!(pod.requests_branch_interface(), requested, "{json}");
        }
    }

    #[test]
    fn request_for_no_interface_is_none() {
        for (quantity, requested) in [
            (json!("1"), true),
            (json!("10"), true),
            (json!("1e0"), true),
            (json!(1), true),
            (json!("0"), false),
            (json!("00"), false),
            (json!("0e1"), false),
            (json!("0k"), false),
            (json!(0), false),
            (json!(0.0), false),
            (json!(null), false),
        ] {
            let container = json!({"resources": {"limits": {names::POD_ENI: quantity}}});
            let json = json!({"spec": {"containers": [container]}}).to_string();
            let pod: Pod = serde_json::from_str(&json).unwrap();
            assert_eq!(pod.requests_branch_interface(), requested, "{quantity}");
        }
    }

    #[test]
    fn strings_are_borrowed_and_escapes_are_understood() {
        let json = r#"{"metadata": {"labels": {"plain": "value", "tab\tkey": "caf\u00e9"}}}"#;
        let pod: Pod = serde_json::from_str(json).unwrap();

        let first = &pod.labels().0[0];
        assert!(matches!(
            first,
            (Cow::Borrowed("plain"), Cow::Borrowed("value"))
        ));
        assert_eq!(pod.labels().get("tab\tkey"), Some("café"));
    }

    #[test]
    fn missing_parts_have_the_api_servers_meaning() {
        let pod: Pod = serde_json::from_str(r#"{"spec": {"serviceAccountName": ""}}"#).unwrap();

        assert_eq!(pod.service_account_name(), "default");
        assert!(!pod.uses_host_network());
        assert!(!pod.is_windows());
        assert!(pod.labels().iter().next().is_none());
        assert!(pod.first_container_resources().is_none());
        assert_eq!(pod.scheduler_name(), "");
        assert!(!pod.is_bound());
        assert!(!pod.is_finished());
    }
}
