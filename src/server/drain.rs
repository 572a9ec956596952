//! The end of a server, in an order that loses no call.
//!
//! 1. Open.
//! 2. Leaving: readiness is gone already, and whoever sends connections here learns of that by
//!    and by. Until then new ones are served, and those that are there are led away: an HTTP/2
//!    connection by GOAWAY, one of HTTP/1.1 by `Connection: close` in its next answer. To close
//!    one that is idle would lose the request that its client may be sending just then.
//! 3. Closing: no new connections. What runs is finished, what is idle is closed.

use std::time::Duration;

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Phase {
    Open,
    Leaving,
    Closing,
}

/// What connections know of the end. It is gone when the last of them is.
#[derive(Debug)]
pub(super) struct End(watch::Receiver<Phase>);

/// Leads the end.
#[derive(Debug)]
pub(super) struct Drain(watch::Sender<Phase>);

impl Drain {
    pub(super) fn new() -> (Self, End) {
        let (sender, receiver) = watch::channel(Phase::Open);
        (Self(sender), End(receiver))
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// Waits until no connection is left.
    pub(super) async fn done(&self) {
        self.0.closed().await;
    }
}

impl End {
    pub(super) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits for this phase, or a later one.
    pub(super) async fn reaches(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // A server that is gone is past all phases.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }

    /// Waits until so long after connections are no longer taken.
    pub(super) async fn closing_for(&self, grace: Duration) {
        self.reaches(Phase::Closing).await;
        tokio::time::sleep(grace).await;
    }
}
