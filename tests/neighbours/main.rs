//! Bad neighbours: whatever strangers do to the real webhook, they end in bounded time and
//! memory, and others are served meanwhile.
//!
//! Each test has a webhook of its own. Strangers come from 127.0.0.2 and up, others from
//! 127.0.0.1. No test asserts a speed; each waits, for as long as a busy machine may need.

#[path = "../support/shared_control_plane.rs"]
mod shared_control_plane;
#[path = "../support/waiting.rs"]
mod waiting;

mod bodies;
mod client;
mod connections;
mod http2;
mod webhook;
