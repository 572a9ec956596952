//! Security groups for Kubernetes pods.
pub mod api;
pub mod dev;
pub mod policy;
pub mod telemetry;
pub mod tls;
pub mod webhook;
