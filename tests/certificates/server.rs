//! A webhook that serves with files, and the script that makes them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use base64::Engine;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, Stream,
    SupportedProtocolVersion,
};
use serde_json::json;
use sgp::dev::control_plane::{Binaries, Process, ProcessGroup, free_port};

use crate::waiting::eventually;

/// The name that the API server calls the webhook by.
pub const NAME: &str = "sgp-webhook.sgp-system.svc";

const PATIENCE: Duration = Duration::from_secs(60);

pub const TLS_VERSIONS: [(&SupportedProtocolVersion, ProtocolVersion); 2] = [
    (&TLS12, ProtocolVersion::TLSv1_2),
    (&TLS13, ProtocolVersion::TLSv1_3),
];

/// What one run of the script made.
pub struct Files {
    pub folder: tempfile::TempDir,
    /// What the script printed.
    pub told: String,
}

impl Files {
    pub fn made(names: &[&str]) -> Self {
        Self::made_with(&[], names)
    }

    /// The same with options.
    pub fn made_with(options: &[&str], names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let output = make_sh(&[options, &[path], names].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "certs/make.sh failed:\n{errors}");
        let told = String::from_utf8(output.stdout).unwrap();
        Self { folder, told }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn trusted(&self) -> RootCertStore {
        let mut trusted = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.path("ca.crt")).unwrap();
        trusted.add(ca).unwrap();
        trusted
    }
}

pub fn make_sh(arguments: &[&str]) -> Output {
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
pub struct Webhook {
    pub process: Process,
    pub port: u16,
    _group: ProcessGroup,
}

impl Webhook {
    pub fn serving(certificate: &Files, key: &Files) -> Self {
        Self::with(&certificate.path("tls.crt"), &key.path("tls.key"), &[])
    }

    /// Serves with these files and with further arguments.
    pub fn with(certificate: &Path, key: &Path, arguments: &[&str]) -> Self {
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
                "certificate-authority-data": any_ca(),
            }}],
            "users": [{"name": "nobody", "user": {}}],
        });
        fs::write(&kubeconfig, content.to_string()).unwrap();

        let port = free_port().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
        command
            .args(["webhook", &format!("--listen=127.0.0.1:{port}")])
            .arg("--tls-cert")
            .arg(certificate)
            .arg("--tls-key")
            .arg(key)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(arguments);
        let process = group.spawn("webhook", command).unwrap();
        Self {
            process,
            port,
            _group: group,
        }
    }

    /// The status line of the answer and the TLS version that it came over.
    pub fn get(
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
        let (answer, version) = self.ask("GET", path, name, config)?;
        let status = answer.lines().next().unwrap_or_default().to_owned();
        Ok((status, version))
    }

    /// The whole answer and the TLS version that it came over.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        name: &str,
        config: ClientConfig,
    ) -> io::Result<(String, ProtocolVersion)> {
        ask(self.connect(), method, path, name, config)
    }

    pub fn connect(&self) -> TcpStream {
        let socket = eventually("the webhook to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// The whole answer to a request without a body, and the TLS version that it came over.
pub fn ask(
    mut socket: TcpStream,
    method: &str,
    path: &str,
    name: &str,
    config: ClientConfig,
) -> io::Result<(String, ProtocolVersion)> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name.clone()).unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    let host = name.to_str();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((answer, connection.protocol_version().unwrap()))
}

pub fn metrics(port: u16) -> String {
    metrics_at((Ipv4Addr::LOCALHOST, port).into())
}

pub fn metrics_at(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn any_ca() -> String {
    let made = rcgen::generate_simple_self_signed(["nowhere".to_owned()]).unwrap();
    base64::engine::general_purpose::STANDARD.encode(made.cert.pem())
}

pub fn binaries() -> Binaries {
    Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"))
}

pub fn succeeded(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{errors}");
    String::from_utf8(output.stdout).unwrap()
}
