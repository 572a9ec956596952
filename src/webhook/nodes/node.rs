//! The fields of a node that the guard compares, and who has written which of them.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A node as the guard sees it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Map<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    labels: Option<Map<String, Value>>,
    annotations: Option<Map<String, Value>>,
    managed_fields: Option<Vec<ManagedFields>>,
}

/// What one manager has written of an object, as the API server keeps it (Kubernetes
/// documentation, "Server-Side Apply", "Field management").
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ManagedFields {
    manager: Option<String>,
    operation: Option<String>,
    subresource: Option<String>,
    /// When the manager last took a field, in whole seconds.
    time: Option<Time>,
    #[serde(rename = "fieldsV1")]
    fields: Option<Value>,
}

/// A field that is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Field<'a> {
    Label(&'a str),
    Annotation(&'a str),
    /// A field of `spec`, such as `taints`.
    Spec(&'a str),
}

impl Node {
    pub(super) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The fields in which a node differs from what it was.
    pub(super) fn changes<'a>(&'a self, old: &'a Self) -> Vec<Field<'a>> {
        let differs = |field: &Field<'_>| self.value(*field) != old.value(*field);
        let removed = |field: &Field<'_>| self.value(*field).is_none();
        let present = self.fields().filter(differs);
        present.chain(old.fields().filter(removed)).collect()
    }

    /// Whether the node has the field.
    pub(super) fn has(&self, field: Field<'_>) -> bool {
        self.value(field).is_some()
    }

    /// The fields that are what they were.
    pub(super) fn kept<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = Field<'a>> {
        let is_kept = |field: &Field<'_>| self.value(*field) == old.value(*field);
        self.fields().filter(is_kept)
    }

    /// Who has written what of it.
    pub(super) fn managed_fields(&self) -> &[ManagedFields] {
        self.metadata.managed_fields.as_deref().unwrap_or_default()
    }

    fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        let labels = self.metadata.labels.iter().flat_map(Map::keys);
        let annotations = self.metadata.annotations.iter().flat_map(Map::keys);
        let spec = self.spec.iter().flat_map(Map::keys);
        labels
            .map(|key| Field::Label(key))
            .chain(annotations.map(|key| Field::Annotation(key)))
            .chain(spec.map(|key| Field::Spec(key)))
    }

    fn value(&self, field: Field<'_>) -> Option<&Value> {
        match field {
            Field::Label(key) => self.metadata.labels.as_ref()?.get(key),
            Field::Annotation(key) => self.metadata.annotations.as_ref()?.get(key),
            Field::Spec(key) => self.spec.as_ref()?.get(key),
        }
    }
}

impl ManagedFields {
    /// What the manager has of this field; `None` if nothing.
    pub(super) fn of(&self, field: Field<'_>) -> Option<&Value> {
        let (parents, key): (&[&str], _) = match field {
            Field::Label(key) => (&["f:metadata", "f:labels"], key),
            Field::Annotation(key) => (&["f:metadata", "f:annotations"], key),
            Field::Spec(key) => (&["f:spec"], key),
        };
        let parent = parents
            .iter()
            .try_fold(self.fields.as_ref()?, |fields, name| fields.get(name));
        parent?.get(format!("f:{key}"))
    }

    /// Whether both are of one manager in the same role.
    pub(super) fn is_same_manager(&self, other: &Self) -> bool {
        let identity = |it: &Self| {
            let parts = [&it.manager, &it.operation, &it.subresource];
            parts.map(|part| part.as_deref().unwrap_or_default().to_owned())
        };
        identity(self) == identity(other)
    }

    /// Whether the manager has taken fields since then.
    pub(super) fn is_since(&self, then: Timestamp) -> bool {
        self.time.as_ref().is_some_and(|time| time.0 >= then)
    }

    /// Whether the manager has taken fields at another time than in `other`.
    pub(super) fn is_of_another_time(&self, other: &Self) -> bool {
        self.time != other.time
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(formatter, "label {key}"),
            Self::Annotation(key) => write!(formatter, "annotation {key}"),
            Self::Spec(key) => write!(formatter, "spec.{key}"),
        }
    }
}
