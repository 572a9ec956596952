//! EC2 fails for a while: pods wait, are told why, and are served soon after.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use sgp::dev::nodes::NodeGroup;
use sgp::ec2::simulator::{FaultOutcome, Settings};

use crate::burst::{error, lasting};
use crate::stage::{Scene, Setting, Stage};

const PODS: usize = 20;
/// From the end of a fault to the last pod's annotation.
const RECOVERY: Duration = Duration::from_secs(5);

/// Something that goes wrong until it is put right.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Fault(&'static str, Failing),
    /// The role may do everything but make interfaces.
    Permission,
}

#[derive(Clone, Copy, Debug)]
enum Failing {
    With(&'static str),
    Dropped,
    Hung,
}

impl Trouble {
    fn begin(self, stage: &Stage) {
        match self {
            Self::Fault(action, failing) => {
                let outcome = match failing {
                    Failing::With(code) => error(code),
                    Failing::Dropped => FaultOutcome::Drop,
                    Failing::Hung => FaultOutcome::Hang,
                };
                stage
                    .simulator()
                    .add_fault(lasting(action, outcome))
                    .unwrap();
            }
            Self::Permission => stage.set(|settings| {
                let allowed = ["DescribeNetworkInterfaces", "DescribeInstances"];
                let allowed = allowed.map(str::to_owned);
                settings.allowed_actions = Some(allowed.into());
            }),
        }
    }

    /// Whether every pod meets it soon. In silence calls wait for an answer at first, and when
    /// EC2 takes fewer calls some wait for their turn.
    fn shows_at_once(self) -> bool {
        let Self::Fault(_, failing) = self else {
            return true;
        };
        !matches!(
            failing,
            Failing::Hung | Failing::With("RequestLimitExceeded")
        )
    }

    fn end(stage: &Stage) {
        stage.simulator().clear_faults();
        stage.simulator().set(Settings::default()).unwrap();
    }
}

fn durations() -> Vec<Duration> {
    let is_long = std::env::var_os("SGP_LONG_FAULTS").is_some_and(|value| value == "1");
    let seconds: &[u64] = if is_long { &[180] } else { &[3, 30] };
    let seconds = seconds.iter().copied();
    seconds.map(Duration::from_secs).collect()
}

/// Pods wait through one trouble after another, short and long. `words` are what they are
/// told; of a trouble that does not show at once, only when it lasts.
async fn pods_come_through(troubles: &[Trouble], words: &[&str]) {
    let stage = Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.4xlarge", 4)],
        // No pod gets what another has left.
        cooldown: Some(600),
        ..Setting::with_long_lease()
    })
    .await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let mut gone = 0;
    for (index, trouble) in troubles.iter().enumerate() {
        for duration in durations() {
            let prefix = format!("pod-{index}-{}", duration.as_secs());
            trouble.begin(&stage);
            let begin = Instant::now();
            scene.burst(&prefix, PODS).await;
            scene.until_bound(&prefix, PODS).await;
            tokio::time::sleep(duration.saturating_sub(begin.elapsed())).await;
            // However busy the machine is, each pod has met it before it ends.
            if duration > Duration::from_secs(10) || trouble.shows_at_once() {
                all_were_told(&scene, &prefix, words).await;
            }
            assert_eq!(
                scene.annotated(&prefix).await,
                0,
                "{trouble:?} is no trouble"
            );
            let stopwatch = stage.stopwatch();
            Trouble::end(&stage);

            let took = scene.until_annotated(&prefix, PODS).await;
            println!("{trouble:?} for {duration:?}: all served {took:?} after its end");
            gone += scene.assert_in_time(stopwatch, RECOVERY, PODS).await;
            scene.until_running(&prefix, PODS).await;
            // One for each pod that is gone, and no second one for anybody.
            let idle = stage.assert_consistent().await;
            assert_eq!(idle.len(), gone);
            scene.delete_burst(&prefix).await;
            gone += PODS;
        }
    }
}

/// Each pod has an event that says why it waited, and what to do.
async fn all_were_told(scene: &Scene<'_>, prefix: &str, words: &[&str]) {
    for pod in scene.burst_pods(prefix).await {
        let has_words = |note: &str| words.iter().all(|word| note.contains(word));
        let stage = scene.stage;
        let uid = pod.uid().unwrap();
        let event = stage.until_event_that(&uid, "BranchAllocationFailed", has_words);
        assert_eq!(event.await.type_.as_deref(), Some("Warning"));
    }
}

fn on_creation_and_on_all(failing: Failing) -> [Trouble; 2] {
    ["CreateNetworkInterface", "*"].map(|action| Trouble::Fault(action, failing))
}

#[tokio::test]
async fn subnet_without_addresses() {
    let code = "InsufficientFreeAddressesInSubnet";
    let words = [
        code,
        "subnet-",
        "free some, or let an ENIConfig name another",
    ];
    pods_come_through(&on_creation_and_on_all(Failing::With(code)), &words).await;
}

#[tokio::test]
async fn throttling() {
    let code = "RequestLimitExceeded";
    let words = [code, "EC2 takes fewer calls than are wanted"];
    pods_come_through(&on_creation_and_on_all(Failing::With(code)), &words).await;
}

#[tokio::test]
async fn missing_permission() {
    let code = "UnauthorizedOperation";
    let words = [code, "AmazonEKSVPCResourceController", "goes on by itself"];
    let [creation, all] = on_creation_and_on_all(Failing::With(code));
    pods_come_through(&[creation, all, Trouble::Permission], &words).await;
}

#[tokio::test]
async fn error_inside_of_ec2() {
    let words = ["InternalError", "it is tried again"];
    let troubles = on_creation_and_on_all(Failing::With("InternalError"));
    pods_come_through(&troubles, &words).await;
}

#[tokio::test]
async fn connections_that_break() {
    let words = ["NoAnswer", "CreateNetworkInterface", "it is tried again"];
    pods_come_through(&on_creation_and_on_all(Failing::Dropped), &words).await;
}

#[tokio::test]
async fn silence() {
    let words = ["NoAnswer", "did not answer", "it is tried again"];
    pods_come_through(&on_creation_and_on_all(Failing::Hung), &words).await;
}

#[tokio::test]
async fn slow_then_silent_then_ordinary_ec2() {
    let stage = Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.2xlarge", 4)],
        cooldown: Some(600),
        ..Setting::with_long_lease()
    })
    .await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;

    // Slower than the time after which a request is sent again.
    stage.set(|settings| {
        settings.latency_ms.insert("*".to_owned(), 4_000);
    });
    scene.burst("slow", PODS).await;
    let stopwatch = stage.stopwatch();
    scene.until_annotated("slow", PODS).await;
    // Three calls one after the other, and something for the machine.
    let took = stopwatch.assert_within(Duration::from_secs(20));
    println!("4 s for each answer: {took:?}");
    scene.burst("silent", PODS).await;
    scene.until_bound("silent", PODS).await;
    let hang = lasting("*", FaultOutcome::Hang);
    stage.simulator().add_fault(hang).unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let stopwatch = stage.stopwatch();
    Trouble::end(&stage);
    let took = scene.until_annotated("silent", PODS).await;
    println!("after slowness and silence: {took:?}");
    let gone = scene.assert_in_time(stopwatch, RECOVERY, PODS).await;

    assert_eq!(stage.assert_consistent().await.len(), gone);
    scene.until_running("slow", PODS).await;
    scene.until_running("silent", PODS).await;
}
