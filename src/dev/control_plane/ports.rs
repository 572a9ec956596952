//! Free TCP ports on the loopback address.
//!
//! A port is only known to be free at the moment it is looked at. Whoever needs certainty
//! starts again with another port when a bind fails, as [`ControlPlane`] does.
//!
//! [`ControlPlane`]: super::ControlPlane

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below what kernels hand out to outgoing connections, so that none of those can take a
/// port between our look at it and the listener's bind.
const CANDIDATES: Range<u16> = 20_000..32_000;

/// How many candidates to try before the kernel is asked for any port at all.
const ATTEMPTS: usize = 200;

/// A TCP port on which nothing listens on 127.0.0.1 now.
///
/// Never the same twice in a row within this process, so that several can be picked before
/// the first is bound.
///
/// # Errors
///
/// When the kernel has no port left.
pub fn free_port() -> io::Result<u16> {
    let free = (0..ATTEMPTS)
        .map(|_| next_candidate())
        .find(|port| bind(*port).is_ok());
    match free {
        Some(port) => Ok(port),
        None => Ok(bind(0)?.local_addr()?.port()),
    }
}

/// Walks the candidates from a random place, which keeps processes that start together apart.
fn next_candidate() -> u16 {
    static POSITION: OnceLock<AtomicU64> = OnceLock::new();
    let position = POSITION.get_or_init(|| AtomicU64::new(RandomState::new().hash_one(()) >> 1));
    let step =
        position.fetch_add(1, Ordering::Relaxed) % u64::from(CANDIDATES.end - CANDIDATES.start);
    CANDIDATES.start + u16::try_from(step).expect("smaller than the range")
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_picked_one_after_the_other_are_distinct() {
        let ports: HashSet<u16> = (0..100).map(|_| free_port().unwrap()).collect();

        assert_eq!(ports.len(), 100);
    }

    #[test]
    fn a_port_that_is_listened_on_is_not_picked() {
        let listeners: Vec<_> = (0..50)
            .filter_map(|_| bind(next_candidate()).ok())
            .collect();
        let taken: HashSet<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();

        for _ in 0..100 {
            assert!(!taken.contains(&free_port().unwrap()));
        }
    }
}
