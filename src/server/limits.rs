//! Bounds of one server: what a client, however it behaves, can cost.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most bytes of a request's body: what the API server takes for a request to itself. An
/// AdmissionReview can be longer, with the old object beside the new one and `<` written as
/// `\u003c`; it is answered unread then, most often with a refusal.
pub const LONGEST_BODY: usize = 3 * 1024 * 1024;

/// Files that a process needs besides one for each connection.
const OTHER_FILES: u64 = 200;

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. When all places are taken, one leaves for each that comes.
    pub connections: usize,
    /// From a connection's start to its first byte, and from there to the end of its TLS
    /// handshake.
    pub handshake: Duration,
    /// From the end of the handshake, or of a request, to the end of the next request's
    /// headers. Longer than the API server keeps idle connections (90 s), so that it never
    /// meets one that we close.
    pub header: Duration,
    /// From a request's headers to the end of its body.
    pub body: Duration,
    /// From a request's headers to its answer.
    pub request: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub send: Duration,
    /// Between a silent HTTP/2 connection's last sign of life and the ping that asks for one.
    pub keep_alive: Duration,
    /// The bytes of a body.
    pub body_bytes: usize,
    /// The bytes of all bodies at a time, from before they are read until they are answered.
    /// Requests whose bodies would be more wait.
    pub all_bodies_bytes: usize,
    /// How long a shutdown goes on taking connections, so that whoever sends them can learn
    /// that it has begun.
    pub shutdown_delay: Duration,
    /// Until a shutdown stops to wait for running requests.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            connections: 1_000,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(120),
            body: Duration::from_secs(5),
            request: Duration::from_secs(10),
            send: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            body_bytes: LONGEST_BODY,
            all_bodies_bytes: 32 * MIB,
            shutdown_delay: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Raises this process's limit of open files to what the connections need, as far as the
    /// system lets it, and takes fewer connections where that is not enough.
    #[must_use]
    pub fn within_open_files(mut self) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let needed = self.connections as u64 + OTHER_FILES;
        let allowed = limit.maximum.unwrap_or(u64::MAX).min(needed);
        // `None` stands for no limit.
        let mut current = limit.current.unwrap_or(u64::MAX);
        if current < allowed {
            let raised = Rlimit {
                current: Some(allowed),
                maximum: limit.maximum,
            };
            match setrlimit(Resource::Nofile, raised) {
                Ok(()) => current = allowed,
                Err(error) => tracing::warn!(%error, "the limit of open files can't be raised"),
            }
        }
        if current < needed {
            // Half of what there is at least, for the rest of the process has to live too.
            let places = current.saturating_sub(OTHER_FILES).max(current / 2);
            self.connections = usize::try_from(places).unwrap_or(usize::MAX);
            tracing::warn!(
                "only {} connections at a time instead of {}, because this process may open {current} \
                 files; raise the limit (ulimit -n) to {needed}",
                self.connections,
                needed - OTHER_FILES,
            );
        }
        self
    }
}
