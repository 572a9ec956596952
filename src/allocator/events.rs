//! Events on pods, nodes and namespaces: what the allocator does, where people look for it.
//!
//! Equal events are those of one object with equal type, reason and action. They share one
//! object in the API, which keeps the note of the first and counts how often it was written.
//! It is written at the first event, so that people see it at once, and then at most once in
//! [`REPEAT_AFTER`]: the count says how many times the trouble was reported, not how many
//! times it was met. After six minutes without an equal event a new object begins.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use kube::{Client, Error};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::request_error::{RequestError, in_time};

/// An equal event that comes sooner is not written.
pub const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// Who reports: `reportingController` in the API, `From` in `kubectl describe`.
const CONTROLLER: &str = "sgp";
/// Events that wait to be written. A cluster's worth of pods that start at once fits in.
const QUEUE_LENGTH: usize = 8192;
/// How long the API server may take for one event.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often at most a trouble with events is logged.
const LOG_AFTER: Duration = Duration::from_secs(60);
/// Bytes, fixed by the API's validation of `events.k8s.io/v1`.
const LONGEST_NOTE: usize = 1024;
/// Bytes, as above.
const LONGEST_ACTION: usize = 128;

/// What an event is about. The names are fixed, because people and tools select by them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// A pod asks for a branch interface, and these are its groups.
    SecurityGroupRequested,
    /// A pod has its branch interface.
    ResourceAllocated,
    /// A pod's branch interface could not be made.
    BranchAllocationFailed,
    /// A pod's branch interface is made, but could not be written to the pod.
    BranchEniAnnotationFailed,
    /// The groups of an interface in use have been replaced.
    SecurityGroupsChanged,
    /// A node has its trunk interface and takes pods with security groups.
    NodeTrunkInitiated,
    /// A node could not be made ready for pods with security groups.
    NodeTrunkFailedInitialization,
    /// A node's trunk interface could not be made or attached.
    TrunkEniCreationFailed,
    /// A node's instance type takes no trunk interface.
    UnsupportedInstanceType,
    /// The time that branch interfaces rest has changed.
    BranchEniCoolDownPeriodUpdated,
    /// A namespace holds a policy, so that its pods start only while a webhook answers.
    NamespaceEnforced,
    /// A namespace holds none any more, so that its pods start whatever becomes of webhooks.
    NamespaceUnenforced,
}

impl Reason {
    /// As it stands in the event.
    pub fn name(self) -> &'static str {
        match self {
            Self::SecurityGroupRequested => "SecurityGroupRequested",
            Self::ResourceAllocated => "ResourceAllocated",
            Self::BranchAllocationFailed => "BranchAllocationFailed",
            Self::BranchEniAnnotationFailed => "BranchENIAnnotationFailed",
            Self::SecurityGroupsChanged => "SecurityGroupsChanged",
            Self::NodeTrunkInitiated => "NodeTrunkInitiated",
            Self::NodeTrunkFailedInitialization => "NodeTrunkFailedInitialization",
            Self::TrunkEniCreationFailed => "TrunkENICreationFailed",
            Self::UnsupportedInstanceType => "UnsupportedInstanceType",
            Self::BranchEniCoolDownPeriodUpdated => "BranchENICoolDownPeriodUpdated",
            Self::NamespaceEnforced => "NamespaceEnforced",
            Self::NamespaceUnenforced => "NamespaceUnenforced",
        }
    }

    /// Whether people should look at it, unless an event says otherwise of itself.
    fn is_warning(self) -> bool {
        match self {
            Self::SecurityGroupRequested
            | Self::ResourceAllocated
            | Self::SecurityGroupsChanged
            | Self::NodeTrunkInitiated
            | Self::BranchEniCoolDownPeriodUpdated
            | Self::NamespaceEnforced
            | Self::NamespaceUnenforced => false,
            Self::BranchAllocationFailed
            | Self::BranchEniAnnotationFailed
            | Self::NodeTrunkFailedInitialization
            | Self::TrunkEniCreationFailed
            | Self::UnsupportedInstanceType => true,
        }
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Regarding {
    /// The event goes into the pod's namespace.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The pod's `metadata.uid`.
        uid: String,
    },
    /// The event goes into the namespace `default`.
    Node {
        /// The node's name.
        name: String,
        /// The node's `metadata.uid`. `kubectl describe node` shows events with it, and those
        /// of the kubelet, which writes the name in its place.
        uid: String,
    },
    /// The event goes into the namespace itself, where those who use it look.
    Namespace {
        /// The namespace's name.
        name: String,
        /// The namespace's `metadata.uid`.
        uid: String,
    },
}

impl Regarding {
    fn reference(&self) -> ObjectReference {
        let (kind, namespace, name, uid) = match self {
            Self::Pod {
                namespace,
                name,
                uid,
            } => ("Pod", Some(namespace), name, uid),
            Self::Node { name, uid } => ("Node", None, name, uid),
            Self::Namespace { name, uid } => ("Namespace", Some(name), name, uid),
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.cloned(),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Something to be told about a pod, a node or a namespace.
#[derive(Clone, Debug)]
pub struct Event {
    key: Key,
    note: String,
}

/// What makes events equal.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    regarding: Regarding,
    reason: Reason,
    is_warning: bool,
    action: String,
}

impl Event {
    /// `action` is what was done, and for a failure the cause, for example
    /// `CreateNetworkInterface:InsufficientFreeAddressesInSubnet`: another cause is another
    /// event, another note is not. People read `note`: what happened, with ids, and what
    /// to do. It is cut at 1,024 bytes, `action` at 128.
    pub fn new(
        regarding: Regarding,
        reason: Reason,
        action: impl Into<String>,
        note: impl Into<String>,
    ) -> Self {
        let key = Key {
            regarding,
            reason,
            is_warning: reason.is_warning(),
            action: shortened(action.into(), LONGEST_ACTION),
        };
        let note = shortened(note.into(), LONGEST_NOTE);
        Self { key, note }
    }

    /// The same as a warning, where its reason usually is none.
    pub fn into_warning(mut self) -> Self {
        self.key.is_warning = true;
        self
    }

    fn for_recorder(&self) -> events::Event {
        events::Event {
            type_: if self.key.is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: self.key.reason.name().to_owned(),
            note: Some(self.note.clone()),
            action: self.key.action.clone(),
            secondary: None,
        }
    }
}

/// Cut to at most `longest` bytes, with an ellipsis where something is missing.
fn shortened(mut text: String, longest: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
    text
}

/// Takes events from anywhere and never keeps anyone waiting.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: mpsc::Sender<Event>,
    dropped: Counter,
}

impl EventSink {
    /// Queues the event. It is dropped and counted when the queue is full, because the API
    /// server is slower than the events for long, or when nobody writes any more.
    pub fn publish(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.dropped.inc();
        }
    }
}

/// Writes the events of all sinks to the API server.
pub struct EventWriter {
    client: Client,
    reporter: Reporter,
    queue: mpsc::Receiver<Event>,
    dropped: Counter,
}

/// A sink and what writes its events. `instance` is who writes them, usually the pod's name;
/// `dropped` counts events that found the queue full.
pub fn channel(client: Client, instance: &str, dropped: Counter) -> (EventSink, EventWriter) {
    let (sender, queue) = mpsc::channel(QUEUE_LENGTH);
    let sink = EventSink {
        queue: sender,
        dropped: dropped.clone(),
    };
    let reporter = Reporter {
        controller: CONTROLLER.to_owned(),
        instance: Some(shortened(instance.to_owned(), LONGEST_ACTION)),
    };
    let writer = EventWriter {
        client,
        reporter,
        queue,
        dropped,
    };
    (sink, writer)
}

impl EventWriter {
    /// Writes until the last sink is gone and its events are written. Failures are logged,
    /// and their events are lost.
    pub async fn run(mut self) {
        let mut recorder = self.new_recorder();
        let mut repeats = Repeats::default();
        let mut failure_log = Occasionally::default();
        let mut drop_log = Occasionally::default();
        let mut dropped_before = self.dropped.get();
        while let Some(event) = self.queue.recv().await {
            let dropped = self.dropped.get();
            if dropped > dropped_before && drop_log.is_due(Instant::now()) {
                let count = dropped - dropped_before;
                warn!("{count} events were not written, because too many came at once");
                dropped_before = dropped;
            }
            if !repeats.is_due(&event.key, Instant::now()) {
                continue;
            }
            let written = match write(&recorder, &event).await {
                // Someone has deleted the event that is to be counted on.
                Err(RequestError::Failed(error)) if is_missing_event(&error) => {
                    recorder = self.new_recorder();
                    write(&recorder, &event).await
                }
                written => written,
            };
            let Err(failure) = written else { continue };
            let Key {
                regarding, reason, ..
            } = &event.key;
            if failure_log.is_due(Instant::now()) {
                warn!(?regarding, ?reason, "cannot write an event: {failure}");
            } else {
                debug!(?regarding, ?reason, "cannot write an event: {failure}");
            }
        }
    }

    fn new_recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.reporter.clone())
    }
}

async fn write(recorder: &Recorder, event: &Event) -> Result<(), RequestError> {
    let (content, regarding) = (event.for_recorder(), event.key.regarding.reference());
    in_time(TIMEOUT, recorder.publish(&content, &regarding)).await
}

fn is_missing_event(error: &Error) -> bool {
    let Error::Api(status) = error else {
        return false;
    };
    let kind = status.details.as_ref().map(|details| details.kind.as_str());
    status.code == 404 && kind == Some("events")
}

/// Which events were written of late.
#[derive(Debug, Default)]
struct Repeats {
    due: HashMap<Key, Instant>,
    next_cleaning: Option<Instant>,
}

impl Repeats {
    /// Whether the event is to be written; then it is not for a while.
    fn is_due(&mut self, key: &Key, now: Instant) -> bool {
        if self.next_cleaning.is_none_or(|cleaning| cleaning <= now) {
            self.due.retain(|_, due| now < *due);
            self.next_cleaning = Some(now + REPEAT_AFTER);
        }
        if self.due.get(key).is_some_and(|due| now < *due) {
            return false;
        }
        self.due.insert(key.clone(), now + REPEAT_AFTER);
        true
    }
}

/// Lets something happen at most once in [`LOG_AFTER`].
#[derive(Debug, Default)]
struct Occasionally {
    due: Option<Instant>,
}

impl Occasionally {
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_none_or(|due| due <= now);
        if is_due {
            self.due = Some(now + LOG_AFTER);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Regarding {
        Regarding::Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid of {name}"),
        }
    }

    fn failure(name: &str, cause: &str, note: &str) -> Event {
        Event::new(pod(name), Reason::BranchAllocationFailed, cause, note)
    }

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, longest, cut) in [
            ("short", 5, "short"),
            ("longer", 5, "lo…"),
            ("éé", 4, "éé"),
            ("ééé", 5, "é…"),
            ("ééé", 4, "…"),
            ("", 5, ""),
        ] {
            let result = shortened(text.to_owned(), longest);
            assert_eq!(result, cut);
            assert!(result.len() <= longest);
        }
        let event = failure("green", &"c".repeat(2000), &"ü".repeat(2000));
        assert_eq!(event.note.len(), 1023);
        assert_eq!(event.key.action.len(), 128);
    }

    #[test]
    fn an_equal_event_is_written_once_in_a_while() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut repeats = Repeats::default();
        let mut written = |event: Event, now| repeats.is_due(&event.key, now);

        assert!(written(failure("green", "A", "1"), start));
        assert!(!written(failure("green", "A", "1"), start));
        assert!(!written(failure("green", "A", "another note"), after(1)));
        assert!(written(failure("green", "another cause", "1"), after(1)));
        assert!(written(failure("red", "A", "1"), after(1)));
        assert!(written(
            failure("blue", "A", "1").into_warning(),
            after(4998)
        ));
        assert!(!written(failure("green", "A", "1"), after(4999)));
        assert!(written(failure("green", "A", "1"), after(5000)));
        let blue = failure("blue", "A", "1").into_warning();
        assert!(!written(blue, after(9997)), "also after a cleaning");
        assert!(!written(failure("green", "A", "1"), after(9999)));
        assert!(written(failure("green", "A", "1"), after(10_000)));
    }

    #[test]
    fn old_events_are_forgotten() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for number in 0..100 {
            let event = failure(&number.to_string(), "A", "");
            repeats.is_due(&event.key, start);
        }

        repeats.is_due(&failure("new", "A", "").key, start + REPEAT_AFTER);

        assert_eq!(repeats.due.len(), 1);
    }

    #[test]
    fn a_full_queue_keeps_nobody_waiting() {
        let (queue, mut waiting) = mpsc::channel(2);
        let dropped = Counter::default();
        let sink = EventSink {
            queue,
            dropped: dropped.clone(),
        };

        for note in ["1", "2", "3", "4"] {
            sink.publish(failure("green", "A", note));
        }

        assert_eq!(dropped.get(), 2);
        assert_eq!(waiting.try_recv().unwrap().note, "1");
        assert_eq!(waiting.try_recv().unwrap().note, "2");
        assert!(waiting.try_recv().is_err());
    }
}
