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

// They begin in the order of their names, which lets the longest begin early.
mod absent_webhook;
mod api_server;
mod by_hand;
mod churn;
mod ec2_outages;
mod handover;
mod pace;
mod restarts;
mod single_calls;
mod start;
