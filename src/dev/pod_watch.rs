//! What a watch shows of pods: when they are bound, when their annotation comes, how they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::names::POD_ENI;

/// A watch of pods. Ends when dropped.
#[derive(Debug)]
pub struct PodWatch {
    seen: Arc<Mutex<BTreeMap<String, SeenPod>>>,
    changes: watch::Receiver<()>,
    /// Whose task ends with it.
    _watching: JoinSet<()>,
}

/// What has been seen of a pod. Instants are those at which the watch told.
#[derive(Clone, Debug, Default)]
pub struct SeenPod {
    /// Its name.
    pub name: String,
    /// Since when it has a node.
    pub bound_at: Option<Instant>,
    /// Since when it has the annotation that names its interface.
    pub annotated_at: Option<Instant>,
    /// The first annotation that was seen.
    pub annotation: Option<String>,
    /// Whether the annotation changed or went after it was seen first.
    pub rewritten: bool,
    /// Its phase.
    pub phase: String,
    /// Since when it is gone.
    pub gone_at: Option<Instant>,
}

impl SeenPod {
    /// Whether its phase is final.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// How long it had a node and no annotation; `None` if it lacks one or the other.
    pub fn waited(&self) -> Option<Duration> {
        Some(self.annotated_at?.saturating_duration_since(self.bound_at?))
    }

    fn show(&mut self, pod: &Pod, now: Instant) {
        self.name = pod.name_any();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        if node.is_some_and(|name| !name.is_empty()) {
            self.bound_at.get_or_insert(now);
        }
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        self.phase = phase.unwrap_or_default().to_owned();
        let annotation = pod.annotations().get(POD_ENI);
        match &self.annotation {
            None => {
                self.annotation = annotation.cloned();
                self.annotated_at = annotation.map(|_| now);
            }
            before => self.rewritten |= before.as_ref() != annotation,
        }
    }
}

impl PodWatch {
    /// Starts to watch, in the runtime in which it is called.
    pub fn start(api: Api<Pod>) -> Self {
        let seen = Arc::new(Mutex::default());
        let (changed, changes) = watch::channel(());
        let mut watching = JoinSet::new();
        watching.spawn(follow(api, Arc::clone(&seen), changed));
        Self {
            seen,
            changes,
            _watching: watching,
        }
    }

    /// Waits until `condition` of all pods that were seen, by their UIDs, gives something.
    pub async fn until<T>(
        &self,
        mut condition: impl FnMut(&BTreeMap<String, SeenPod>) -> Option<T>,
    ) -> T {
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            if let Some(met) = condition(&self.seen()) {
                return met;
            }
            if changes.changed().await.is_err() {
                // A watch tries again for ever, so only the end of the runtime ends it.
                std::future::pending().await
            }
        }
    }

    /// All pods that were seen, by their UIDs.
    pub fn seen(&self) -> MutexGuard<'_, BTreeMap<String, SeenPod>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(
    api: Api<Pod>,
    seen: Arc<Mutex<BTreeMap<String, SeenPod>>>,
    changed: watch::Sender<()>,
) {
    let events = watcher(api, watcher::Config::default());
    let mut events = events.default_backoff().boxed();
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        let now = Instant::now();
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let mut show = |pod: &Pod| {
                let uid = pod.uid().unwrap_or_default();
                seen.entry(uid.clone()).or_default().show(pod, now);
                uid
            };
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.insert(show(&pod));
                }
                Ok(Event::InitDone) => {
                    let missing = seen.iter_mut().filter(|(uid, _)| !listed.contains(*uid));
                    missing.for_each(|(_, pod)| _ = pod.gone_at.get_or_insert(now));
                }
                Ok(Event::Apply(pod)) => {
                    show(&pod);
                }
                Ok(Event::Delete(pod)) => {
                    let uid = show(&pod);
                    seen.entry(uid).or_default().gone_at.get_or_insert(now);
                }
                Err(error) => tracing::debug!(%error, "the watch of pods begins again"),
            }
        }
        changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(node: Option<&str>, annotation: Option<&str>) -> Pod {
        let annotations = annotation.map(|annotation| json!({POD_ENI: annotation}));
        serde_json::from_value(json!({
            "metadata": {"name": "a", "annotations": annotations},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Pending"}
        }))
        .unwrap()
    }

    #[test]
    fn pod_waits_from_its_node_to_its_annotation() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut seen = SeenPod::default();
        for (pod, second) in [
            (pod(None, None), 0),
            (pod(Some("node"), None), 1),
            (pod(Some("node"), None), 2),
            (pod(Some("node"), Some("[]")), 4),
            (pod(Some("node"), Some("[]")), 9),
        ] {
            seen.show(&pod, at(second));
        }
        assert_eq!(seen.waited(), Some(Duration::from_secs(3)));
        assert!(!seen.rewritten);
    }

    #[test]
    fn annotation_that_changes_or_goes_is_noticed() {
        let now = Instant::now();
        for later in [Some("[1]"), None] {
            let mut seen = SeenPod::default();
            seen.show(&pod(Some("node"), Some("[]")), now);
            seen.show(&pod(Some("node"), later), now);
            assert!(seen.rewritten, "{later:?}");
        }
    }
}
