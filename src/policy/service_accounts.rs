//! The labels of every service account, fed by a watch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The labels of one service account; shared, so that a decision can hold them while the
/// index moves on.
pub type ServiceAccountLabels = Arc<BTreeMap<String, String>>;

/// The labels of the service accounts of all namespaces.
#[derive(Debug, Default)]
pub struct ServiceAccountIndex {
    namespaces: HashMap<Box<str>, HashMap<Box<str>, ServiceAccountLabels>>,
    /// Most service accounts have no labels and share these.
    none: ServiceAccountLabels,
}

impl ServiceAccountIndex {
    /// The labels of a service account; `None` if it has not been seen, which does not say
    /// that it does not exist.
    pub fn labels(&self, namespace: &str, name: &str) -> Option<ServiceAccountLabels> {
        self.namespaces.get(namespace)?.get(name).cloned()
    }

    /// Puts a new or changed service account in place.
    pub fn apply(&mut self, namespace: &str, name: &str, labels: BTreeMap<String, String>) {
        let labels = if labels.is_empty() {
            self.none.clone()
        } else {
            Arc::new(labels)
        };
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

    #[test]
    fn account_without_labels_differs_from_one_never_seen() {
        let mut index = ServiceAccountIndex::default();
        index.apply("shop", "default", BTreeMap::new());

        assert!(
            index
                .labels("shop", "default")
                .is_some_and(|labels| labels.is_empty())
        );
        assert_eq!(index.labels("shop", "other"), None);
        assert_eq!(index.labels("bank", "default"), None);

        index.delete("shop", "default");
        assert_eq!(index.labels("shop", "default"), None);
    }
}
