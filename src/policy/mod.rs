//! Which security groups a pod gets, and why.
//!
//! Pure: nothing in here knows the network, a clock, EC2 or axum. Policies arrive as JSON,
//! are parsed once ([`compiled`]) and laid out for lookup ([`index`]); a pod is read from
//! its JSON ([`pod`]) and decided about ([`decision`]), with what the allocator says of EC2
//! ([`availability`]).

pub mod availability;
pub mod compiled;
pub mod decision;
pub mod field_error;
pub mod groups_per_interface;
pub mod index;
pub mod label_syntax;
pub mod labels;
pub mod overlap;
pub mod pod;
pub mod selector;
pub mod service_accounts;

pub use availability::{Availability, GroupElsewhere};
pub use compiled::{InvalidPolicy, Policy, PolicyProblem};
pub use decision::{
    Change, Concern, Decision, Denial, GracePeriodPolicy, MissingGroupPolicy, ServiceAccount,
    Settings, Unsupported, UnsupportedPodPolicy, check, decide,
};
pub use field_error::{FieldError, FieldErrorKind};
pub use groups_per_interface::GroupsPerInterface;
pub use index::{NamespacePolicies, PolicyIndex};
pub use overlap::Overlap;
pub use pod::Pod;
pub use selector::{Selector, SelectorError};
pub use service_accounts::ServiceAccountIndex;
