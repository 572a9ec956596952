//! Serving certificates: where they come from, and how clients come to trust them.
//!
//! Either the replicas make them together (`self_managed`, in the order of `rotation`), or they
//! are in files that somebody else renews (`files`). `serving` is what the running server
//! presents. Who may call is in `client_ca` and `caller`. certs/README.md tells users the same.
//!
//! Private keys never leave this module but into the Secret and into rustls' own types, which
//! don't print them.

mod ca_bundle;
mod caller;
mod certificate;
mod client_ca;
mod files;
mod pair;
pub mod rotation;
mod secret;
mod self_managed;
mod serving;

pub use caller::{Caller, CallerRefusal, ClientName};
pub use certificate::{CertificateError, Refusal, ServingCertificate, Validity};
pub use client_ca::{ClientCa, ClientCaError};
pub use files::CertificateFiles;
pub use pair::{Pair, PairError};
pub use self_managed::{SelfManaged, WebhookConfigurations};
pub use serving::Serving;
