//! An allocator of a sandbox: the real program, with the ServiceAccount's rights and with the
//! simulated EC2 for EC2.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::cloud::{CLUSTER_NAME, SimulatedCloud};
use super::control_plane::{ControlPlane, Process, free_port};

/// How long it may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// How allocators are started.
#[derive(Clone, Debug)]
pub struct AllocatorOptions {
    /// How long a leader that says nothing stays the leader. Short, since nobody waits for
    /// anything but this machine.
    pub lease_duration: Duration,
    /// Further arguments for `sgp allocator`.
    pub arguments: Vec<String>,
}

impl Default for AllocatorOptions {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(3),
            arguments: Vec::new(),
        }
    }
}

/// A running allocator. Killed when dropped.
#[derive(Debug)]
pub struct Allocator {
    process: Process,
    socket: PathBuf,
    metrics_port: u16,
}

impl Allocator {
    /// Starts an allocator with a socket and a log of its own, both named after it, in the
    /// run folder.
    pub(super) fn spawn(
        name: &str,
        sgp: &Path,
        control_plane: &ControlPlane,
        cloud: &SimulatedCloud,
        kubeconfig: &Path,
        options: &AllocatorOptions,
    ) -> io::Result<Self> {
        let socket = socket(control_plane, name);
        let metrics_port = free_port()?;
        let mut command = Command::new(sgp);
        cloud.give_to(&mut command);
        command
            // Whose calls are whose shows in the log of the simulated EC2.
            .env("AWS_ACCESS_KEY_ID", name)
            .args(["allocator", "--cluster-name", CLUSTER_NAME])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--socket")
            .arg(&socket)
            .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
            .arg("--lease-duration")
            .arg(options.lease_duration.as_secs_f64().to_string())
            .args(&options.arguments);
        Ok(Self {
            process: control_plane.spawn(name, command)?,
            socket,
            metrics_port,
        })
    }

    /// Its process, to be stopped, killed and restarted. A restart uses the same socket.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The Unix socket on which it answers.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The port on 127.0.0.1 on which it serves its metrics.
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// Waits until somebody answers on its socket.
    ///
    /// # Errors
    ///
    /// When the process ends instead, or takes too long.
    pub async fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            let ended = self.process.try_wait()?;
            let log = self.process.last_log_lines();
            if let Some(status) = ended {
                bail!("the allocator ended with {status}:\n{log}");
            }
            if since.elapsed() > START_TIMEOUT {
                let seconds = START_TIMEOUT.as_secs();
                bail!(
                    "the allocator does not listen after {seconds} s; the end of its log:\n{log}"
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Where the allocator of this name listens.
pub(super) fn socket(control_plane: &ControlPlane, name: &str) -> PathBuf {
    control_plane.run_dir().join(format!("{name}.sock"))
}
