//! Certificates of the webhook: made and renewed by its replicas, or from files.

mod cert_manager;
mod files;
mod rotation;
mod script;
mod server;
#[path = "../support/waiting.rs"]
mod waiting;
