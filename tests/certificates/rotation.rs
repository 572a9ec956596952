//! Three replicas of the webhook share a certificate that they make and renew by themselves,
//! on a real API server that has to trust it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::{Value, json};
use sgp::dev::{Sandbox, SandboxOptions};

use crate::server::{binaries, metrics};
use crate::waiting::eventually;

const CONFIGURATIONS: [&str; 2] = [
    "mutatingwebhookconfiguration/vpc-resource-mutating-webhook",
    "validatingwebhookconfiguration/vpc-resource-validating-webhook",
];
const KINDS: [&str; 2] = [
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];
const SECRET: [&str; 2] = ["--namespace=sgp-system", "secret/sgp-webhook-certificates"];
const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";

/// An API server need not know a bundle sooner than this after it was written; the grace of
/// certificates that live for 20 s is half a second longer.
const LAG: Duration = Duration::from_millis(1_500);

/// A sandbox with three replicas of the webhook.
struct Cluster {
    sandbox: Sandbox,
    ports: Vec<u16>,
    metrics_ports: Vec<u16>,
}

impl Cluster {
    fn start(lifetime: &str) -> Self {
        let options = SandboxOptions {
            webhook_replicas: 3,
            webhook_arguments: vec![format!("--certificate-lifetime={lifetime}")],
            ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let sandbox = runtime.block_on(Sandbox::start(&binaries(), options, |_| ()));
        let mut sandbox = sandbox.unwrap_or_else(|error| panic!("{error:#}"));
        let replicas = sandbox.webhooks().iter();
        let (ports, metrics_ports) = replicas.map(|it| (it.port(), it.metrics_port())).unzip();
        let cluster = Self {
            sandbox,
            ports,
            metrics_ports,
        };
        for port in &cluster.ports {
            eventually("all replicas to be ready", || {
                cluster.is_ready(*port).then_some(())
            });
        }
        cluster
    }

    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = self.sandbox.control_plane().kubectl();
        let output = command.args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}:\n{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn get(&self, arguments: &[&str]) -> Value {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        serde_json::from_str(&self.kubectl(&arguments)).unwrap()
    }

    /// The different bundles that entries have, as PEM. An entry without one gives `None`.
    fn bundles(&self) -> BTreeSet<Option<String>> {
        let mut bundles = BTreeSet::new();
        for configuration in CONFIGURATIONS {
            let configuration = self.get(&[configuration]);
            for webhook in configuration["webhooks"].as_array().unwrap() {
                let bundle = webhook["clientConfig"]["caBundle"].as_str();
                let decoded = bundle.map(|it| STANDARD.decode(it).unwrap());
                bundles.insert(decoded.map(|it| String::from_utf8(it).unwrap()));
            }
        }
        bundles
    }

    fn is_ready(&self, port: u16) -> bool {
        let mut bundles = self.bundles().into_iter();
        let Some(Some(bundle)) = bundles.next() else {
            return false;
        };
        get(port, "/readyz", &bundle).is_ok_and(|(status, _)| status.contains("200"))
    }

    /// The certificate that all replicas serve and all entries trust, once it is one.
    fn common_certificate(&self) -> Vec<u8> {
        eventually("a certificate that all serve and trust", || {
            let mut served = BTreeSet::new();
            for bundle in self.bundles() {
                for port in &self.ports {
                    served.insert(get(*port, "/healthz", bundle.as_deref()?).ok()?.1);
                }
            }
            (served.len() == 1).then(|| served.into_iter().next().unwrap())
        })
    }

    fn apply(&self, object: &Value) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), object.to_string()).unwrap();
        self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    /// A namespace all of whose pods get an interface.
    fn namespace(&self, name: &str, enforced: bool) {
        let label = if enforced { "true" } else { "false" };
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"vpcresources.k8s.aws/enforce": label}}
        }));
        self.apply(&json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicy",
            "metadata": {"name": "all", "namespace": name},
            "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-0123456789abcdef0"]}}
        }));
        let namespace = format!("--namespace={name}");
        self.kubectl(&[
            "wait",
            "--for=create",
            "--timeout=120s",
            &namespace,
            "serviceaccount/default",
        ]);
    }

    /// Calls of our webhooks that failed, as the API server counts them.
    fn failed_calls(&self) -> f64 {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"]);
        let ours = metrics.lines().filter(|line| line.contains("vpc.k8s.aws"));
        let failed = ours.filter(|line| {
            line.starts_with("apiserver_admission_webhook_fail_open_count{")
                || line.starts_with("apiserver_admission_webhook_rejection_count{")
                    && !line.contains(r#"error_type="no_error""#)
        });
        let values = failed.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.sum()
    }

    /// How often each replica has changed its certificate.
    fn changes(&self) -> Vec<usize> {
        let count = |port: &u16| {
            let text = metrics(*port);
            let mut lines = text.lines();
            let value = lines.find_map(|it| it.strip_prefix("sgp_certificate_changes_total "));
            value.unwrap().parse().unwrap()
        };
        self.metrics_ports.iter().map(count).collect()
    }

    /// Waits until all replicas show this of a kind of configuration.
    fn until_all_miss(&self, kind: &str, number: u8) {
        let line = format!("sgp_webhook_configurations_missing{{kind=\"{kind}\"}} {number}");
        eventually(&line, || {
            let mut texts = self.metrics_ports.iter().map(|port| metrics(*port));
            let all = texts.all(|text| text.lines().any(|it| it == line));
            all.then_some(())
        });
    }

    fn logs(&mut self) -> String {
        let replicas = self.sandbox.webhooks().iter_mut();
        let logs = replicas.map(|it| std::fs::read_to_string(it.process().log_path()).unwrap());
        logs.collect()
    }

    /// Calls all replicas over new connections for as long as `work` takes, trusting what the
    /// entries say, as an API server does that learns of a change a while later. Gives what
    /// went wrong, and how many calls there were.
    fn called_while<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<String>, usize) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let (mut problems, mut calls) = (Vec::new(), 0);
                // On until a call has counted, however busy the machine is.
                while !is_over.load(Ordering::Relaxed) || calls == 0 {
                    let known = Instant::now();
                    let bundles = self.bundles();
                    thread::sleep(LAG / 3);
                    for (bundle, port) in bundles
                        .iter()
                        .flat_map(|it| self.ports.iter().map(move |port| (it, port)))
                    {
                        // Somebody has applied it anew: no certificate can be right.
                        let Some(bundle) = bundle else { continue };
                        let answer = get(*port, "/healthz", bundle);
                        // On a busy machine a call may come too late to mean anything.
                        if known.elapsed() < LAG {
                            calls += 1;
                            problems.extend(answer.err().map(|it| it.to_string()));
                        }
                    }
                }
                (problems, calls)
            });
            // Also if it panics, or the caller would never end.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            is_over.store(true, Ordering::Relaxed);
            let (problems, calls) = caller.join().unwrap();
            let done = done.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
            (done, problems, calls)
        })
    }
}

/// The status line that a client gets that trusts these CAs, and the server's certificate.
fn get(port: u16, path: &str, bundle: &str) -> io::Result<(String, Vec<u8>)> {
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        trusted.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default().to_owned();
    let certificate = connection.peer_certificates().unwrap()[0].to_vec();
    Ok((status, certificate))
}

fn seconds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn three_replicas_renew_one_certificate_and_no_call_fails() {
    let length = Duration::from_secs(seconds("SGP_ROTATION_SECONDS", 45));
    let lifetime = seconds("SGP_LIFETIME_SECONDS", 20);
    let cluster = Cluster::start(&format!("{lifetime}s"));
    cluster.namespace("enforced", true);
    cluster.namespace("open", false);
    cluster.common_certificate();
    let pod = |namespace: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "web-", "namespace": namespace},
            "spec": {"containers": [{"name": "web", "image": "web"}]}
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let create = |namespace: &str| {
        let file = folder.path().join(namespace);
        std::fs::write(&file, pod(namespace).to_string()).unwrap();
        let created = cluster.kubectl(&["create", "-o", "json", "-f", file.to_str().unwrap()]);
        let created: Value = serde_json::from_str(&created).unwrap();
        created["spec"]["containers"][0]["resources"]["limits"][POD_ENI] == "1"
    };
    // The API server knows all of this a moment later.
    for namespace in ["enforced", "open"] {
        eventually("pods to be asked about", || create(namespace).then_some(()));
    }

    let (failed, changed) = (cluster.failed_calls(), cluster.changes());
    let (created, problems, calls) = cluster.called_while(|| {
        let (begin, mut created) = (Instant::now(), 0);
        while begin.elapsed() < length {
            for namespace in ["enforced", "open"] {
                assert!(
                    create(namespace),
                    "let in unasked after {:?}",
                    begin.elapsed()
                );
                created += 1;
            }
        }
        created
    });

    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(
        cluster.failed_calls(),
        failed,
        "calls of the API server failed"
    );
    let changes: Vec<_> = cluster.changes();
    let renewals: Vec<_> = changes
        .iter()
        .zip(&changed)
        .map(|(now, then)| now - then)
        .collect();
    println!("{created} pods, {calls} calls of our own, renewals {renewals:?}, none failed");
    let least = usize::try_from(length.as_secs() / lifetime).unwrap();
    assert!(renewals.iter().all(|it| *it >= least), "{renewals:?}");
    assert!(calls > 0 && created > 0);
    cluster.common_certificate();
}

#[test]
fn lost_or_spoiled_secret_is_made_anew_while_serving_goes_on() {
    let mut cluster = Cluster::start("60s");
    let first = cluster.common_certificate();

    let (second, problems, calls) = cluster.called_while(|| {
        cluster.kubectl(&[&["delete"], &SECRET[..]].concat());
        eventually("another certificate", || {
            let now = cluster.common_certificate();
            (now != first).then_some(now)
        })
    });
    assert!(problems.is_empty() && calls > 0, "{problems:#?}");

    let spoil = r#"{"data": {"tls.crt": "Z2FyYmFnZQ=="}}"#;
    let ((), problems, calls) = cluster.called_while(|| {
        cluster.kubectl(&[&["patch", "-p", spoil], &SECRET[..]].concat());
        eventually("a Secret that can be read", || {
            let data = &cluster.get(&SECRET)["data"];
            let certificate = STANDARD.decode(data["tls.crt"].as_str().unwrap()).unwrap();
            CertificateDer::from_pem_slice(&certificate).ok()
        });
        eventually("another certificate", || {
            (cluster.common_certificate() != second).then_some(())
        });
    });
    assert!(problems.is_empty() && calls > 0, "{problems:#?}");

    let logs = cluster.logs();
    for problem in ["it is gone", "tls.crt can't be read"] {
        let message = format!("Secret sgp-system/sgp-webhook-certificates: {problem}");
        assert!(logs.contains(&message), "{message}\n{logs}");
    }
    let key = cluster.get(&SECRET)["data"]["tls.key"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!logs.contains("PRIVATE KEY") && !logs.contains(&key));
}

#[test]
fn configuration_that_is_applied_anew_gets_its_bundle_back_and_is_missed_meanwhile() {
    let mut cluster = Cluster::start("90d");
    let served = cluster.common_certificate();
    for kind in KINDS {
        cluster.until_all_miss(kind, 0);
    }
    // The sandbox starts the replicas first.
    let before = cluster.logs();
    for (configuration, kind) in CONFIGURATIONS.into_iter().zip(KINDS) {
        // Without what the API server and the webhook have added.
        let mut bare = cluster.get(&[configuration]);
        let name = bare["metadata"]["name"].clone();
        bare["metadata"] = json!({"name": name});
        for webhook in bare["webhooks"].as_array_mut().unwrap() {
            let client = webhook["clientConfig"].as_object_mut().unwrap();
            client.remove("caBundle").unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bare.to_string()).unwrap();
        let file = file.path().to_str().unwrap();

        cluster.kubectl(&["replace", "-f", file]);
        assert_eq!(cluster.common_certificate(), served, "replaced");
        cluster.kubectl(&["delete", configuration]);
        cluster.until_all_miss(kind, 1);
        cluster.kubectl(&["create", "-f", file]);
        assert_eq!(cluster.common_certificate(), served, "deleted and created");
        cluster.until_all_miss(kind, 0);
    }

    let logs = cluster.logs();
    for (configuration, kind) in CONFIGURATIONS.into_iter().zip(KINDS) {
        let shown = format!("{kind} {}", configuration.split_once('/').unwrap().1);
        for told in ["is not there: ", "is there now"] {
            let text = format!("{shown} {told}");
            let times = |logs: &str| logs.matches(&text).count();
            let more = times(&logs) - times(&before);
            assert_eq!(more, 3, "{text} once of each replica\n{logs}");
        }
    }
}
