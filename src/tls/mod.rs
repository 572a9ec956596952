//! Serving certificates: where they come from, and how clients come to trust them.
//!
//! Private keys never leave this module but inside rustls' own types, which don't print
//! them.

pub mod ca_bundle;
pub mod certificate;

pub use certificate::{CertificateError, ServingCertificate};
