//! Who is connected, and who leaves when all places are taken.
//!
//! A stranger can open more connections than there are places, and keep them for nothing. So
//! nobody is kept waiting at the door: whoever comes gets a place, and somebody leaves for it,
//! by [`who_leaves`]. What is known of a connection for that is in its [`Seat`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::limits::Limits;
use crate::telemetry::metrics::ConnectionMetrics;

/// The places of one server.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    /// Zero of the times in seats.
    begin: Instant,
    metrics: ConnectionMetrics,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    last_id: u64,
    seats: HashMap<u64, Arc<Seat>>,
    /// How many of them each address has.
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    seat: Arc<Seat>,
}

/// What is known of a connection. Requests note here that they run; nobody waits for a lock
/// for that.
#[derive(Debug)]
pub(super) struct Seat {
    address: IpAddr,
    begin: Instant,
    running: AtomicUsize,
    /// Those of them that began in intervals with an even number, and in the others.
    by_interval: [AtomicUsize; 2],
    interval: AtomicUsize,
    /// Milliseconds from `begin` to the last moment when a request began that found none, or
    /// one ended.
    since: AtomicU64,
    has_answered: AtomicBool,
    task: OnceLock<AbortHandle>,
}

/// A request that runs, from its headers until its answer is sent.
#[derive(Debug)]
pub(super) struct Running {
    seat: Arc<Seat>,
    interval: usize,
}

impl Places {
    pub(super) fn new(limits: &Limits, metrics: ConnectionMetrics) -> Arc<Self> {
        Arc::new(Self {
            limit: limits.connections,
            begin: Instant::now(),
            metrics,
            taken: Mutex::default(),
        })
    }

    /// A place for a newcomer from this address; another connection may have to leave for it.
    /// `None` if the newcomer is the one to go.
    pub(super) fn enter(self: &Arc<Self>, address: SocketAddr) -> Option<Place> {
        let address = neighbourhood(address.ip());
        let mut taken = self.taken();
        if taken.seats.len() >= self.limit {
            let Some(id) = taken.who_leaves(address) else {
                self.metrics.refused.inc();
                return None;
            };
            self.metrics.evicted.inc();
            if let Some(seat) = taken.remove(id)
                && let Some(task) = seat.task.get()
            {
                task.abort();
            }
        }
        *taken.by_address.entry(address).or_default() += 1;
        let seat = Arc::new(Seat::new(address, self.begin));
        taken.last_id += 1;
        let id = taken.last_id;
        taken.seats.insert(id, seat.clone());
        self.count(&taken);
        Some(Place {
            places: self.clone(),
            id,
            seat,
        })
    }

    /// Cuts off whoever is still there.
    pub(super) fn clear(&self) {
        for seat in self.taken().seats.values() {
            if let Some(task) = seat.task.get() {
                task.abort();
            }
        }
    }

    fn count(&self, taken: &Taken) {
        let open = i64::try_from(taken.seats.len()).unwrap_or(i64::MAX);
        self.metrics.open.set(open);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn remove(&mut self, id: u64) -> Option<Arc<Seat>> {
        let seat = self.seats.remove(&id)?;
        if let Some(connections) = self.by_address.get_mut(&seat.address) {
            *connections -= 1;
            if *connections == 0 {
                self.by_address.remove(&seat.address);
            }
        }
        Some(seat)
    }

    fn who_leaves(&self, newcomer: IpAddr) -> Option<u64> {
        let by_address = self.by_address.iter();
        let most = by_address
            .map(|(address, connections)| (*connections, *address))
            .max();
        let guests = self.seats.iter().map(|(id, seat)| seat.guest(*id));
        who_leaves(guests, most, self.seats.len(), newcomer)
    }
}

impl Place {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.remove(self.id);
        self.places.count(&taken);
    }
}

impl Seat {
    fn new(address: IpAddr, begin: Instant) -> Self {
        let seat = Self {
            address,
            begin,
            running: AtomicUsize::new(0),
            by_interval: [AtomicUsize::new(0), AtomicUsize::new(0)],
            interval: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            has_answered: AtomicBool::new(false),
            task: OnceLock::new(),
        };
        seat.mark();
        seat
    }

    /// The address that it comes from, or the network of one owner.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// The task to end when this connection has to leave.
    pub(super) fn set_task(&self, task: AbortHandle) {
        // Set once, by whoever gave the place.
        let _ = self.task.set(task);
    }

    /// Notes that a request runs.
    pub(super) fn begin_request(self: &Arc<Self>) -> Running {
        if self.running.fetch_add(1, Relaxed) == 0 {
            self.mark();
        }
        let interval = self.interval.load(Relaxed);
        self.by_interval[interval % 2].fetch_add(1, Relaxed);
        Running {
            seat: self.clone(),
            interval,
        }
    }

    /// Begins the next interval, unless a request still runs that began before the one that
    /// ends. Whether that is so.
    pub(super) fn has_stuck_request(&self) -> bool {
        let ending = self.interval.load(Relaxed);
        if self.by_interval[(ending + 1) % 2].load(Relaxed) > 0 {
            return true;
        }
        self.interval.store(ending + 1, Relaxed);
        false
    }

    /// Since when no request runs; `None` if one does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = Duration::from_millis(self.since.load(Relaxed));
        (self.running.load(Relaxed) == 0).then(|| self.begin + since)
    }

    fn mark(&self) {
        let now = self.begin.elapsed().as_millis();
        self.since
            .store(u64::try_from(now).unwrap_or(u64::MAX), Relaxed);
    }

    fn guest(&self, id: u64) -> Guest {
        Guest {
            id,
            address: self.address,
            is_running: self.running.load(Relaxed) > 0,
            has_answered: self.has_answered.load(Relaxed),
            since: self.since.load(Relaxed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let seat = &self.seat;
        seat.by_interval[self.interval % 2].fetch_sub(1, Relaxed);
        seat.has_answered.store(true, Relaxed);
        seat.mark();
        seat.running.fetch_sub(1, Relaxed);
    }
}

/// A connection, as it is judged.
#[derive(Clone, Copy, Debug)]
struct Guest {
    id: u64,
    address: IpAddr,
    is_running: bool,
    has_answered: bool,
    since: u64,
}

/// Who leaves for a newcomer when all places are taken. `most` is the address with the most
/// connections and their number. `None`: the newcomer itself.
///
/// An address that has more than a quarter of the places is to blame, and gives one back;
/// otherwise it may be anyone. First go those that never had an answer, then those that wait
/// longest without a request. Only if all have requests one of these is cut off, the oldest
/// first, and not for the benefit of the address that is to blame.
fn who_leaves(
    guests: impl Iterator<Item = Guest>,
    most: Option<(usize, IpAddr)>,
    places: usize,
    newcomer: IpAddr,
) -> Option<u64> {
    let to_blame = most.filter(|(connections, _)| connections * 4 > places);
    let to_blame = to_blame.map(|(_, address)| address);
    let leaves = guests
        .filter(|guest| to_blame.is_none_or(|address| guest.address == address))
        .min_by_key(|guest| (guest.is_running, guest.has_answered, guest.since, guest.id))?;
    let is_in_vain = leaves.is_running && to_blame == Some(newcomer);
    (!is_in_vain).then_some(leaves.id)
}

/// The part of an address that one owner has: of IPv6, whole networks are handed out.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(id: u64, address: u8, is_running: bool, has_answered: bool, since: u64) -> Guest {
        Guest {
            id,
            address: ip(address),
            is_running,
            has_answered,
            since,
        }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn leaves(guests: &[Guest], newcomer: u8) -> Option<u64> {
        let count = |address| guests.iter().filter(|one| one.address == address).count();
        let most = guests.iter().map(|one| (count(one.address), one.address));
        who_leaves(
            guests.iter().copied(),
            most.max(),
            guests.len(),
            ip(newcomer),
        )
    }

    #[test]
    fn who_has_had_no_answer_leaves_first_and_then_who_waits_longest() {
        let strangers = [
            guest(1, 1, false, true, 10),
            guest(2, 2, false, false, 30),
            guest(3, 3, false, false, 20),
            guest(4, 4, true, false, 0),
        ];
        assert_eq!(leaves(&strangers, 9), Some(3));
        let known = [
            guest(1, 1, true, true, 0),
            guest(2, 2, false, true, 30),
            guest(3, 3, false, true, 20),
            guest(4, 4, true, false, 0),
        ];
        assert_eq!(leaves(&known, 9), Some(3));
    }

    #[test]
    fn address_with_more_than_a_quarter_of_the_places_gives_one_back() {
        let hog = [
            guest(1, 1, false, true, 50),
            guest(2, 1, false, true, 40),
            guest(3, 2, false, false, 0),
            guest(4, 3, false, false, 0),
        ];
        assert_eq!(leaves(&hog, 9), Some(2));
        assert_eq!(leaves(&hog, 1), Some(2), "also for itself");
    }

    #[test]
    fn running_request_is_cut_off_only_for_another_address() {
        let busy = [
            guest(1, 1, true, true, 50),
            guest(2, 1, true, true, 40),
            guest(3, 2, true, false, 0),
            guest(4, 3, false, false, 0),
        ];
        assert_eq!(leaves(&busy, 9), Some(2));
        assert_eq!(leaves(&busy, 1), None);
    }

    fn places(connections: usize) -> Arc<Places> {
        let limits = Limits {
            connections,
            ..Limits::default()
        };
        Places::new(&limits, ConnectionMetrics::default())
    }

    #[tokio::test]
    async fn place_is_free_again_when_its_connection_ends_or_has_to_leave() {
        let places = places(2);
        let from = |address| places.enter(SocketAddr::new(ip(address), 1)).unwrap();
        let (first, second) = (from(1), from(1));
        let task = tokio::spawn(std::future::pending::<()>());
        first.seat().set_task(task.abort_handle());
        let third = from(2);
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(places.metrics.evicted.get(), 1);
        assert_eq!(places.metrics.open.get(), 2);
        // It had left already.
        drop(first);
        assert_eq!(places.metrics.open.get(), 2);
        drop((second, third));
        assert_eq!(places.metrics.open.get(), 0);
        assert!(places.taken().by_address.is_empty());
        assert_eq!(places.metrics.refused.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_idle_since_its_last_request_ended() {
        let places = places(2);
        let place = places.enter(SocketAddr::new(ip(1), 1)).unwrap();
        let seat = place.seat();
        let begin = Instant::now();
        assert_eq!(seat.idle_since(), Some(begin));
        let (one, other) = (seat.begin_request(), seat.begin_request());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(one);
        assert_eq!(seat.idle_since(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(other);
        assert_eq!(seat.idle_since(), Some(begin + Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn request_is_stuck_that_outlasts_a_whole_interval() {
        let places = places(2);
        let place = places.enter(SocketAddr::new(ip(1), 1)).unwrap();
        let seat = place.seat();
        drop(seat.begin_request());
        assert!(!seat.has_stuck_request());
        let request = seat.begin_request();
        assert!(
            !seat.has_stuck_request(),
            "it began in the interval that ended"
        );
        drop(seat.begin_request());
        assert!(seat.has_stuck_request());
        assert!(seat.has_stuck_request(), "and still is");
        drop(request);
        assert!(!seat.has_stuck_request());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_neighbour() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
