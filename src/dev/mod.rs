//! A whole cluster on one machine: what `sgp dev` runs and the integration tests stand on.

pub mod allocator;
pub mod churn;
pub mod cloud;
pub mod control_plane;
pub mod demo;
mod manifests;
pub mod nodes;
pub mod pod_watch;
pub mod private_file;
pub mod sandbox;
mod service;
pub mod webhook;

pub use sandbox::{ClientCertificate, CloudOptions, InstanceFate, Sandbox, SandboxOptions};
pub use webhook::{Replica, ReplicaOptions};
