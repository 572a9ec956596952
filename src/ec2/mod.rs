//! Amazon EC2 as this crate sees it.
//!
//! * [`calls`]: the calls that are made, as a trait, and [`error`], how they fail.
//! * [`client`]: the calls over AWS's own SDK; [`rate_limit`] says when each request goes
//!   out, [`hedging`] what happens to one without an answer, [`metrics`] how many there were.
//! * [`instance_limits`]: how many interfaces an instance type carries.
//! * [`simulator`]: a server that stands in for EC2, for development and tests.
//!
//! Nothing here knows of pods or policies.

pub mod calls;
pub mod client;
pub mod error;
pub mod hedging;
pub mod instance_limits;
pub mod metrics;
pub mod rate_limit;
pub mod simulator;
