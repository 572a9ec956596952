//! A whole cluster on one machine: what `sgp dev` runs and the integration tests stand on.

pub mod control_plane;
pub mod demo;
pub mod private_file;
pub mod sandbox;

pub use sandbox::{Sandbox, SandboxOptions};
