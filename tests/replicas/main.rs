//! Several replicas of the webhook behind one Service: none decides by what it does not know
//! yet.

mod cluster;
mod metrics;
mod proxy;
mod races;
mod readiness;
