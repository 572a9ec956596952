//! Certificates from files: those that can't be served, those that change, and who may call.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use sgp::dev::control_plane::free_port;

use crate::clients::{Authority, Client, OTHER_CA, with_client};
use crate::server::{NAME, TLS_VERSIONS, Webhook, metrics, metrics_at};
use crate::waiting::eventually;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A certificate that signs itself, and its key, as PEM.
struct Made {
    certificate: String,
    key: String,
}

impl Made {
    fn new(name: &str) -> Self {
        Self::with(name, |_| ())
    }

    fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut wanted = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut wanted);
        let key = KeyPair::generate().unwrap();
        Self {
            certificate: wanted.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn trusted(&self) -> RootCertStore {
        roots(&self.certificate)
    }
}

fn roots(pem: &str) -> RootCertStore {
    let mut trusted = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    trusted.add(ca).unwrap();
    trusted
}

/// A folder as a kubelet mounts a Secret: the files are links through `..data`, a link that is
/// swapped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(certificate: &str, key: &str) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        for file in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(file), mounted.file(file)).unwrap();
        }
        mounted.swap("first", certificate, key);
        mounted
    }

    fn swap(&self, version: &str, certificate: &str, key: &str) {
        let folder = self.0.path();
        fs::create_dir(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("tls.crt"), certificate).unwrap();
        fs::write(folder.join(version).join("tls.key"), key).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn certificate_that_can_not_be_served_ends_the_webhook_with_a_message() {
    let now = SystemTime::now();
    let expired = Made::with(NAME, |wanted| wanted.not_after = (now - HOUR).into());
    let early = Made::with(NAME, |wanted| wanted.not_before = (now + HOUR).into());
    let elsewhere = Made::new("elsewhere.svc");
    let of_clients = Made::with(NAME, |wanted| {
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for (made, problem, way_out) in [
        (expired, "it expired at ", "renew it"),
        (early, "it is not valid before ", "set this machine's clock"),
        (
            elsewhere,
            "it is not for sgp-webhook.sgp-system.svc",
            "make one with that name",
        ),
        (of_clients, "it is not for servers", "serverAuth"),
    ] {
        let mounted = Mounted::new(&made.certificate, &made.key);
        let (certificate, key) = (mounted.file("tls.crt"), mounted.file("tls.key"));
        let name = format!("--tls-name={NAME}");
        let mut webhook = Webhook::with(&certificate, &key, &[&name]);
        let status = eventually("the end of the webhook", || {
            webhook.process.try_wait().unwrap()
        });
        assert_eq!(status.code(), Some(1), "{problem}");
        let log = webhook.process.last_log_lines();
        let message = format!("error: certificate {}: {problem}", certificate.display());
        assert!(log.contains(&message) && log.contains(way_out), "{log}");
    }
}

#[test]
fn swapped_files_are_served_without_a_restart_and_bad_ones_are_not() {
    let (old, new, other) = (Made::new(NAME), Made::new(NAME), Made::new(NAME));
    let mounted = Mounted::new(&old.certificate, &old.key);
    let port = free_port().unwrap();
    let webhook = Webhook::with(
        &mounted.file("tls.crt"),
        &mounted.file("tls.key"),
        &[&format!("--metrics-listen=127.0.0.1:{port}")],
    );
    let is_served = |made: &Made| {
        let answer = webhook.get("/healthz", NAME, &[&TLS13], made.trusted());
        answer.is_ok_and(|(status, _)| status == "HTTP/1.1 200 OK")
    };
    assert!(is_served(&old));

    mounted.swap("new", &new.certificate, &new.key);
    eventually("the new certificate", || is_served(&new).then_some(()));
    assert!(!is_served(&old));

    // Half of another pair, then the whole of it.
    mounted.swap("mixed", &other.certificate, &new.key);
    eventually("the failure to be counted", || {
        metrics(port)
            .contains("sgp_certificate_failures_total 1")
            .then_some(())
    });
    assert!(is_served(&new));
    let log = webhook.process.last_log_lines();
    let message = "is another certificate's; give the one that it was made with; the certificate in use stays";
    assert!(log.contains(message), "{log}");
    mounted.swap("other", &other.certificate, &other.key);
    eventually("the other certificate", || is_served(&other).then_some(()));
    assert!(metrics(port).contains("sgp_certificate_changes_total 2"));
}

#[test]
fn every_address_that_the_machine_has_is_listened_on() {
    let made = Made::new(NAME);
    let mounted = Mounted::new(&made.certificate, &made.key);
    let (port, metrics_port) = (free_port().unwrap(), free_port().unwrap());
    let mut webhook = Webhook::with(
        &mounted.file("tls.crt"),
        &mounted.file("tls.key"),
        // The first in the place of the one that leads to 127.0.0.1.
        &[
            &format!("--listen=[::]:{port}"),
            &format!("--metrics-listen=[::]:{metrics_port}"),
        ],
    );
    webhook.port = port;
    let answer = webhook.get("/healthz", NAME, &[&TLS13], made.trusted());
    assert_eq!(answer.unwrap().0, "HTTP/1.1 200 OK");
    let is_answered = |address: SocketAddr| metrics_at(address).contains("sgp_connections ");
    assert!(is_answered((Ipv4Addr::LOCALHOST, metrics_port).into()));

    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        assert!(is_answered((Ipv6Addr::LOCALHOST, metrics_port).into()));
    } else {
        println!("without IPv6 here, only IPv4 was tried");
    }
}

#[test]
fn with_a_client_ca_only_its_clients_may_call_and_probes_stay_open() {
    let made = Made::new(NAME);
    let (ours, others) = (Authority::new(), Authority::new());
    let client = ours.client("kube-apiserver");
    let of_others = others.client("kube-apiserver");
    let mounted = Mounted::new(&made.certificate, &made.key);
    let ca_file = mounted.file("clients.crt");
    fs::write(&ca_file, &ours.ca).unwrap();
    let webhook = Webhook::with(
        &mounted.file("tls.crt"),
        &mounted.file("tls.key"),
        &[&format!("--client-ca={}", ca_file.display())],
    );
    let ask = |method, path, version, client: Option<&Client>| {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(made.trusted());
        let config = with_client(config, client);
        let answer = webhook.ask(method, path, NAME, config);
        answer.map(|(answer, _)| answer)
    };
    let status = |answer: &str| answer.lines().next().unwrap_or_default().to_owned();

    for (version, _) in TLS_VERSIONS {
        let alive = ask("GET", "/healthz", version, None).unwrap();
        assert_eq!(status(&alive), "HTTP/1.1 200 OK");
        // No API server answers it, so that it is not ready.
        let ready = ask("GET", "/readyz", version, None).unwrap();
        assert_eq!(status(&ready), "HTTP/1.1 503 Service Unavailable");
        for path in ["/mutate-v1-pod", "/validate-v1-pod/enforced", "/elsewhere"] {
            let refused = ask("POST", path, version, None).unwrap();
            assert_eq!(status(&refused), "HTTP/1.1 403 Forbidden", "{path}");
            let text = "this webhook answers only callers with a client certificate of the CA \
                        in --client-ca; give the API server one for it, in a kubeconfig that \
                        its AdmissionConfiguration names";
            assert!(refused.ends_with(text), "{refused}");
        }
        // It has no review to read, but is let in.
        let let_in = ask("POST", "/mutate-v1-pod", version, Some(&client)).unwrap();
        assert_eq!(status(&let_in), "HTTP/1.1 415 Unsupported Media Type");
        for client in [&client, &of_others] {
            let alive = ask("GET", "/healthz", version, Some(client)).unwrap();
            assert_eq!(status(&alive), "HTTP/1.1 200 OK");
        }
        let refused = ask("POST", "/mutate-v1-pod", version, Some(&of_others)).unwrap();
        assert_eq!(status(&refused), "HTTP/1.1 403 Forbidden");
        assert!(refused.ends_with(OTHER_CA), "{refused}");
    }

    fs::write(&ca_file, &others.ca).unwrap();
    eventually("the other CA to count", || {
        let answer = ask("POST", "/mutate-v1-pod", &TLS13, Some(&of_others)).unwrap();
        (status(&answer) == "HTTP/1.1 415 Unsupported Media Type").then_some(())
    });
    let refused = ask("POST", "/mutate-v1-pod", &TLS13, Some(&client)).unwrap();
    assert!(refused.ends_with(OTHER_CA), "{refused}");
}

#[test]
fn name_of_a_client_without_its_ca_is_refused() {
    let made = Made::new(NAME);
    let mounted = Mounted::new(&made.certificate, &made.key);
    let (certificate, key) = (mounted.file("tls.crt"), mounted.file("tls.key"));
    let mut webhook = Webhook::with(&certificate, &key, &["--client-name=kube-apiserver"]);
    let status = eventually("the end of the webhook", || {
        webhook.process.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(2));
    let log = webhook.process.last_log_lines();
    assert!(log.contains("--client-ca <FILE>"), "{log}");
}

/// The type of the first record that comes back for a ClientHello of this version and none
/// later (RFC 5246, 7.4.1.2), and what is in it.
fn answer_to_hello(webhook: &Webhook, version: [u8; 2]) -> (u8, Vec<u8>) {
    let mut hello = version.to_vec();
    // A random number, no session, ECDHE-ECDSA with AES, no compression.
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x09, 1, 0]);
    // P-256, uncompressed points, ECDSA with SHA-256.
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let formats = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    let extensions = [&groups[..], &formats, &signatures].concat();
    hello.extend([0, u8::try_from(extensions.len()).unwrap()]);
    hello.extend(extensions);
    let mut handshake = vec![1, 0, 0, u8::try_from(hello.len()).unwrap()];
    handshake.extend(hello);
    let mut record = vec![22, 3, 1, 0, u8::try_from(handshake.len()).unwrap()];
    record.extend(handshake);

    let mut socket = webhook.connect();
    socket.write_all(&record).unwrap();
    let mut head = [0; 5];
    socket.read_exact(&mut head).unwrap();
    let mut content = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    socket.read_exact(&mut content).unwrap();
    (head[0], content)
}

#[test]
fn client_that_speaks_tls_1_1_at_most_is_turned_away() {
    let made = Made::new(NAME);
    let mounted = Mounted::new(&made.certificate, &made.key);
    let webhook = Webhook::with(&mounted.file("tls.crt"), &mounted.file("tls.key"), &[]);

    // An alert (21): fatal (2), protocol_version (70).
    assert_eq!(answer_to_hello(&webhook, [3, 2]), (21, vec![2, 70]));
    // The same with TLS 1.2 goes on: a handshake (22) with a ServerHello (2).
    let (kind, content) = answer_to_hello(&webhook, [3, 3]);
    assert_eq!((kind, content[0]), (22, 2));
}
