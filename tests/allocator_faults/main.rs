//! What becomes of pods when EC2, the API server, the webhook or the allocator itself fails:
//! the real control plane and programs, with the simulated EC2.
//!
//! With `SGP_LONG_FAULTS=1` outages last three minutes instead of 3 and 30 seconds.

#[macro_use]
#[path = "../support/documented.rs"]
mod documented;
#[path = "../support/stage.rs"]
mod stage;

mod burst;

mod api_server;
mod by_hand;
mod handover;
mod outages;
mod pace;
mod restarts;
mod single_calls;
mod webhook;
