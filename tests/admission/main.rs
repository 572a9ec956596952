//! What users get when they create pods: the real API server, the real `kubectl` and the
//! real webhook, one control plane for all tests and a namespace for each.

#[macro_use]
#[path = "../support/documented.rs"]
mod documented;
#[path = "../support/stopwatch.rs"]
mod stopwatch;
#[path = "../support/waiting.rs"]
mod waiting;

mod allocator;
mod annotation_guard;
mod calls;
mod cluster;
mod definition;
mod documented_pods;
mod final_check;
mod forced_deletion;
mod https;
mod match_conditions;
mod mutation;
mod neighbour;
mod networks;
mod node_guard;
mod policies;
mod protocol;
mod recorder;
mod refusal;
mod selection;
mod shutdown;
mod too_long;
mod warnings;
mod workload_templates;
mod workloads;
