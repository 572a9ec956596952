//! Reading the Kubernetes API server: watches that go on whatever happens, and consistent
//! lists for what must not be decided from a watch.

mod follow;
pub mod policies;

pub use follow::{Feed, follow, is_not_found};
