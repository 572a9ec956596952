//! Several replicas of the webhook behind one Service: none decides by what it does not know
//! yet, and that one comes or goes is no failed call.

mod cluster;
mod load;
mod metrics;
mod proxy;
mod races;
mod readiness;
mod rolling_update;
mod rotation;
