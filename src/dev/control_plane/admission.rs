//! What tells the API server which client certificate to show an admission webhook.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::WebhookClient;

/// Writes an AdmissionConfiguration and the kubeconfig that it names into the folder, and says
/// where the first is. Both are YAML, and so is JSON.
pub(super) fn write(folder: &Path, client: &WebhookClient) -> io::Result<PathBuf> {
    let kubeconfig = folder.join("webhooks.kubeconfig");
    // The name of a user is the host that it is for. Nothing else of it is read.
    let users = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "users": [{"name": client.host, "user": {
            "client-certificate": std::path::absolute(&client.certificate)?,
            "client-key": std::path::absolute(&client.key)?,
        }}],
    });
    fs::write(&kubeconfig, format!("{users:#}\n"))?;

    let plugins = ["MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"].map(|name| {
        json!({"name": name, "configuration": {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": kubeconfig,
        }})
    });
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": plugins,
    });
    let path = folder.join("admission.yaml");
    fs::write(&path, format!("{configuration:#}\n"))?;
    Ok(path)
}
