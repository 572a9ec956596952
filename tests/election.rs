//! Candidates compete for a Lease of a real control plane.

#[path = "support/shared_control_plane.rs"]
mod shared_control_plane;
#[path = "support/waiting.rs"]
mod waiting;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use sgp::allocator::election::{Election, Leadership};
use shared_control_plane::CONTROL_PLANE;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use waiting::eventually;

const NAMESPACE: &str = "default";
const SHORT: Duration = Duration::from_secs(3);
/// So long that nothing in a test happens because it is over.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn one_of_three_leads_even_if_all_have_the_same_name() {
    let candidates: Vec<_> = (0..3)
        .map(|_| Candidate::start("one-of-three", SHORT, config()))
        .collect();
    let referee = Referee::watch(&candidates);

    let leader = eventually("a leader", || candidates.iter().find(|it| it.leads()));

    let holder = leader.election.identity();
    eventually("all to know it", || {
        let knows = |it: &Candidate| it.state.borrow().holder.as_deref() == Some(holder);
        candidates.iter().all(knows).then_some(())
    });
    let first = leader.held_until();
    eventually("renewals for a whole term", || {
        (leader.held_until() > first + SHORT).then_some(())
    });
    assert!(leader.leads());
    referee.end();
}

#[test]
fn the_lease_tells_people_and_other_programs_who_leads() {
    let name = "readable";
    let one = Candidate::start(name, Duration::from_millis(2500), config());
    eventually("a leader", || one.leads().then_some(()));
    let acquired = spec(name).unwrap();

    let renewed = eventually("a renewal", || {
        spec(name).filter(|it| it.renew_time != acquired.renew_time)
    });

    assert_eq!(
        renewed.holder_identity.as_deref(),
        Some(one.election.identity())
    );
    assert!(one.election.identity().starts_with("allocator-0_"));
    assert_eq!(renewed.lease_duration_seconds, Some(3));
    assert_eq!(renewed.lease_transitions, Some(0));
    assert_eq!(renewed.acquire_time, acquired.acquire_time);
    assert!(renewed.renew_time > acquired.renew_time);

    one.stop_and_release();
    assert_eq!(spec(name).unwrap().holder_identity, None);
    let other = Candidate::start(name, Duration::from_millis(2500), config());
    eventually("the next leader", || other.leads().then_some(()));
    assert_eq!(spec(name).unwrap().lease_transitions, Some(1));
    assert_eq!(other.state.borrow().transitions, 1);
}

#[test]
fn a_lease_given_up_goes_to_another_at_once() {
    let name = "given-up";
    let one = Candidate::start(name, LONG, config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, LONG, config());
    eventually("a follower", || other.knows(&one).then_some(()));

    one.stop_and_release();

    // Within the patience of a test, which is far less than the lease's time.
    eventually("the other to lead", || other.leads().then_some(()));
}

#[test]
fn a_lease_that_is_another_s_is_not_given_up() {
    let name = "another-s";
    let one = Candidate::start(name, LONG, config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, LONG, config());
    eventually("a follower", || other.knows(&one).then_some(()));

    other.stop_and_release();

    let holder = spec(name).unwrap().holder_identity;
    assert_eq!(holder.as_deref(), Some(one.election.identity()));
}

#[test]
fn a_holder_that_stops_renewing_is_replaced_after_its_time() {
    let name = "vanished";
    let one = Candidate::start(name, SHORT, config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, SHORT, config());
    eventually("a follower", || other.knows(&one).then_some(()));
    let referee = Referee::watch([&one, &other]);

    one.task.abort();

    eventually("the other to lead", || other.leads().then_some(()));
    let replaced = Instant::now();
    let held_until = one.held_until();
    assert!(held_until < replaced);
    assert!(
        replaced < held_until + SHORT,
        "{:?} late",
        replaced - held_until
    );
    referee.end();
}

#[test]
fn a_holder_whose_connections_are_refused_steps_down_before_another_leads() {
    steps_down_when("refused", Proxy::refuse);
}

#[test]
fn a_holder_whose_requests_are_not_answered_steps_down_before_another_leads() {
    steps_down_when("unanswered", Proxy::stall);
}

fn steps_down_when(name: &str, fault: fn(&Proxy)) {
    let proxy = Proxy::start();
    let one = Candidate::start(name, SHORT, &proxy.client_config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, SHORT, config());
    eventually("a follower", || other.knows(&one).then_some(()));
    let referee = Referee::watch([&one, &other]);

    fault(&proxy);

    eventually("the other to lead", || other.leads().then_some(()));
    assert!(!one.leads());
    // Told too, for those who wait for a change.
    assert_eq!(one.state.borrow().held_until, None);
    referee.end();
}

#[test]
fn a_holder_that_stood_still_leads_no_longer_when_it_goes_on() {
    let name = "stood-still";
    let one = Candidate::start(name, SHORT, config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, SHORT, config());
    eventually("a follower", || other.knows(&one).then_some(()));
    let referee = Referee::watch([&one, &other]);

    let go_on = one.stand_still();
    eventually("the other to lead", || other.leads().then_some(()));
    assert!(!one.leads());
    go_on.send(()).unwrap();

    eventually("it to notice", || one.knows(&other).then_some(()));
    assert!(other.leads());
    referee.end();
}

#[test]
fn a_deleted_lease_goes_to_its_holder_again() {
    let name = "deleted";
    let one = Candidate::start(name, SHORT, config());
    eventually("a leader", || one.leads().then_some(()));
    let other = Candidate::start(name, SHORT, config());
    eventually("a follower", || other.knows(&one).then_some(()));
    let referee = Referee::watch([&one, &other]);
    let uid = |lease: Lease| lease.metadata.uid;
    let before = uid(lease(name).unwrap());

    block_on(leases().delete(name, &Default::default())).unwrap();

    eventually("a new lease", || {
        lease(name).map(uid).filter(|it| *it != before)
    });
    eventually("all to know it", || other.knows(&one).then_some(()));
    assert!(one.leads());
    referee.end();
}

/// One candidate with a runtime of its own, as if it were a process.
struct Candidate {
    election: Arc<Election>,
    state: watch::Receiver<Leadership>,
    task: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Candidate {
    fn start(lease: &str, duration: Duration, config: &kube::Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let client = Client::try_from(config.clone()).unwrap();
        let election = Election::new(client, NAMESPACE, lease, "allocator-0", duration);
        let election = Arc::new(election);
        let (sender, state) = watch::channel(Leadership::default());
        let running = election.clone();
        let task = runtime.spawn(async move {
            running.run(&sender).await;
        });
        Self {
            election,
            state,
            task,
            runtime: Some(runtime),
        }
    }

    fn leads(&self) -> bool {
        self.state.borrow().is_held()
    }

    fn held_until(&self) -> Instant {
        self.state.borrow().held_until.expect("it led")
    }

    /// Whether it follows `leader`.
    fn knows(&self, leader: &Self) -> bool {
        self.state.borrow().holder.as_deref() == Some(leader.election.identity())
    }

    fn stop_and_release(&self) {
        self.task.abort();
        eventually("the end of the task", || {
            self.task.is_finished().then_some(())
        });
        let runtime = self.runtime.as_ref().expect("it has not ended");
        runtime.block_on(self.election.release());
    }

    /// Keeps its only thread busy until told to go on, as if the process were stopped.
    fn stand_still(&self) -> mpsc::Sender<()> {
        let (go_on, told) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let runtime = self.runtime.as_ref().expect("it has not ended");
        runtime.spawn(async move {
            begin.send(()).unwrap();
            // Also when the test fails.
            let _ = told.recv();
        });
        begun.recv().unwrap();
        go_on
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Looks all the time whether two lead.
struct Referee {
    has_ended: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<u64, Vec<Leadership>>>,
}

impl Referee {
    fn watch<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Self {
        let states: Vec<_> = candidates.into_iter().map(|it| it.state.clone()).collect();
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        let thread = thread::spawn(move || {
            let mut looks = 0;
            while !ended.load(Ordering::Relaxed) {
                for (one, other) in pairs(&states) {
                    let leads = |state: &watch::Receiver<Leadership>| state.borrow().is_held();
                    // Twice, because time passes from one look to the next.
                    if leads(one) && leads(other) && leads(one) {
                        return Err(states.iter().map(|it| it.borrow().clone()).collect());
                    }
                }
                looks += 1;
                thread::sleep(Duration::from_micros(500));
            }
            Ok(looks)
        });
        Self { has_ended, thread }
    }

    #[track_caller]
    fn end(self) {
        self.has_ended.store(true, Ordering::Relaxed);
        let looks = self.thread.join().unwrap().expect("two led at a time");
        assert!(looks > 0);
    }
}

fn pairs<T>(all: &[T]) -> impl Iterator<Item = (&T, &T)> {
    let others = move |index: usize| all.iter().enumerate().filter(move |(it, _)| *it != index);
    let each = all.iter().enumerate();
    each.flat_map(move |(index, one)| others(index).map(move |(_, other)| (one, other)))
}

/// A way to the API server that can be cut.
struct Proxy {
    port: u16,
    fault: watch::Sender<Fault>,
    _runtime: Runtime,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Fault {
    None,
    Stall,
    Refuse,
}

impl Proxy {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = config().cluster_url.port_u16().unwrap();
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, faults) = watch::channel(Fault::None);
        runtime.spawn(async move {
            let mut refused = faults.clone();
            let accept = async {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    tokio::spawn(forward(client, server, faults.clone()));
                }
            };
            tokio::select! {
                () = accept => {}
                _ = refused.wait_for(|fault| *fault == Fault::Refuse) => {}
            }
        });
        Self {
            port,
            fault,
            _runtime: runtime,
        }
    }

    fn client_config(&self) -> kube::Config {
        let mut through = config().clone();
        let url = format!("https://127.0.0.1:{}", self.port);
        through.cluster_url = url.parse().unwrap();
        through
    }

    /// Connections end, new ones are refused.
    fn refuse(&self) {
        self.fault.send_replace(Fault::Refuse);
    }

    /// Connections stay and nothing goes through them any more.
    fn stall(&self) {
        self.fault.send_replace(Fault::Stall);
    }
}

async fn forward(mut client: TcpStream, server: u16, mut faults: watch::Receiver<Fault>) {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))
        .await
        .unwrap();
    let fault = {
        let fault = faults.wait_for(|fault| *fault != Fault::None);
        let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
        tokio::select! {
            biased;
            fault = fault => fault.map(|it| *it),
            _ = copy => return,
        }
    };
    if let Ok(Fault::Stall) = fault {
        std::future::pending().await
    }
}

fn config() -> &'static kube::Config {
    CONTROL_PLANE.client_config()
}

fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

static RUNTIME: std::sync::LazyLock<Runtime> = std::sync::LazyLock::new(|| Runtime::new().unwrap());

fn leases() -> Api<Lease> {
    let _inside = RUNTIME.enter();
    Api::namespaced(CONTROL_PLANE.client(), NAMESPACE)
}

fn lease(name: &str) -> Option<Lease> {
    block_on(leases().get_opt(name)).unwrap()
}

fn spec(name: &str) -> Option<LeaseSpec> {
    lease(name).and_then(|lease| lease.spec)
}
