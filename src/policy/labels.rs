//! The labels of one object, as selectors and the index read them.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Labels of one object.
///
/// Pods come borrowed from their JSON and service accounts from a watch, so a selector
/// reads both through this trait.
pub trait Labels {
    /// The value of the label `key`, or `None` if the object does not carry it.
    fn get(&self, key: &str) -> Option<&str>;

    /// Every label as key and value, each key once.
    fn iter(&self) -> impl Iterator<Item = (&str, &str)>;
}

impl Labels for BTreeMap<String, String> {
    fn get(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl Labels for [(Cow<'_, str>, Cow<'_, str>)] {
    fn get(&self, key: &str) -> Option<&str> {
        let label = self.iter().find(|(candidate, _)| candidate == key);
        label.map(|(_, value)| value.as_ref())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter()
            .map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}
