//! `certs/make.sh` makes what `sgp webhook --tls-cert --tls-key` serves with.

#[path = "support/waiting.rs"]
mod waiting;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, Stream,
    SupportedProtocolVersion,
};

use serde_json::json;
use sgp::dev::control_plane::{Binaries, ControlPlane, Options, Process, ProcessGroup, free_port};
use waiting::eventually;

/// The name that the API server calls the webhook by.
const NAME: &str = "sgp-webhook.sgp-system.svc";

const PATIENCE: Duration = Duration::from_secs(60);

const TLS_VERSIONS: [(&SupportedProtocolVersion, ProtocolVersion); 2] = [
    (&TLS12, ProtocolVersion::TLSv1_2),
    (&TLS13, ProtocolVersion::TLSv1_3),
];

#[test]
fn client_that_trusts_the_ca_is_served_over_tls_1_2_and_1_3() {
    let files = Files::made(&[NAME, "127.0.0.1"]);
    let webhook = Webhook::serving(&files, &files);

    for (version, agreed) in TLS_VERSIONS {
        for name in [NAME, "127.0.0.1"] {
            let answer = webhook.get("/healthz", name, &[version], files.trusted());
            let (status, spoken) = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((status.as_str(), spoken), ("HTTP/1.1 200 OK", agreed));
        }
    }
    // No API server answers, so that nothing can be decided yet.
    let (status, _) = webhook
        .get("/readyz", NAME, &[&TLS13], files.trusted())
        .unwrap();
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
}

#[test]
fn client_without_the_ca_or_with_another_name_turns_away() {
    let files = Files::made(&[NAME]);
    let other = Files::made(&[NAME]);
    let webhook = Webhook::serving(&files, &files);

    for (trusted, name, problem) in [
        (RootCertStore::empty(), NAME, "UnknownIssuer"),
        (other.trusted(), NAME, "certificate"),
        (files.trusted(), "elsewhere.sgp-system.svc", "not valid for"),
        (files.trusted(), "127.0.0.1", "not valid for"),
    ] {
        for (version, _) in TLS_VERSIONS {
            let error = webhook
                .get("/healthz", name, &[version], trusted.clone())
                .expect_err(name)
                .to_string();
            assert!(error.contains("invalid peer certificate"), "{error}");
            assert!(error.contains(problem), "{error} lacks {problem}");
        }
    }
}

#[test]
fn go_client_as_in_the_api_server_trusts_the_certificate() {
    let files = Files::made(&["127.0.0.1"]);
    let webhook = Webhook::serving(&files, &files);
    let kubectl = |ca: &Path| {
        Command::new(binaries().kubectl)
            .args(["get", "--raw", "/healthz"])
            .arg(format!("--server=https://127.0.0.1:{}", webhook.port))
            .arg(format!("--certificate-authority={}", ca.display()))
            // Without any, it would ask for a user.
            .arg("--token=none")
            .env("KUBECONFIG", "/dev/null")
            .env("KUBERC", "off")
            .output()
            .unwrap()
    };
    webhook
        .get("/healthz", "127.0.0.1", &[&TLS13], files.trusted())
        .unwrap();

    let answer = kubectl(&files.path("ca.crt"));
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "ok", "{answer:?}");

    let other = Files::made(&["127.0.0.1"]);
    let answer = kubectl(&other.path("ca.crt"));
    let text = String::from_utf8_lossy(&answer.stderr);
    assert!(text.contains("certificate"), "{text}");
    assert!(!answer.status.success());
}

#[test]
fn key_of_another_certificate_ends_the_webhook_with_a_message() {
    let files = Files::made(&[NAME]);
    let other = Files::made(&[NAME]);
    let mut webhook = Webhook::serving(&files, &other);

    let status = eventually("the end of the webhook", || {
        webhook.process.try_wait().unwrap()
    });

    assert_eq!(status.code(), Some(1));
    let log = webhook.process.last_log_lines();
    assert!(
        log.contains("error: the certificate can't be served with its key"),
        "{log}"
    );
}

#[test]
fn script_keeps_the_key_private_and_overwrites_nothing() {
    let files = Files::made(&[NAME]);
    let key = files.path("tls.key");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut names: Vec<_> = fs::read_dir(files.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["ca.crt", "tls.crt", "tls.key"],
        "the CA's key is gone"
    );
    assert_eq!(mode(&key), 0o600);
    let before = fs::read(&key).unwrap();

    let folder = files.folder.path().to_str().unwrap();
    let again = make_sh(&[folder, NAME]);

    assert_eq!(again.status.code(), Some(1));
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(text.contains("is not overwritten"), "{text}");
    assert_eq!(fs::read(&key).unwrap(), before);
}

#[test]
fn script_refuses_what_it_does_not_understand() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for (arguments, message) in [
        (&[][..], "no folder"),
        (&["--days", "0", folder], "whole number"),
        (&["--days=soon", folder], "whole number"),
        (&["--day", folder], "unknown option --day"),
        (&[folder, "a.svc,IP:0.0.0.0"], "neither a DNS name nor"),
        (&[folder, ""], "neither a DNS name nor"),
    ] {
        let output = make_sh(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
        assert!(!Path::new(folder).join("tls.key").exists());
    }
}

#[tokio::test]
async fn printed_commands_bring_the_files_into_a_cluster() {
    let control_plane = ControlPlane::start(&binaries(), Options::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let kubectl = |arguments: &[&str]| succeeded(control_plane.kubectl().args(arguments));
    for manifest in ["namespace.yaml", "mutating-webhook.yaml"] {
        let path = format!("{}/manifests/base/{manifest}", env!("CARGO_MANIFEST_DIR"));
        kubectl(&["apply", "--server-side", "-f", &path]);
    }
    let files = Files::made(&[NAME]);
    let commands: String = files
        .told
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| format!("{line}\n"))
        .collect();

    let program = control_plane.kubectl().get_program().to_owned();
    let folder = Path::new(&program).parent().unwrap();
    let path = env::join_paths(
        [folder.to_owned()]
            .into_iter()
            .chain(env::split_paths(&env::var_os("PATH").unwrap())),
    );
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", &commands])
        .env("PATH", path.unwrap())
        .env("KUBECONFIG", control_plane.kubeconfig());
    succeeded(&mut shell);

    let get = |what: &[&str]| -> serde_json::Value {
        let arguments = [&["get", "-o", "json"], what].concat();
        serde_json::from_str(&kubectl(&arguments)).unwrap()
    };
    let base64 = |file: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(fs::read(files.path(file)).unwrap())
    };
    let configuration = get(&[
        "mutatingwebhookconfiguration",
        "vpc-resource-mutating-webhook",
    ]);
    let webhooks = configuration["webhooks"].as_array().unwrap();
    assert_eq!(webhooks.len(), 3);
    for webhook in webhooks {
        assert_eq!(webhook["clientConfig"]["caBundle"], base64("ca.crt"));
    }
    let secret = get(&["secret", "--namespace=sgp-system", "sgp-webhook-tls"]);
    assert_eq!(secret["type"], "kubernetes.io/tls");
    for file in ["tls.crt", "tls.key"] {
        assert_eq!(secret["data"][file], base64(file));
    }
}

/// What one run of the script made.
struct Files {
    folder: tempfile::TempDir,
    /// What the script printed.
    told: String,
}

impl Files {
    fn made(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = make_sh(&[&[folder.path().to_str().unwrap()], names].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "certs/make.sh failed:\n{errors}");
        let told = String::from_utf8(output.stdout).unwrap();
        Self { folder, told }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn trusted(&self) -> RootCertStore {
        let mut trusted = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.path("ca.crt")).unwrap();
        trusted.add(ca).unwrap();
        trusted
    }
}

fn make_sh(arguments: &[&str]) -> Output {
    let openssl = Command::new("openssl").arg("version").output();
    if matches!(&openssl, Err(error) if error.kind() == ErrorKind::NotFound) {
        panic!(
            "there is no `openssl` on the PATH: install the package openssl, because \
             certs/make.sh makes certificates with it"
        );
    }
    Command::new("sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/certs/make.sh"))
        .args(arguments)
        .output()
        .unwrap()
}

/// A webhook without a cluster: its kubeconfig leads to a port on which nothing listens.
struct Webhook {
    process: Process,
    port: u16,
    _group: ProcessGroup,
}

impl Webhook {
    fn serving(certificate: &Files, key: &Files) -> Self {
        let group = ProcessGroup::new(&env::temp_dir(), "sgp-certificates-", None).unwrap();
        let kubeconfig = group.folder().join("kubeconfig");
        let server = format!("https://127.0.0.1:{}", free_port().unwrap());
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "nowhere",
            "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}],
            // Any CA, so that it needs none of this machine's.
            "clusters": [{"name": "nowhere", "cluster": {
                "server": server,
                "certificate-authority": certificate.path("ca.crt"),
            }}],
            "users": [{"name": "nobody", "user": {}}],
        });
        fs::write(&kubeconfig, content.to_string()).unwrap();

        let port = free_port().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
        command
            .args(["webhook", &format!("--listen=127.0.0.1:{port}")])
            .arg("--tls-cert")
            .arg(certificate.path("tls.crt"))
            .arg("--tls-key")
            .arg(key.path("tls.key"))
            .arg("--kubeconfig")
            .arg(kubeconfig);
        let process = group.spawn("webhook", command).unwrap();
        Self {
            process,
            port,
            _group: group,
        }
    }

    /// The status line of the answer and the TLS version that it came over.
    fn get(
        &self,
        path: &str,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
        trusted: RootCertStore,
    ) -> io::Result<(String, ProtocolVersion)> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name.clone()).unwrap();
        let mut socket = self.connect();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let host = name.to_str();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.lines().next().unwrap_or_default().to_owned();
        Ok((status, connection.protocol_version().unwrap()))
    }

    fn connect(&self) -> TcpStream {
        let socket = eventually("the webhook to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

fn binaries() -> Binaries {
    Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"))
}

fn succeeded(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{errors}");
    String::from_utf8(output.stdout).unwrap()
}
