//! Which security groups a pod gets, and why.
//!
//! Pure: nothing in here knows the network, a clock, EC2 or axum.

pub mod label_syntax;
pub mod labels;
pub mod selector;

pub use selector::{Condition, Requirement, Selector, SelectorError};
