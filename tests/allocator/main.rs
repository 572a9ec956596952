//! What the allocator does for pods and nodes: the real control plane, scheduler and program,
//! with the simulated EC2.

#[path = "../support/stage.rs"]
mod stage;

mod life;
