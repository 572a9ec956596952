//! Security groups for Kubernetes pods.
//!
//! A pod's way through this crate: the API server sends it to the [`webhook`], over a
//! connection that [`tls`] makes trustworthy, before it stores it. The webhook reads the few
//! fields that matter and asks [`policy`] which SecurityGroupPolicies (one of the resources
//! in [`api`]) select the pod and what follows from that. The answer goes back as a patch,
//! as warnings or as a refusal, and [`telemetry`] counts it.
//!
//! In reading order:
//!
//! * [`api`]: the shapes and names that other programs see.
//! * [`policy`]: which security groups a pod gets, and why; pure.
//! * [`webhook`]: admission over HTTP.
//! * [`tls`]: serving certificates.
//! * [`allocator`]: the plan for a node's trunk and branch interfaces; pure, and nothing
//!   carries it out yet. The socket on which it answers the webhook.
//! * [`ec2`]: what Amazon EC2 is like, and a simulator of it.
//!   carries it out yet.
//! * [`ec2`]: calls to Amazon EC2, and a simulator of it.
//! * [`telemetry`]: logs and metrics.
//! * [`dev`]: a whole cluster on one machine, to try all that and to test it.
//! * [`accept`]: taking connections, for every server here.
//! * [`cli`]: flags and wiring.
//!
//! Imports run one way: `cli` and `dev` use everything, `webhook` uses `policy`,
//! `telemetry` and `api`, `allocator` uses `policy`, `ec2` and `api`, `policy` uses `api`,
//! `ec2` none of them.

pub mod accept;
pub mod allocator;
pub mod api;
pub mod api_server;
pub mod cli;
pub mod dev;
pub mod ec2;
pub mod policy;
pub mod telemetry;
pub mod tls;
pub mod webhook;
