//! Security groups for Kubernetes pods.
//!
//! A pod's way through this crate: the API server sends it to the [`webhook`], over a
//! connection that [`tls`] makes trustworthy, before it stores it. The webhook reads the few
//! fields that matter and asks [`policy`] which SecurityGroupPolicies (one of the resources
//! in [`api`]) select the pod and what follows from that. The answer goes back as a patch,
//! as warnings or as a refusal, and [`telemetry`] counts it. Once the scheduler has bound the
//! pod to a node, the [`allocator`] makes a network interface with the groups through
//! [`ec2`], and names it in the pod's annotation.
//!
//! In reading order:
//!
//! * [`api`]: the shapes and names that other programs see.
//! * [`policy`]: which security groups a pod gets, and why; pure.
//! * [`webhook`]: admission over HTTP.
//! * [`server`]: HTTPS, every step bounded in time.
//! * [`tls`]: serving certificates.
//! * [`allocator`]: trunk and branch interfaces, from the plan to the calls, and the socket
//!   on which the webhook asks.
//! * [`ec2`]: calls to Amazon EC2, and a simulator of it.
//! * [`api_server`]: reading the Kubernetes API server.
//! * [`telemetry`]: logs and metrics.
//! * [`dev`]: a whole cluster on one machine, to try all that and to test it.
//! * [`listen`] and [`accept`]: taking ports and connections, for every server here.
//! * [`cli`]: flags and wiring.
//!
//! Imports run one way: `cli` and `dev` use everything; `webhook` and `allocator` use
//! `policy`, `api_server`, `telemetry` and `api`, the allocator `ec2` besides; `api_server`
//! uses `policy` and `api`; `policy` uses `api`; `ec2` none of them.

pub mod accept;
pub mod allocator;
pub mod api;
pub mod api_server;
pub mod cli;
pub mod dev;
pub mod ec2;
pub mod listen;
pub mod policy;
pub mod server;
pub mod telemetry;
pub mod tls;
pub mod webhook;
