//! Events are written to a real API server and read with kubectl.

#[path = "support/shared_control_plane.rs"]
mod shared_control_plane;
#[path = "support/waiting.rs"]
mod waiting;

use std::process::Output;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event as StoredEvent;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use sgp::allocator::events::{Event, EventSink, Reason, Regarding, channel};
use shared_control_plane::CONTROL_PLANE;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use waiting::eventually;

#[test]
fn an_event_of_a_pod_shows_in_kubectl_describe() {
    let writer = Writer::start();
    let pod = writer.create_pod("described");

    writer.sink().publish(failure(&pod, "no addresses left"));

    let line = eventually("the event", || described("pod", "described"));
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[..2], ["Warning", "BranchAllocationFailed"], "{line}");
    assert!(line.contains(" sgp "), "{line}");
    assert!(line.ends_with("no addresses left"), "{line}");
}

#[test]
fn an_event_of_a_node_shows_in_kubectl_describe() {
    let writer = Writer::start();
    let node = writer.create_node("described-node");

    writer.sink().publish(Event::new(
        node,
        Reason::NodeTrunkInitiated,
        "AttachNetworkInterface",
        "trunk eni-1 is attached",
    ));

    let line = eventually("the event", || described("node", "described-node"));
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[..2], ["Normal", "NodeTrunkInitiated"], "{line}");
    assert!(line.contains(" sgp "), "{line}");
    assert!(line.ends_with("trunk eni-1 is attached"), "{line}");
}

#[test]
fn repeats_are_counted_in_one_event() {
    let writer = Writer::start();
    let pod = writer.create_pod("repeating");

    let counted = eventually("a count", || {
        writer.sink().publish(failure(&pod, "no addresses left"));
        let events = writer.events_of("repeating");
        assert!(events.len() <= 1, "{events:#?}");
        events.into_iter().find(|event| event.series.is_some())
    });

    let series = counted.series.unwrap();
    assert_eq!(series.count, 2);
    let apart = series
        .last_observed_time
        .0
        .duration_since(counted.event_time.unwrap().0);
    assert!(apart.as_secs() >= 4, "{apart:?}");
    let line = described("pod", "repeating").unwrap();
    assert!(line.contains("(x2 over "), "{line}");
}

#[test]
fn a_burst_of_equal_events_is_one_event() {
    let writer = Writer::start();
    let pod = writer.create_pod("bursting");

    for _ in 0..1000 {
        writer.sink().publish(failure(&pod, "no addresses left"));
    }
    let writer = writer.finish();

    let events = writer.events_of("bursting");
    assert_eq!(events.len(), 1, "{events:#?}");
}

#[test]
fn another_cause_is_another_event() {
    let writer = Writer::start();
    let pod = writer.create_pod("unlucky");

    for cause in ["CreateNetworkInterface:A", "CreateNetworkInterface:B"] {
        let event = Event::new(pod.clone(), Reason::BranchAllocationFailed, cause, cause);
        writer.sink().publish(event);
    }
    let writer = writer.finish();

    let mut notes: Vec<_> = writer.events_of("unlucky").into_iter().collect();
    notes.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
    let notes: Vec<_> = notes.iter().map(|event| event.note.as_deref()).collect();
    assert_eq!(
        notes,
        [
            Some("CreateNetworkInterface:A"),
            Some("CreateNetworkInterface:B")
        ]
    );
}

#[test]
fn what_was_published_before_the_end_is_written() {
    let writer = Writer::start();
    let pod = writer.create_pod("farewell");

    for number in 0..20 {
        let action = format!("action {number}");
        let event = Event::new(pod.clone(), Reason::ResourceAllocated, action, "");
        writer.sink().publish(event);
    }
    let writer = writer.finish();

    assert_eq!(writer.events_of("farewell").len(), 20);
}

#[test]
fn the_longest_texts_are_accepted() {
    let writer = Writer::start();
    let pod = writer.create_pod("talkative");

    let (action, note) = ("a".repeat(5000), "ü".repeat(5000));
    let event = Event::new(pod, Reason::BranchEniAnnotationFailed, action, note);
    writer.sink().publish(event);
    let writer = writer.finish();

    let events = writer.events_of("talkative");
    let [event] = &events[..] else {
        panic!("{events:#?}")
    };
    assert!(event.note.as_ref().unwrap().ends_with("üü…"));
    assert_eq!(event.reason.as_deref(), Some("BranchENIAnnotationFailed"));
    assert_eq!(event.reporting_controller.as_deref(), Some("sgp"));
    assert_eq!(event.reporting_instance.as_deref(), Some("allocator-0"));
}

#[test]
fn a_deleted_event_begins_anew() {
    let writer = Writer::start();
    let pod = writer.create_pod("forgotten");
    writer.sink().publish(failure(&pod, "no addresses left"));
    let first = eventually("the event", || writer.events_of("forgotten").pop());

    let events: Api<StoredEvent> = writer.api();
    writer
        .runtime
        .block_on(events.delete(&first.name_any(), &DeleteParams::default()))
        .unwrap();

    let second = eventually("another event", || {
        writer.sink().publish(failure(&pod, "no addresses left"));
        writer.events_of("forgotten").pop()
    });
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert_eq!(second.note.as_deref(), Some("no addresses left"));
}

#[test]
fn an_api_server_that_is_away_keeps_nobody_waiting() {
    let mut config = CONTROL_PLANE.client_config().clone();
    let nobody = sgp::dev::control_plane::free_port().unwrap();
    config.cluster_url = format!("https://127.0.0.1:{nobody}").parse().unwrap();
    let writer = Writer::with(&config);
    let pod = Regarding::Pod {
        namespace: "default".to_owned(),
        name: "unheard".to_owned(),
        uid: "1".to_owned(),
    };

    // Twice the queue's length: nothing here waits, and what is too much is dropped.
    for number in 0..20_000 {
        let action = format!("action {number}");
        let event = Event::new(pod.clone(), Reason::BranchAllocationFailed, action, "");
        writer.sink().publish(event);
    }

    assert!(writer.dropped.get() > 0);
    assert!(!writer.task.as_ref().unwrap().is_finished());
}

fn failure(pod: &Regarding, note: &str) -> Event {
    let action = "CreateNetworkInterface:InsufficientFreeAddressesInSubnet";
    Event::new(pod.clone(), Reason::BranchAllocationFailed, action, note)
}

/// The line of `kubectl describe` with our event, if it is there.
fn described(kind: &str, name: &str) -> Option<String> {
    let Output { status, stdout, .. } = CONTROL_PLANE
        .kubectl()
        .args(["describe", kind, name])
        .output()
        .unwrap();
    assert!(status.success());
    let text = String::from_utf8(stdout).unwrap();
    let mut events = text.lines().skip_while(|line| !line.starts_with("Events:"));
    let ours = events.find(|line| line.split_whitespace().any(|word| word == "sgp"));
    ours.map(|line| line.trim().to_owned())
}

/// A writer that runs.
struct Writer {
    sink: Option<EventSink>,
    dropped: Counter,
    task: Option<JoinHandle<()>>,
    client: Client,
    runtime: Runtime,
}

impl Writer {
    fn start() -> Self {
        Self::with(CONTROL_PLANE.client_config())
    }

    fn with(config: &kube::Config) -> Self {
        let runtime = Runtime::new().unwrap();
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config.clone()).unwrap()
        };
        let dropped = Counter::default();
        let (sink, writer) = channel(client.clone(), "allocator-0", dropped.clone());
        Self {
            sink: Some(sink),
            dropped,
            task: Some(runtime.spawn(writer.run())),
            client,
            runtime,
        }
    }

    fn sink(&self) -> &EventSink {
        self.sink.as_ref().expect("it has not finished")
    }

    /// Drops the sink and waits until the writer has ended.
    fn finish(mut self) -> Self {
        self.sink = None;
        let task = self.task.take().expect("it has not finished");
        let patience = Duration::from_secs(60);
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, task).await });
        ended.expect("it ends by itself").unwrap();
        self
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    fn create_pod(&self, name: &str) -> Regarding {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "main", "image": "main"}]}
        }))
        .unwrap();
        let pods: Api<Pod> = self.api();
        let pod = self
            .runtime
            .block_on(pods.create(&PostParams::default(), &pod))
            .unwrap();
        Regarding::Pod {
            namespace: pod.namespace().unwrap(),
            name: pod.name_any(),
            uid: pod.uid().unwrap(),
        }
    }

    fn create_node(&self, name: &str) -> Regarding {
        let node: Node = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}
        }))
        .unwrap();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = self
            .runtime
            .block_on(nodes.create(&PostParams::default(), &node))
            .unwrap();
        Regarding::Node {
            name: node.name_any(),
            uid: node.uid().unwrap(),
        }
    }

    /// The events of the pod of this name.
    fn events_of(&self, name: &str) -> Vec<StoredEvent> {
        let events: Api<StoredEvent> = self.api();
        let all = self.runtime.block_on(events.list(&ListParams::default()));
        let concerns = |event: &StoredEvent| {
            let regarding = event.regarding.as_ref();
            regarding.and_then(|it| it.name.as_deref()) == Some(name)
        };
        all.unwrap().items.into_iter().filter(concerns).collect()
    }
}
