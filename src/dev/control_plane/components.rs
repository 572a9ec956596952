//! The command line of each component.
//!
//! etcd listens on a Unix socket in the run folder: it has no authentication of its own, so
//! it must not be reachable for other users of the machine, and a socket needs no port.

use std::path::Path;
use std::process::Command;

use super::binaries::Binaries;
use super::credentials::Credentials;

/// The socket's name has the form of host and port because etcd takes nothing else. It is
/// relative to the run folder, since the path of a Unix socket must be short and a temporary
/// folder's need not be.
const ETCD_URL: &str = "unix://etcd:0";

/// A place in the run folder for the second socket that etcd insists on. No peer ever calls.
const ETCD_PEER_URL: &str = "unix://etcd-peer:0";

/// An address for the records, which etcd takes in no other form. Nothing listens there.
const ETCD_ADVERTISED_URL: &str = "http://127.0.0.1:2380";

/// Where service-account tokens say that they come from.
const ISSUER: &str = "https://kubernetes.default.svc";

/// What all components of one instance share.
pub(super) struct Components<'a> {
    pub(super) binaries: &'a Binaries,
    pub(super) credentials: &'a Credentials,
    pub(super) run_dir: &'a Path,
    /// The API server's AdmissionConfiguration, if it has one.
    pub(super) admission: Option<&'a Path>,
    pub(super) port: u16,
}

impl Components<'_> {
    /// The API server, with etcd's socket in the same run folder.
    pub(super) fn api_server(&self) -> Command {
        let mut command = in_folder(&self.binaries.kube_apiserver, self.run_dir);
        command
            .arg(format!("--etcd-servers={ETCD_URL}"))
            .arg(format!("--secure-port={}", self.port))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // Endpoints must not be loopback addresses, so it has none to publish. Without the
            // flag it complains, and holds up its own end to take them back.
            .arg("--endpoint-reconciler-type=none")
            .arg(format!(
                "--service-cluster-ip-range={}",
                super::SERVICE_RANGE
            ))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg(format!("--service-account-issuer={ISSUER}"));
        for (flag, path) in [
            ("--client-ca-file", self.credentials.authority_certificate()),
            ("--tls-cert-file", self.credentials.serving_certificate()),
            ("--tls-private-key-file", self.credentials.serving_key()),
            (
                "--service-account-key-file",
                self.credentials.service_accounts_public_key(),
            ),
            (
                "--service-account-signing-key-file",
                self.credentials.service_accounts_private_key(),
            ),
        ] {
            command.arg(flag).arg(path);
        }
        if let Some(path) = self.admission {
            command.arg("--admission-control-config-file").arg(path);
        }
        command
    }

    /// The controller manager, as the user of a kubeconfig.
    pub(super) fn controller_manager(&self, kubeconfig: &Path) -> Command {
        let mut command = in_folder(&self.binaries.kube_controller_manager, self.run_dir);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--service-account-private-key-file")
            .arg(self.credentials.service_accounts_private_key())
            .arg("--root-ca-file")
            .arg(self.credentials.authority_certificate())
            .args([
                "--use-service-account-credentials",
                "--leader-elect=false",
                "--secure-port=0",
            ])
            // By default it asks so rarely that its own start takes four seconds.
            .args(["--kube-api-qps=1000", "--kube-api-burst=1000"]);
        command
    }

    /// The scheduler, as the user of a kubeconfig.
    pub(super) fn scheduler(&self, program: &Path, kubeconfig: &Path) -> Command {
        let mut command = in_folder(program, self.run_dir);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--leader-elect=false", "--secure-port=0"])
            // By default a thousand pods at once would wait for it.
            .args(["--kube-api-qps=1000", "--kube-api-burst=1000"]);
        command
    }

    /// kwok, as the user of a kubeconfig, for all nodes.
    pub(super) fn kwok(
        &self,
        program: &Path,
        kubeconfig: &Path,
        stages: &Path,
        pod_block: &str,
    ) -> Command {
        let mut command = in_folder(program, self.run_dir);
        // It reads the user's own configuration file otherwise.
        command.env("HOME", self.run_dir);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--config")
            .arg(stages)
            .arg(format!("--cidr={pod_block}"))
            // As a kubelet does by default.
            .args([
                "--manage-all-nodes=true",
                "--node-lease-duration-seconds=40",
            ]);
        command
    }
}

/// etcd. It needs no credentials and can start while they are made.
///
/// Without `durable` it never waits for the disk: the data goes with the instance anyway.
pub(super) fn etcd(binaries: &Binaries, run_dir: &Path, data: &Path, durable: bool) -> Command {
    let mut command = in_folder(&binaries.etcd, run_dir);
    command
        .arg("--data-dir")
        .arg(data)
        .args(["--name=sgp", "--listen-client-urls", ETCD_URL])
        .args(["--advertise-client-urls", ETCD_ADVERTISED_URL])
        .args(["--listen-peer-urls", ETCD_PEER_URL])
        .args(["--initial-advertise-peer-urls", ETCD_ADVERTISED_URL])
        .arg(format!("--initial-cluster=sgp={ETCD_ADVERTISED_URL}"))
        // The only member wins every election; there is no reason to wait a second for it.
        .args(["--heartbeat-interval=20", "--election-timeout=100"]);
    if !durable {
        command.arg("--unsafe-no-fsync");
    }
    command
}

fn in_folder(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    // etcd reads its flags from the environment too, and the API server would call webhooks
    // through a proxy, from where nobody finds them.
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_uppercase();
        if upper.starts_with("ETCD_") || upper.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command
}
