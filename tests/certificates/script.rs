//! `certs/make.sh` makes what `sgp webhook --tls-cert --tls-key` serves with.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use rustls::RootCertStore;
use rustls::version::TLS13;
use serde_json::{Value, json};
use sgp::dev::control_plane::{ControlPlane, Options};

use crate::server::{Files, NAME, TLS_VERSIONS, Webhook, binaries, make_sh, succeeded};
use crate::waiting::eventually;

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
    let (certificate, key) = (files.path("tls.crt"), other.path("tls.key"));
    let message = format!(
        "error: certificate {}: the private key in {} is another certificate's; give the one \
         that it was made with",
        certificate.display(),
        key.display()
    );
    assert!(log.contains(&message), "{log}");
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
        (&["--configuration-prefix", "Sgp ", folder], "not \"Sgp \""),
        (&["--configuration-prefix"], "needs a text"),
        (&["--keep-ca"], "needs a file"),
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

#[test]
fn script_keeps_only_what_is_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    for kept in ["nowhere.crt", "make.sh"] {
        let kept = format!("{}/certs/{kept}", env!("CARGO_MANIFEST_DIR"));
        let output = make_sh(&["--keep-ca", &kept, new.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains(&format!("{kept} holds no certificate")),
            "{text}"
        );
        assert!(!new.exists());
    }
}

/// A cluster with manifests of this repository, in which commands that the script printed run.
struct Cluster(ControlPlane);

impl Cluster {
    async fn with(manifests: &[&str]) -> Self {
        let control_plane = ControlPlane::start(&binaries(), Options::default())
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let cluster = Self(control_plane);
        for manifest in manifests {
            let path = format!("{}/manifests/{manifest}", env!("CARGO_MANIFEST_DIR"));
            let how = if manifest.ends_with(".yaml") {
                "-f"
            } else {
                "-k"
            };
            cluster.kubectl(&["apply", "--server-side", how, &path]);
        }
        cluster
    }

    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(self.0.kubectl().args(arguments))
    }

    #[track_caller]
    fn run(&self, commands: &str) {
        let program = self.0.kubectl().get_program().to_owned();
        let folder = Path::new(&program).parent().unwrap().to_owned();
        let others = env::var_os("PATH").unwrap();
        let path = env::join_paths([folder].into_iter().chain(env::split_paths(&others)));
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", commands])
            .env("PATH", path.unwrap())
            .env("KUBECONFIG", self.0.kubeconfig());
        succeeded(&mut shell);
    }

    fn get(&self, what: &[&str]) -> Value {
        let arguments = [&["get", "-o", "json"], what].concat();
        serde_json::from_str(&self.kubectl(&arguments)).unwrap()
    }

    /// Every entry of the configurations whose names begin so trusts this and nothing else.
    #[track_caller]
    fn assert_trusts(&self, prefix: &str, bundle: &[u8]) {
        for kind in ["mutating", "validating"] {
            let name = format!("{prefix}{kind}-webhook");
            let configuration = self.get(&[&format!("{kind}webhookconfiguration"), &name]);
            let webhooks = configuration["webhooks"].as_array().unwrap();
            assert!(webhooks.len() >= 3, "{name}");
            for webhook in webhooks {
                let found = &webhook["clientConfig"]["caBundle"];
                assert_eq!(found, &json!(base64(bundle)), "{}", webhook["name"]);
            }
        }
    }

    #[track_caller]
    fn assert_serves(&self, files: &Files) {
        let secret = self.get(&["secret", "--namespace=sgp-system", "sgp-webhook-tls"]);
        assert_eq!(secret["type"], "kubernetes.io/tls");
        for file in ["tls.crt", "tls.key"] {
            let content = fs::read(files.path(file)).unwrap();
            assert_eq!(secret["data"][file], base64(&content));
        }
    }
}

fn base64(content: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(content)
}

/// The commands that the script printed, by the paragraph.
fn commands(files: &Files) -> Vec<&str> {
    let paragraphs = files.told.split("\n\n");
    paragraphs.filter(|it| it.starts_with("  ")).collect()
}

#[tokio::test]
async fn printed_commands_bring_the_files_into_a_cluster_and_renew_them_step_by_step() {
    let cluster = Cluster::with(&[
        "base/namespace.yaml",
        "base/mutating-webhook.yaml",
        "base/validating-webhook.yaml",
    ])
    .await;
    let prefix = "vpc-resource-";
    let files = Files::made(&[NAME]);
    let old = fs::read(files.path("ca.crt")).unwrap();
    for command in commands(&files) {
        cluster.run(command);
    }
    cluster.assert_trusts(prefix, &old);
    cluster.assert_serves(&files);

    let kept = files.path("ca.crt");
    let renewed = Files::made_with(&["--keep-ca", kept.to_str().unwrap()], &[NAME]);
    let new = fs::read(renewed.path("ca.crt")).unwrap();
    let [trust_both, serve_new, trust_new] = commands(&renewed)[..] else {
        panic!("three steps: {}", renewed.told);
    };
    cluster.run(trust_both);
    cluster.assert_trusts(prefix, &[&old[..], &new].join(&b'\n'));
    cluster.assert_serves(&files);
    cluster.run(serve_new);
    cluster.assert_serves(&renewed);
    cluster.run(trust_new);
    cluster.assert_trusts(prefix, &new);
}

#[tokio::test]
async fn printed_commands_write_to_configurations_of_the_names_that_are_asked_for() {
    let theirs = [
        "base/mutating-webhook.yaml",
        "base/validating-webhook.yaml",
        "overlays/eks",
    ];
    let cluster = Cluster::with(&theirs).await;
    let of_eks = || {
        ["mutating", "validating"].map(|kind| {
            let kinds = format!("{kind}webhookconfiguration");
            cluster.get(&[&kinds, &format!("vpc-resource-{kind}-webhook")])
        })
    };
    let before = of_eks();

    let files = Files::made_with(&["--configuration-prefix=sgp-"], &[NAME]);
    for command in commands(&files) {
        cluster.run(command);
    }
    cluster.assert_trusts("sgp-", &fs::read(files.path("ca.crt")).unwrap());
    assert_eq!(of_eks(), before);
}
