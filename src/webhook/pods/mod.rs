//! Pods: what they lack at their creation, and what they may not be or change.

mod annotation_guard;
mod creation;
mod forced_deletion;
pub mod messages;
mod mutate;
pub mod patch;
mod validate;

pub use mutate::{mutate_pod, mutate_pod_enforced};
pub use validate::{validate_pod, validate_pod_enforced};
