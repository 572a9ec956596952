//! One rate limit for all requests to EC2, which finds out how many EC2 takes.
//!
//! EC2 throttles by account, region and kind of action, and tells nobody its numbers; other
//! programs draw on the same account. So requests go out as fast as they come until EC2
//! refuses one, and then at a rate that falls with each refusal and rises with what is served.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::calls::Priority;
use super::metrics::Ec2Metrics;

/// Requests a second where EC2 never refused one, and how many may go out at once. More than
/// EC2 lets an account do for any length of time: only EC2 sets the pace.
const FASTEST: f64 = 200.0;

/// Requests a second when everything is refused: few enough that an EC2 which takes 2 a
/// second serves two of three, enough to notice within a second that it takes more.
const SLOWEST: f64 = 3.0;

/// What a refusal leaves of the rate.
const SLOW_DOWN: f64 = 0.5;

/// What EC2 served within so long says what it takes when it begins to refuse.
const LATELY: Duration = Duration::from_secs(1);

/// Without a refusal for so long, the next one is the beginning of something new.
const LONG_AGO: Duration = Duration::from_secs(5);

/// Refusals within so long of a slow-down belong to requests that went out before it.
const ONE_SLOW_DOWN: Duration = Duration::from_millis(200);

/// By how much more each served request raises the rate than the one before it.
///
/// So the rate grows with the square of the requests served in a row: by little where every
/// third is refused, from slowest to fastest within three seconds where none is.
const GROWTH: f64 = 0.5;

/// With so many requests served in a row the rate begins to grow. Where it grows too far each
/// time, a third is refused at most.
const SERVED_BEFORE_GROWTH: u32 = 3;

/// How many requests may go out by now. Pure: every instant is an argument.
#[derive(Debug)]
struct Pace {
    /// Requests a second.
    rate: f64,
    /// Requests that may go out at once; at most what comes in a second.
    tokens: f64,
    counted: Instant,
    /// While the pace held requests back.
    served_in_a_row: u32,
    /// When requests were served [lately](LATELY).
    served: VecDeque<Instant>,
    slowed_down: Option<Instant>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            rate: FASTEST,
            tokens: FASTEST,
            counted: now,
            served_in_a_row: 0,
            served: VecDeque::new(),
            slowed_down: None,
        }
    }

    /// Lets a request go out, or says when to ask again.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.count(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // A microsecond more, so that rounding never makes it ask a moment too early.
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.rate);
        Err(now + wait + Duration::from_micros(1))
    }

    fn served(&mut self, now: Instant) {
        self.count(now);
        self.served.push_back(now);
        self.forget(now);
        // Requests that went out as they came show nothing about a higher rate.
        if self.tokens >= 1.0 {
            return;
        }
        self.served_in_a_row = self.served_in_a_row.saturating_add(1);
        if self.served_in_a_row < SERVED_BEFORE_GROWTH {
            return;
        }
        let growth = GROWTH * f64::from(self.served_in_a_row);
        self.rate = (self.rate + growth).min(FASTEST);
    }

    fn throttled(&mut self, now: Instant) {
        self.count(now);
        self.forget(now);
        self.served_in_a_row = 0;
        let since = self.slowed_down.map(|at| now.duration_since(at));
        if since.is_some_and(|since| since < ONE_SLOW_DOWN) {
            return;
        }
        self.slowed_down = Some(now);
        self.rate *= SLOW_DOWN;
        // Halving alone would send wave after wave where EC2 takes a hundredth of the rate.
        if since.is_none_or(|since| since >= LONG_AGO) {
            let served = self.served.len() as f64 / LATELY.as_secs_f64();
            self.rate = self.rate.min(served);
        }
        self.rate = self.rate.max(SLOWEST);
        // What was saved up is no use: EC2 has none left.
        self.tokens = self.tokens.min(1.0);
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= LATELY;
        while self.served.front().is_some_and(is_old) {
            self.served.pop_front();
        }
    }

    fn count(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.rate);
        self.counted = now;
    }
}

/// The rate limit, shared by all requests of the process.
///
/// Whoever has the higher priority goes first, and among equals who came first. This is
/// strict: while allocations alone use up what EC2 takes, nothing is deleted or audited.
#[derive(Debug)]
pub struct RateLimiter {
    shared: Arc<Shared>,
    /// Calls up who waits, until it is dropped. A task of its own, so that a request that
    /// nobody polls holds up no other.
    _caller: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    /// Never locked across an await.
    state: Mutex<State>,
    /// There is someone to call up, or it may be done sooner than it seemed.
    changed: Notify,
    metrics: Ec2Metrics,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Who waits, in the order of their turns.
    queue: BTreeMap<Ticket, oneshot::Sender<()>>,
    tickets: u64,
}

/// A place in the queue: by priority, then by arrival.
type Ticket = (Priority, u64);

impl RateLimiter {
    /// A limiter at its fastest, which shows its state in these metrics.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn new(metrics: Ec2Metrics) -> Self {
        let pace = Pace::new(Instant::now());
        metrics.rate.set(pace.rate);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                pace,
                queue: BTreeMap::new(),
                tickets: 0,
            }),
            changed: Notify::new(),
            metrics,
        });
        let mut caller = JoinSet::new();
        caller.spawn(call_up(shared.clone()));
        Self {
            shared,
            _caller: caller,
        }
    }

    /// Ends when a request may go out. Who stops waiting gives up the place.
    pub async fn turn(&self, priority: Priority) {
        let Some((_place, called)) = self.line_up(priority) else {
            return;
        };
        // The caller ends with the limiter, and so not while someone waits here.
        let _ = called.await;
    }

    /// Learns that EC2 took a request, whatever it made of it.
    pub fn served(&self) {
        self.learn(Pace::served);
    }

    /// Learns that EC2 refused a request because there were too many.
    pub fn throttled(&self) {
        self.learn(Pace::throttled);
    }

    fn learn(&self, what: impl FnOnce(&mut Pace, Instant)) {
        let mut state = self.shared.lock();
        what(&mut state.pace, Instant::now());
        self.shared.metrics.rate.set(state.pace.rate);
        if !state.queue.is_empty() {
            self.shared.changed.notify_one();
        }
    }

    /// `None` if it is the request's turn at once.
    fn line_up(&self, priority: Priority) -> Option<(Place<'_>, oneshot::Receiver<()>)> {
        let mut state = self.shared.lock();
        if state.queue.is_empty() && state.pace.take(Instant::now()).is_ok() {
            return None;
        }
        let (call, called) = oneshot::channel();
        state.tickets += 1;
        let ticket = (priority, state.tickets);
        state.queue.insert(ticket, call);
        self.shared.metrics.waiting.inc();
        self.shared.changed.notify_one();
        let place = Place {
            shared: &self.shared,
            ticket,
        };
        Some((place, called))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no one panics while the queue is locked")
    }
}

impl State {
    /// Calls up all whose turn it is, and says when the next one's is if anyone still waits.
    fn call_up(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.queue.first_entry() {
            if let Err(later) = self.pace.take(now) {
                return Some(later);
            }
            // One who goes away at this very moment takes the turn along, which is no loss.
            let _ = first.remove().send(());
        }
        None
    }
}

async fn call_up(shared: Arc<Shared>) {
    loop {
        let next = shared.lock().call_up(Instant::now());
        match next {
            None => shared.changed.notified().await,
            Some(instant) => tokio::select! {
                () = sleep_until(instant) => {}
                () = shared.changed.notified() => {}
            },
        }
    }
}

/// A request's place in the queue, until it is dropped.
#[derive(Debug)]
struct Place<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.lock().queue.remove(&self.ticket);
        self.shared.metrics.waiting.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    use futures::future::join_all;
    use tokio::time::{sleep, timeout};

    fn limiter() -> RateLimiter {
        RateLimiter::new(Ec2Metrics::default())
    }

    /// A limiter whose EC2 has refused everything for long.
    fn slowest() -> RateLimiter {
        let limiter = limiter();
        limiter.shared.lock().pace.rate = SLOWEST;
        limiter.shared.lock().pace.tokens = 0.0;
        limiter
    }

    /// An EC2 with a token bucket that answers after a while.
    struct Bucket {
        rate: f64,
        burst: f64,
        tokens: f64,
        at: Instant,
        served: usize,
        refused: usize,
    }

    const LATENCY: Duration = Duration::from_millis(100);

    impl Bucket {
        fn new(rate: f64, burst: f64) -> RefCell<Self> {
            RefCell::new(Self {
                rate,
                burst,
                tokens: burst,
                at: Instant::now(),
                served: 0,
                refused: 0,
            })
        }

        fn admit(&mut self) -> bool {
            let passed = self.at.elapsed().as_secs_f64();
            self.at = Instant::now();
            self.tokens = (self.tokens + passed * self.rate).min(self.burst);
            let admitted = self.tokens >= 1.0;
            if admitted {
                self.tokens -= 1.0;
                self.served += 1;
            } else {
                self.refused += 1;
            }
            admitted
        }
    }

    /// Whether the request was served.
    async fn request(limiter: &RateLimiter, ec2: &RefCell<Bucket>) -> bool {
        limiter.turn(Priority::Allocation).await;
        let served = ec2.borrow_mut().admit();
        sleep(LATENCY).await;
        if served {
            limiter.served();
        } else {
            limiter.throttled();
        }
        served
    }

    /// Many callers that each ask again and again, with a pause after a refusal.
    async fn press(limiter: &RateLimiter, ec2: &RefCell<Bucket>, time: Duration) {
        let callers = (0..45).map(|_| async {
            loop {
                if !request(limiter, ec2).await {
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
        let _ = timeout(time, join_all(callers)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn ordinary_burst_waits_for_nothing() {
        let limiter = limiter();
        let begin = Instant::now();
        for _ in 0..200 {
            limiter.turn(Priority::Allocation).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);

        for _ in 0..400 {
            limiter.turn(Priority::Allocation).await;
        }
        let rest = begin.elapsed().as_secs_f64();
        assert!((1.9..2.5).contains(&rest), "{rest}");
    }

    /// A pace whose EC2 serves more than it is asked for.
    fn well_served(now: Instant) -> Pace {
        let mut pace = Pace::new(now);
        for _ in 0..200 {
            pace.served(now);
        }
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_halve_the_rate_once_in_an_interval_down_to_what_is_served() {
        let now = Instant::now();
        let mut pace = well_served(now);
        for milliseconds in [0, 1, 100, 199] {
            pace.throttled(now + Duration::from_millis(milliseconds));
            assert_eq!(pace.rate, FASTEST / 2.0);
            assert!(pace.tokens <= FASTEST / 2.0);
        }
        pace.throttled(now + ONE_SLOW_DOWN);
        assert_eq!(pace.rate, FASTEST / 4.0);
        for number in 2..20 {
            pace.throttled(now + ONE_SLOW_DOWN * number);
        }
        assert_eq!(pace.rate, SLOWEST);
    }

    #[tokio::test(start_paused = true)]
    async fn first_refusal_shows_what_ec2_takes() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..20 {
            pace.served(now);
        }
        pace.throttled(now);
        assert_eq!(pace.rate, 20.0);

        pace.rate = FASTEST;
        pace.throttled(now + LONG_AGO - Duration::from_millis(1));
        assert_eq!(pace.rate, FASTEST / 2.0, "it goes on");
        pace.throttled(now + LONG_AGO * 2);
        assert_eq!(pace.rate, SLOWEST, "nothing was served lately");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_in_a_row_that_are_served_raise_the_rate_ever_faster() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.rate = SLOWEST;
        pace.tokens = 0.0;
        let rates: Vec<f64> = (0..50)
            .map(|_| {
                pace.served(now);
                pace.rate
            })
            .collect();
        assert_eq!(rates[..2], [SLOWEST; 2]);
        assert_eq!(rates[2], SLOWEST + 3.0 * GROWTH);
        assert_eq!(rates[3], SLOWEST + 7.0 * GROWTH);
        assert_eq!(rates[49], FASTEST);

        let mut pace = well_served(now);
        pace.throttled(now);
        pace.tokens = 0.0;
        pace.served(now);
        assert_eq!(pace.rate, FASTEST / 2.0, "they count from one");
        pace.served(now);
        pace.tokens = 1.0;
        pace.served(now);
        assert_eq!(pace.rate, FASTEST / 2.0, "nothing was held back");
    }

    #[tokio::test(start_paused = true)]
    async fn after_minutes_of_refusals_a_burst_of_pods_is_served_in_three_seconds() {
        let limiter = limiter();
        let outage = Bucket::new(0.0, 0.0);
        press(&limiter, &outage, Duration::from_secs(180)).await;
        assert_eq!(outage.borrow().served, 0);
        let refused = outage.borrow().refused;
        assert!((400..800).contains(&refused), "{refused}");

        let ec2 = Bucket::new(100.0, 100.0);
        let begin = Instant::now();
        let pods = (0..45).map(|_| async {
            for _ in 0..2 {
                while !request(&limiter, &ec2).await {}
            }
        });
        join_all(pods).await;
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_settles_near_what_ec2_takes() {
        for (rate, burst) in [
            (2.0, 2.0),
            (2.0, 100.0),
            (5.0, 10.0),
            (20.0, 100.0),
            (100.0, 100.0),
        ] {
            let limiter = limiter();
            let ec2 = Bucket::new(rate, burst);
            press(&limiter, &ec2, Duration::from_secs(120)).await;
            ec2.borrow_mut().served = 0;
            ec2.borrow_mut().refused = 0;

            press(&limiter, &ec2, Duration::from_secs(120)).await;
            let (served, refused) = (ec2.borrow().served as f64, ec2.borrow().refused as f64);
            let share = refused / (served + refused);
            let used = served / (rate * 120.0);
            assert!(share < 0.5, "{rate} a second: {share} are refused");
            assert!(used > 0.75, "{rate} a second: {used} of it are used");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn higher_priority_goes_first_and_equals_in_order() {
        let limiter = slowest();
        let order = RefCell::new(Vec::new());
        let wait = async |priority, name: &'static str| {
            limiter.turn(priority).await;
            order.borrow_mut().push(name);
        };
        let mut all = join_all([
            wait(Priority::Audit, "audit"),
            wait(Priority::Deletion, "deletion 1"),
            wait(Priority::Deletion, "deletion 2"),
        ]);
        // They wait already when allocations come.
        assert!(futures::poll!(&mut all).is_pending());
        let late = join_all([
            wait(Priority::Allocation, "allocation 1"),
            wait(Priority::Allocation, "allocation 2"),
        ]);
        tokio::join!(all, late);
        let expected = [
            "allocation 1",
            "allocation 2",
            "deletion 1",
            "deletion 2",
            "audit",
        ];
        assert_eq!(*order.borrow(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_holds_up_nobody() {
        let limiter = slowest();
        let mut first = Box::pin(limiter.turn(Priority::Allocation));
        let mut second = Box::pin(limiter.turn(Priority::Allocation));
        let mut third = Box::pin(limiter.turn(Priority::Audit));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!(limiter.shared.metrics.waiting.get(), 3);

        let begin = Instant::now();
        drop(second);
        drop(first);
        third.await;
        let waited = begin.elapsed().as_secs_f64();
        assert!((waited - 1.0 / SLOWEST).abs() < 0.01, "{waited}");
        assert_eq!(limiter.shared.metrics.waiting.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_nobody_polls_holds_up_nobody() {
        let limiter = slowest();
        let mut first = Box::pin(limiter.turn(Priority::Allocation));
        assert!(futures::poll!(&mut first).is_pending());
        let second = timeout(Duration::from_secs(1), limiter.turn(Priority::Audit));
        assert!(second.await.is_ok());
        assert!(futures::poll!(&mut first).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn faster_pace_reaches_those_who_wait_already() {
        let limiter = slowest();
        let begin = Instant::now();
        let waiting = join_all((0..2).map(|_| limiter.turn(Priority::Allocation)));
        let served = async {
            sleep(Duration::from_millis(10)).await;
            for _ in 0..50 {
                limiter.served();
            }
        };
        tokio::join!(waiting, served);
        let waited = begin.elapsed();
        assert!(waited < Duration::from_millis(50), "{waited:?}");
    }
}
