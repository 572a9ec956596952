//! Memory for the bodies of requests, of which there is only so much for all.
//!
//! Who needs more than is left waits. What is given back goes to the address that holds least,
//! so that whoever takes a lot waits for himself, and smaller bodies go before larger ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The most requests of an address that wait: more than an API server has running by default.
const WAITING_OF_ADDRESS: usize = 250;

/// The memory of one server.
#[derive(Debug)]
pub(super) struct Memory {
    bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    by_address: HashMap<IpAddr, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    address: IpAddr,
    bytes: usize,
    grant: oneshot::Sender<Held>,
}

/// Memory that is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    address: IpAddr,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            state: Mutex::default(),
        })
    }

    /// Waits until there are so many bytes for this address. `None` if too many of it wait
    /// already.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr, bytes: usize) -> Option<Held> {
        // More than there is could never be had.
        let bytes = bytes.min(self.bytes);
        let granted = {
            let mut state = self.state();
            if !state.is_wanted() && state.taken + bytes <= self.bytes {
                state.note(address, bytes);
                return Some(self.held(address, bytes));
            }
            let waiting = state.waiting.iter();
            if waiting.filter(|other| other.address == address).count() >= WAITING_OF_ADDRESS {
                return None;
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.push(Waiting {
                address,
                bytes,
                grant,
            });
            granted
        };
        // It may be that it has to wait only behind others, who need more than is left.
        self.grant();
        Some(granted.await.expect("whoever waits is kept until served"))
    }

    /// Whether somebody waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.state().is_wanted()
    }

    /// Gives what is left to those who wait, as far as it goes.
    fn grant(self: &Arc<Self>) {
        let mut granted = Vec::new();
        let mut state = self.state();
        while let Some(next) = state.next(self.bytes) {
            let Waiting {
                address,
                bytes,
                grant,
            } = state.waiting.remove(next);
            state.note(address, bytes);
            granted.push((grant, self.held(address, bytes)));
        }
        drop(state);
        for (grant, held) in granted {
            // Given back at once if nobody waits for it any more.
            let _ = grant.send(held);
        }
    }

    fn held(self: &Arc<Self>, address: IpAddr, bytes: usize) -> Held {
        Held {
            memory: self.clone(),
            address,
            bytes,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_wanted(&self) -> bool {
        self.waiting
            .iter()
            .any(|waiting| !waiting.grant.is_closed())
    }

    /// Who is served next, if there is enough left.
    fn next(&mut self, bytes: usize) -> Option<usize> {
        self.waiting.retain(|waiting| !waiting.grant.is_closed());
        let by_address = &self.by_address;
        let need = |waiting: &Waiting| {
            let holds = by_address.get(&waiting.address).copied().unwrap_or(0);
            (holds, waiting.bytes)
        };
        let waiting = self.waiting.iter().enumerate();
        let (next, waiting) = waiting.min_by_key(|(_, waiting)| need(waiting))?;
        (self.taken + waiting.bytes <= bytes).then_some(next)
    }

    fn note(&mut self, address: IpAddr, bytes: usize) {
        self.taken += bytes;
        *self.by_address.entry(address).or_default() += bytes;
    }
}

impl Held {
    /// Keeps so many bytes at most.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        if spare > 0 {
            self.give_back(spare);
        }
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        let mut state = self.memory.state();
        state.taken -= bytes;
        if let Some(holds) = state.by_address.get_mut(&self.address) {
            *holds -= bytes;
            if *holds == 0 {
                state.by_address.remove(&self.address);
            }
        }
        drop(state);
        self.memory.grant();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[tokio::test]
    async fn what_is_given_back_goes_to_the_address_that_holds_least() {
        let memory = Memory::new(10);
        let first = memory.take(ip(1), 4).await.unwrap();
        let mut second = memory.take(ip(1), 4).await.unwrap();
        let mut third = Box::pin(memory.take(ip(1), 3));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(memory.is_wanted());
        let mut other = Box::pin(memory.take(ip(2), 4));
        assert!(other.as_mut().now_or_never().is_none());

        drop(first);
        let other = other.now_or_never().expect("it holds nothing yet");
        assert!(third.as_mut().now_or_never().is_none());
        second.shrink(1);
        third.now_or_never().expect("nobody else waits");
        drop(second);
        drop(other);
        assert!(!memory.is_wanted());
        assert_eq!(memory.state().taken, 0);
        assert!(memory.state().by_address.is_empty());
    }

    #[tokio::test]
    async fn small_body_goes_before_a_large_one_that_came_earlier() {
        let memory = Memory::new(10);
        let _held = memory.take(ip(1), 7).await;
        let mut large = Box::pin(memory.take(ip(2), 5));
        assert!(large.as_mut().now_or_never().is_none());
        let small = memory.take(ip(3), 1).now_or_never();
        small.expect("there is enough left for it");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_nothing() {
        let memory = Memory::new(10);
        let held = memory.take(ip(1), 10).await;
        assert!(memory.take(ip(2), 10).now_or_never().is_none());
        assert!(!memory.is_wanted());
        drop(held);
        assert_eq!(memory.state().taken, 0);
        let more_than_there_is = memory.take(ip(2), 11).now_or_never();
        let all = more_than_there_is.expect("no waiting").unwrap();
        assert_eq!(all.bytes, 10);
    }

    #[tokio::test]
    async fn so_many_of_an_address_wait_and_no_more() {
        let memory = Memory::new(10);
        let _held = memory.take(ip(1), 10).await;
        let mut waiting: Vec<_> = (0..WAITING_OF_ADDRESS)
            .map(|_| Box::pin(memory.take(ip(2), 1)))
            .collect();
        for waiting in &mut waiting {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert!(memory.take(ip(2), 1).await.is_none());
        assert!(memory.take(ip(3), 1).now_or_never().is_none(), "it may");
    }
}
