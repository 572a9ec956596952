//! Certificates of the webhook: made and renewed by its replicas, or from files.

mod api_server;
mod cert_manager;
mod clients;
mod files;
mod rotation;
mod script;
mod server;
#[path = "../support/waiting.rs"]
mod waiting;
