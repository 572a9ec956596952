//! Who may call, on a real API server that shows the webhook a client certificate.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use sgp::dev::{ClientCertificate, Sandbox, SandboxOptions};

use crate::clients::{Authority, Client, OTHER_CA, with_client};
use crate::server::{NAME, ask, binaries, metrics};
use crate::waiting::eventually;

const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";

const NO_CERTIFICATE: &str = "this webhook answers only callers with a client certificate of the \
     CA in --client-ca; give the API server one for it, in a kubeconfig that its \
     AdmissionConfiguration names";

/// What a kubelet is told, whose certificate is of the cluster's CA too.
const OTHER_NAME: &str = "the client certificate of \"system:node:one\" is of the CA in \
     --client-ca, but --client-name lets in only \"kube-apiserver\"; give the API server one \
     with such a common name";

/// A cluster whose API server shows a certificate, and whose webhook asks for one of
/// `kube-apiserver`.
struct Cluster {
    sandbox: Sandbox,
    files: tempfile::TempDir,
}

impl Cluster {
    fn start(authority: &Authority) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        fs::write(path("ca.crt"), &authority.ca).unwrap();
        show(files.path(), &authority.client("kube-apiserver"));
        let options = SandboxOptions {
            webhook_arguments: vec![
                format!("--client-ca={}", path("ca.crt").display()),
                "--client-name=kube-apiserver".to_owned(),
            ],
            webhook_client: Some(ClientCertificate {
                certificate: path("client.crt"),
                key: path("client.key"),
            }),
            ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let sandbox = runtime.block_on(Sandbox::start(&binaries(), options, |_| ()));
        let sandbox = sandbox.unwrap_or_else(|error| panic!("{error:#}"));
        let cluster = Self { sandbox, files };
        for (namespace, enforced) in [("shop", "true"), ("open", "false")] {
            cluster.namespace(namespace, enforced);
        }
        cluster
    }

    /// A namespace all of whose pods get an interface, once there is a pod that does.
    fn namespace(&self, name: &str, enforced: &str) {
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": name,
                    "labels": {"vpcresources.k8s.aws/enforce": enforced},
                },
            },
            {
                "apiVersion": "vpcresources.k8s.aws/v1beta1",
                "kind": "SecurityGroupPolicy",
                "metadata": {"name": "all", "namespace": name},
                "spec": {
                    "podSelector": {},
                    "securityGroups": {"groupIds": ["sg-0123456789abcdef0"]},
                },
            },
        ]});
        self.kubectl(&["apply", "-f", "-"], &objects).unwrap();
        // The API server learns of all that, and of the service account, a moment later.
        eventually("pods to get an interface", || {
            let pod = self.try_pod(name).ok()?;
            gets_an_interface(&pod).then_some(())
        });
    }

    /// What a pod would be like, or why there can be none.
    fn try_pod(&self, namespace: &str) -> Result<Value, String> {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let printed = self.kubectl(&arguments, &pod(namespace))?;
        Ok(serde_json::from_str(&printed).unwrap())
    }

    fn kubectl(&self, arguments: &[&str], input: &Value) -> Result<String, String> {
        let mut command = self.sandbox.control_plane().kubectl();
        command.args(arguments);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let [printed, errors] =
            [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        if output.status.success() {
            Ok(printed)
        } else {
            Err(errors)
        }
    }

    /// The API server's certificate is another one, which it shows over new connections.
    fn show(&self, client: &Client) {
        show(self.files.path(), client);
    }

    /// Waits until a pod of a namespace that is enforced is refused with this text.
    #[track_caller]
    fn wait_for_refusal(&self, text: &str) {
        let wanted = format!(
            "failed calling webhook \"mpod-enforced.vpc.k8s.aws\": failed to call webhook: {text}"
        );
        let mut last = None;
        eventually("a pod to be refused", || {
            let tried = self.try_pod("shop");
            let is_wanted = matches!(&tried, Err(errors) if errors.contains(&wanted));
            if last.as_ref() != Some(&tried) {
                println!("{tried:?}");
                last = Some(tried);
            }
            is_wanted.then_some(())
        });
    }

    fn wait_for_an_interface(&self) {
        eventually("pods to get an interface again", || {
            let pod = self.try_pod("shop").ok()?;
            gets_an_interface(&pod).then_some(())
        });
    }

    /// How many requests were refused for this reason.
    fn refused(&self, reason: &str) -> u64 {
        let text = metrics(self.sandbox.metrics_port());
        let name = format!("sgp_callers_refused_total{{reason=\"{reason}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }

    /// How many lines of the webhook's log say that a caller was refused with this text.
    fn logged(&mut self, text: &str) -> usize {
        let log = fs::read_to_string(self.sandbox.webhook().log_path()).unwrap();
        let line = format!("refused a caller: {text}");
        log.lines().filter(|it| it.contains(&line)).count()
    }

    /// The answer of the webhook to a client that connects by itself.
    fn ask(&self, method: &str, path: &str, client: Option<&Client>) -> String {
        let configuration = self.kubectl(
            &[
                "get",
                "mutatingwebhookconfiguration/vpc-resource-mutating-webhook",
                "-o",
                "jsonpath={.webhooks[0].clientConfig.caBundle}",
            ],
            &Value::Null,
        );
        let bundle = STANDARD.decode(configuration.unwrap()).unwrap();
        let mut trusted = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bundle) {
            trusted.add(certificate.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted);
        let socket = TcpStream::connect(("127.0.0.1", self.sandbox.webhook_port())).unwrap();
        let answer = ask(socket, method, path, NAME, with_client(config, client));
        answer.unwrap().0
    }
}

fn show(folder: &Path, client: &Client) {
    for (name, content) in [
        ("client.crt", &client.certificate),
        ("client.key", &client.key),
    ] {
        // In one step, as the API server may read it just then.
        let new = folder.join("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, folder.join(name)).unwrap();
    }
}

fn pod(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "namespace": namespace},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    })
}

fn gets_an_interface(pod: &Value) -> bool {
    pod["spec"]["containers"][0]["resources"]["limits"][POD_ENI] == "1"
}

#[test]
fn api_server_that_is_configured_as_documented_is_answered_and_others_are_not() {
    let authority = Authority::new();
    let mut cluster = Cluster::start(&authority);
    assert_documented(&cluster);

    for namespace in ["shop", "open"] {
        let created = cluster.kubectl(&["create", "-o", "json", "-f", "-"], &pod(namespace));
        let created: Value = serde_json::from_str(&created.unwrap()).unwrap();
        assert!(gets_an_interface(&created), "{created:#}");
    }
    let reasons = ["no_certificate", "certificate", "name"];
    assert_eq!(reasons.map(|it| cluster.refused(it)), [0, 0, 0]);

    let kubelet = authority.client("system:node:one");
    let stranger = Authority::new().client("kube-apiserver");
    for (client, text) in [
        (None, NO_CERTIFICATE),
        (Some(&kubelet), OTHER_NAME),
        (Some(&stranger), OTHER_CA),
    ] {
        for path in ["/mutate-v1-pod", "/validate-v1-pod/enforced"] {
            let answer = cluster.ask("POST", path, client);
            assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
            assert!(answer.ends_with(text), "{answer}");
        }
        assert!(cluster.logged(text) > 0);
        for path in ["/healthz", "/readyz"] {
            let answer = cluster.ask("GET", path, client);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    }
    assert_eq!(reasons.map(|it| cluster.refused(it)), [2, 2, 2]);
    let expired = authority.expired_client("kube-apiserver");
    let answer = cluster.ask("POST", "/mutate-v1-pod", Some(&expired));
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    let text = "the client certificate of \"kube-apiserver\" expired at ";
    assert!(answer.contains(text), "{answer}");

    let itself = authority.client("kube-apiserver");
    let answer = cluster.ask("POST", "/mutate-v1-pod", Some(&itself));
    assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
}

#[test]
fn client_ca_that_changes_counts_for_open_connections_too() {
    let (old, new) = (Authority::new(), Authority::new());
    let cluster = Cluster::start(&old);
    let file = cluster.files.path().join("ca.crt");

    // As long as there are both, either certificate will do.
    fs::write(&file, format!("{}{}", old.ca, new.ca)).unwrap();
    eventually("both CAs to count", || {
        let answer = cluster.ask(
            "POST",
            "/mutate-v1-pod",
            Some(&new.client("kube-apiserver")),
        );
        answer.starts_with("HTTP/1.1 415 ").then_some(())
    });
    assert!(gets_an_interface(&cluster.try_pod("shop").unwrap()));

    fs::write(&file, &new.ca).unwrap();
    cluster.wait_for_refusal(OTHER_CA);

    cluster.show(&new.client("kube-apiserver"));
    cluster.wait_for_an_interface();
}

/// The configuration that the page gives is the one that the API server was started with.
fn assert_documented(cluster: &Cluster) {
    let readme = include_str!("../../certs/README.md");
    let blocks = readme.split("```yaml\n").skip(1);
    let documented: Vec<Value> = blocks
        .map(|block| block.split_once("```").unwrap().0)
        .map(|block| serde_saphyr::from_str(block).unwrap())
        .collect();
    let of_kind = |kind: &str| documented.iter().find(|it| it["kind"] == kind).unwrap();
    let (configuration, kubeconfig) = (of_kind("AdmissionConfiguration"), of_kind("Config"));
    let run_dir = cluster.sandbox.control_plane().run_dir();
    let used = |file: &str, folder: &Path| -> Value {
        let text = fs::read_to_string(run_dir.join(file)).unwrap();
        let text = text.replace(folder.to_str().unwrap(), "/etc/kubernetes/admission");
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(used("admission.yaml", run_dir), *configuration);
    let mut used = used("webhooks.kubeconfig", cluster.files.path());
    // Without a port it is for port 443, which is the Service's in a cluster.
    let host = &mut used["users"][0]["name"];
    let (name, _) = host.as_str().unwrap().split_once(':').unwrap();
    *host = json!(name);
    assert_eq!(used, *kubeconfig);
}
