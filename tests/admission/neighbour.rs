//! A webhook of somebody else, which this process serves: it changes what it is asked about, or
//! only notes it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::https::block_on;

/// A JSON patch of the object of this request to this path; none if it is empty.
type Change = dyn Fn(&str, &Value) -> Vec<Value> + Send + Sync;

/// Serves until the process ends.
pub struct Neighbour {
    port: u16,
    ca_bundle: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Neighbour {
    /// Answers with the patches of `change`.
    pub fn that_changes(
        change: impl Fn(&str, &Value) -> Vec<Value> + Send + Sync + 'static,
    ) -> Self {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key.into())
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::default();
        let (tls, change): (_, Arc<Change>) = (TlsAcceptor::from(Arc::new(tls)), Arc::new(change));
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || block_on(serve(listener, tls, change, notes)));
        Self {
            port,
            ca_bundle: BASE64.encode(pair.cert.pem()),
            asked,
        }
    }

    /// Lets everything be as it is.
    pub fn that_notes() -> Self {
        Self::that_changes(|_, _| Vec::new())
    }

    /// How the API server reaches a path.
    pub fn client_config(&self, path: &str) -> Value {
        let url = format!("https://127.0.0.1:{}{path}", self.port);
        json!({"url": url, "caBundle": self.ca_bundle})
    }

    /// What it was asked since the last time that this was called: path and request.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// An entry of a MutatingWebhookConfiguration that is called again after others.
    pub fn mutating_entry(&self, path: &str, rule: &Value, namespace: Option<&str>) -> Value {
        let labels = match namespace {
            Some(name) => json!({"kubernetes.io/metadata.name": name}),
            None => json!({}),
        };
        json!({
            "name": format!("{}.neighbour.example", path.trim_start_matches('/')),
            "clientConfig": self.client_config(path),
            "rules": [rule],
            "namespaceSelector": {"matchLabels": labels},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"]
        })
    }
}

async fn serve(
    listener: std::net::TcpListener,
    tls: TlsAcceptor,
    change: Arc<Change>,
    notes: Arc<Mutex<Vec<(String, Value)>>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, change, notes) = (tls.clone(), change.clone(), notes.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request: Request<Incoming>| {
                let (change, notes) = (change.clone(), notes.clone());
                async move { Ok::<_, Infallible>(answer(request, &*change, &notes).await) }
            });
            // How the API server ends its connections is its own affair.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    change: &Change,
    notes: &Mutex<Vec<(String, Value)>>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    let request = review["request"].take();
    let patch = change(&path, &request);
    review["response"] = json!({"uid": request["uid"], "allowed": true});
    if !patch.is_empty() {
        let patch = BASE64.encode(json!(patch).to_string());
        review["response"]["patchType"] = json!("JSONPatch");
        review["response"]["patch"] = json!(patch);
    }
    review.as_object_mut().unwrap().remove("request");
    notes.lock().unwrap().push((path, request));
    let response = Response::builder().header("content-type", "application/json");
    response
        .body(Full::new(Bytes::from(review.to_string())))
        .unwrap()
}

/// The rule of an entry for one operation on a resource of the core group.
pub fn rule(operation: &str, resource: &str) -> Value {
    json!({
        "operations": [operation], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": [resource]
    })
}

/// A configuration that comes after ours: the API server takes them in the order of their
/// names.
pub fn mutating(name: &str, entries: &[Value]) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": format!("zz-{name}")},
        "webhooks": entries
    })
}
