//! What a running process tells about itself.

pub mod logs;
pub mod metrics;
