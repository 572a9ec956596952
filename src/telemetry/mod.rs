//! What a running process tells about itself.

pub mod allocator;
pub mod logs;
pub mod metrics;
