//! A replica of a sandbox's webhook: the real program behind the sandbox's Service.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::control_plane::{ControlPlane, Process, free_port};
use super::service::{Endpoint, Service};

/// How long a replica may take to get ready, on a machine that is busy.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What a pod has to end in order, by default.
const STOP_GRACE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// How one replica differs from the others.
#[derive(Clone, Debug, Default)]
pub struct ReplicaOptions {
    /// Arguments for `sgp webhook` after those of all.
    pub arguments: Vec<String>,
    /// How it reaches the API server, if not as all do.
    pub kubeconfig: Option<PathBuf>,
}

/// A running replica. Killed, and taken from the Service, when dropped.
#[derive(Debug)]
pub struct Replica {
    // Taken from the Service only after its end, as nobody knows when a process is killed.
    process: Process,
    endpoint: Endpoint,
    port: u16,
    metrics_port: u16,
}

/// What all replicas have in common.
#[derive(Clone, Debug)]
pub(super) struct ReplicaTemplate {
    pub(super) sgp: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) arguments: Vec<String>,
}

impl Replica {
    /// Starts a replica, whose log is named after it.
    pub(super) fn spawn(
        name: &str,
        template: &ReplicaTemplate,
        options: &ReplicaOptions,
        control_plane: &ControlPlane,
        service: &Service,
    ) -> anyhow::Result<Self> {
        let (port, metrics_port) = (free_port()?, free_port()?);
        let kubeconfig = options.kubeconfig.as_deref();
        let mut command = Command::new(&template.sgp);
        command
            .arg("webhook")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
            .arg("--kubeconfig")
            .arg(kubeconfig.unwrap_or(&template.kubeconfig))
            .args(&template.arguments)
            .args(&options.arguments);
        let process = control_plane.spawn(name, command);
        let process =
            process.with_context(|| format!("{} can't be started", template.sgp.display()))?;
        Ok(Self {
            process,
            endpoint: service.add(port),
            port,
            metrics_port,
        })
    }

    /// Its process, to be signalled, killed and restarted. A restart uses the same ports.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The port on 127.0.0.1 on which it answers the API server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port on 127.0.0.1 on which it serves its metrics.
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// The file with everything that it wrote.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// Whether the Service sends it new connections, by its last probe.
    pub fn is_ready(&self) -> bool {
        self.endpoint.is_ready()
    }

    /// Waits until the Service sends it new connections.
    ///
    /// # Errors
    ///
    /// When the process ends instead, or takes too long.
    pub async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let ready = self.endpoint.wait_until_ready();
            if tokio::time::timeout(Duration::from_secs(1), ready)
                .await
                .is_ok()
            {
                return Ok(());
            }
            let ended = self.process.try_wait()?;
            let (name, log) = (self.process.name(), self.process.last_log_lines());
            if let Some(status) = ended {
                bail!("{name} ended with {status}:\n{log}");
            }
            if since.elapsed() > START_TIMEOUT {
                let seconds = START_TIMEOUT.as_secs();
                bail!("{name} is not ready after {seconds} s; the end of its log:\n{log}");
            }
        }
    }

    /// Ends it as a cluster ends a pod: SIGTERM, and SIGKILL after 30 seconds. Others run
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        let since = Instant::now();
        self.process.signal(Signal::TERM)?;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if since.elapsed() > STOP_GRACE {
                return Ok(self.process.kill()?);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
