//! A server in the webhook's place that lets all in and notes what the API server asks it, to
//! see what an entry of our manifests selects.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use sgp::dev::Sandbox;
use tokio_rustls::TlsAcceptor;

use crate::cluster::{Namespace, eventually, kubectl};
use crate::https::block_on;

const VALIDATING: &str = include_str!("../../manifests/base/validating-webhook.yaml");

/// An entry of our manifests that is registered once more, for one namespace only. It goes with
/// the handle.
pub struct Registration {
    sandbox: &'static Sandbox,
    name: String,
}

impl Registration {
    /// Registers the entry with this server in the webhook's place. It fails closed, so that
    /// a condition that can't be evaluated shows.
    pub fn new(entry: &str, namespace: &Namespace, port: u16, ca_bundle: &str) -> Self {
        let manifest: Value = serde_saphyr::from_str(VALIDATING).unwrap();
        let entries = manifest["webhooks"].as_array().unwrap().iter();
        let mut entry = entries
            .clone()
            .find(|one| one["name"] == entry)
            .unwrap()
            .clone();
        let path = entry["clientConfig"]["service"]["path"].as_str().unwrap();
        let url = format!("https://127.0.0.1:{port}{path}");
        entry["clientConfig"] = json!({"url": url, "caBundle": STANDARD.encode(ca_bundle)});
        entry["failurePolicy"] = json!("Fail");
        entry["namespaceSelector"] =
            json!({"matchLabels": {"kubernetes.io/metadata.name": namespace.name}});
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"generateName": "again-"},
            "webhooks": [entry]
        });
        let arguments = ["create", "-o", "json", "-f", "-"];
        let created = kubectl(namespace.sandbox, &arguments, Some(&configuration)).ok();
        let name = created.json()["metadata"]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        Self {
            sandbox: namespace.sandbox,
            name,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let arguments = ["delete", "validatingwebhookconfiguration", &self.name];
        kubectl(self.sandbox, &arguments, None);
    }
}

/// The calls that the API server makes for an entry.
pub struct Recorder {
    calls: Arc<Mutex<Vec<String>>>,
    _registration: Registration,
}

impl Recorder {
    /// Starts it, and waits until the API server calls it for `probe`, in a dry run.
    pub fn start(entry: &str, namespace: &Namespace, probe: &Value) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (port, certificate) = serve(calls.clone());
        let recorder = Self {
            _registration: Registration::new(entry, namespace, port, &certificate),
            calls,
        };
        eventually("the API server to call the recorder", || {
            namespace.dry_run(probe).ok();
            (!recorder.take().is_empty()).then_some(())
        });
        recorder
    }

    /// What was called for since the last time, such as `CREATE Deployment web`. The API server
    /// may ask twice for one change, if another comes in between; that is one here.
    pub fn take(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.dedup();
        calls
    }
}

/// Serves on a thread of its own, and gives its port and its certificate.
fn serve(calls: Arc<Mutex<Vec<String>>>) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, calls) = (acceptor.clone(), calls.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| answer(request, &calls));
                    // The API server ends it whenever it likes.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    (port, made.cert.pem())
}

async fn answer(
    request: Request<Incoming>,
    calls: &Mutex<Vec<String>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let request = &review["request"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let call = [
        text(&request["operation"]),
        text(&request["kind"]["kind"]),
        text(&request["name"]),
    ];
    calls.lock().unwrap().push(call.join(" "));
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": request["uid"], "allowed": true}
    });
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(answer.to_string().into()).unwrap())
}
