//! How long something takes, on a machine that may be busy with other things.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kube::{Client, Config};

/// Between two looks at the machine.
const PAUSE: Duration = Duration::from_millis(20);
/// What a look takes at most, with its pause, where nothing else is to be done.
const LOOK: Duration = Duration::from_millis(50);
/// After which a look is given up.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// Measures a time, and how much of it the machine had no time for us.
///
/// A thread of its own asks the API server for something small, again and again. Where that
/// takes longer than it should, so does all else, and nothing is wrong with what is measured.
pub struct Stopwatch {
    begin: Instant,
    missed: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    looks: Option<JoinHandle<()>>,
}

impl Stopwatch {
    /// Starts to measure. It looks at the machine by asking this API server.
    pub fn start(api_server: &Config) -> Self {
        let config = api_server.clone();
        let missed = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let (connected, is_connected) = std::sync::mpsc::channel();
        let (sum, end) = (missed.clone(), is_over.clone());
        let looks = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let client = Client::try_from(config).unwrap();
                look(&client).await;
                connected.send(()).unwrap();
                while !end.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    look(&client).await;
                    tokio::time::sleep(PAUSE).await;
                    let late = begin.elapsed().saturating_sub(LOOK);
                    let late = u64::try_from(late.as_millis()).unwrap();
                    sum.fetch_add(late, Ordering::Relaxed);
                }
            });
        });
        is_connected.recv().expect("it comes to look");
        Self {
            begin: Instant::now(),
            missed,
            is_over,
            looks: Some(looks),
        }
    }

    /// Stops. Gives how long it took, and how much of that does not count.
    pub fn stop(mut self) -> (Duration, Duration) {
        let took = self.begin.elapsed();
        self.is_over.store(true, Ordering::Relaxed);
        let looks = self.looks.take().expect("it was not stopped");
        looks.join().unwrap();
        let missed = Duration::from_millis(self.missed.load(Ordering::Relaxed));
        (took, missed.min(took))
    }

    /// Stops, and checks that it took less than this, as far as it counts. Gives how long it
    /// took.
    #[track_caller]
    pub fn assert_within(self, limit: Duration) -> Duration {
        let (took, missed) = self.stop();
        assert!(
            took < limit + missed,
            "{took:?} is beyond {limit:?}, although the machine was too busy for {missed:?} only"
        );
        took
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Asks for something that the API server reads from etcd. That it fails is told elsewhere.
async fn look(client: &Client) {
    let request = hyper::Request::get("/api/v1/namespaces/default");
    let request = request.body(Vec::new()).expect("a constant path");
    let answer = client.request_text(request);
    let _ = tokio::time::timeout(LONGEST_LOOK, answer).await;
}
