//! The labels of every service account, fed by a watch.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use super::labels::Labels;

/// The labels of one service account; shared, so that a decision can hold them while the
/// index moves on.
///
/// As one text, `key=value` sorted by key and joined by `,`, neither of which a key or a value
/// can hold: a cluster has many service accounts, most are never asked about, and maps of
/// strings would take several times the memory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccountLabels(Arc<str>);

impl Default for ServiceAccountLabels {
    /// No labels.
    fn default() -> Self {
        static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
        Self(NONE.clone())
    }
}

impl ServiceAccountLabels {
    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl From<&BTreeMap<String, String>> for ServiceAccountLabels {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        if labels.is_empty() {
            return Self::default();
        }
        let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
        Self(pairs.collect::<Vec<_>>().join(",").into())
    }
}

impl Labels for ServiceAccountLabels {
    fn get(&self, key: &str) -> Option<&str> {
        // By halves: a megabyte of labels is valid.
        let mut rest = &*self.0;
        while !rest.is_empty() {
            let start = rest.as_bytes()[..rest.len() / 2]
                .iter()
                .rposition(|byte| *byte == b',')
                .map_or(0, |comma| comma + 1);
            let pair = rest[start..].split(',').next()?;
            let (candidate, value) = pair.split_once('=')?;
            rest = match key.cmp(candidate) {
                Ordering::Equal => return Some(value),
                Ordering::Less => &rest[..start.saturating_sub(1)],
                Ordering::Greater => rest.get(start + pair.len() + 1..).unwrap_or_default(),
            };
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split(',').filter_map(|pair| pair.split_once('='))
    }
}

/// The labels of the service accounts of all namespaces.
#[derive(Debug, Default)]
pub struct ServiceAccountIndex {
    namespaces: HashMap<Box<str>, HashMap<Box<str>, ServiceAccountLabels>>,
}

impl ServiceAccountIndex {
    /// The labels of a service account; `None` if it has not been seen, which does not say
    /// that it does not exist.
    pub fn labels(&self, namespace: &str, name: &str) -> Option<ServiceAccountLabels> {
        self.namespaces.get(namespace)?.get(name).cloned()
    }

    /// Puts a new or changed service account in place.
    pub fn apply(&mut self, namespace: &str, name: &str, labels: ServiceAccountLabels) {
        let accounts = self.namespaces.entry(namespace.into()).or_default();
        accounts.insert(name.into(), labels);
    }

    /// Forgets a service account.
    pub fn delete(&mut self, namespace: &str, name: &str) {
        if let Some(accounts) = self.namespaces.get_mut(namespace) {
            accounts.remove(name);
            if accounts.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn account_without_labels_differs_from_one_never_seen() {
        let mut index = ServiceAccountIndex::default();
        index.apply("shop", "default", ServiceAccountLabels::default());

        assert!(
            index
                .labels("shop", "default")
                .is_some_and(|labels| labels.iter().next().is_none())
        );
        assert_eq!(index.labels("shop", "other"), None);
        assert_eq!(index.labels("bank", "default"), None);

        index.delete("shop", "default");
        assert_eq!(index.labels("shop", "default"), None);
    }

    #[test]
    fn labels_are_the_same_through_their_compact_form() {
        let labels = [("app", "db"), ("example.com/bare", ""), ("tier", "1")];
        let map = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let compact = ServiceAccountLabels::from(&BTreeMap::from(map));

        assert_eq!(compact.iter().collect::<Vec<_>>(), labels);
        assert_eq!(compact.get("tier"), Some("1"));
        assert_eq!(compact.get("example.com/bare"), Some(""));
        assert_eq!(compact.get("ti"), None);
        assert_eq!(ServiceAccountLabels::default().iter().count(), 0);
    }

    proptest! {
        #[test]
        fn label_is_found_exactly_if_it_is_there(
            map in prop::collection::btree_map("[a-c./-]{1,3}", "[a-c]{0,2}", 0..9),
            key in "[a-c./-]{0,3}",
        ) {
            let compact = ServiceAccountLabels::from(&map);
            prop_assert_eq!(compact.get(&key), map.get(&key).map(String::as_str));
            for (key, value) in &map {
                prop_assert_eq!(compact.get(key), Some(value.as_str()));
            }
        }
    }
}
