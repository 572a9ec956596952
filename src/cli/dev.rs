//! `sgp dev`: a sandbox for people.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::dev::control_plane::Binaries;
use crate::dev::{Sandbox, SandboxOptions, demo};
use crate::telemetry::logs::LogArgs;

/// Run a cluster's control plane with sgp on this machine
///
/// A real Kubernetes API server, etcd and controller manager with our custom resources and
/// the webhook, on free ports of 127.0.0.1. The first start builds them from Go modules,
/// which takes minutes; later ones take seconds. Ctrl-C ends everything and leaves nothing
/// behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sgp dev --demo                 start, and show what sgp does step by step
  sgp dev --demo --exit          the same as a check: exit code 0 if all went as it should
  sgp dev --kubeconfig sgp.conf  start, and write the kubeconfig to a file of your choice
  sgp dev --data-dir state       keep the cluster's objects for the next start

Environment:
  KUBEBUILDER_ASSETS  folder with etcd, kube-apiserver, kube-controller-manager and kubectl,
                      to be used instead of building them
  SGP_CACHE_DIR       where built programs are kept; by default sgp in the user's cache folder")]
pub(super) struct DevArgs {
    /// Write the administrator's kubeconfig here; removed at the end
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Keep the cluster's state here for the next start
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Show what sgp does, step by step on the live API server
    #[arg(long)]
    demo: bool,

    /// End after the demo, with exit code 0 only if every step showed what it should
    #[arg(long, requires = "demo")]
    exit: bool,
}

impl DevArgs {
    pub(super) fn run(self, logs: &LogArgs) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.serve(logs))
    }

    async fn serve(self, logs: &LogArgs) -> anyhow::Result<()> {
        let mut signals = Signals::listen()?;
        let sandbox = tokio::select! {
            sandbox = self.start(logs) => sandbox?,
            // What has been started so far ends with this process.
            name = signals.next() => bail!("ended by {name} before everything was started"),
        };
        let kubeconfig = self.write_kubeconfig(&sandbox)?;
        let done = tokio::select! {
            done = self.use_sandbox(&sandbox, kubeconfig.path()) => done,
            name = signals.next() => {
                eprintln!("{name}: ending everything");
                Ok(())
            }
        };
        sandbox.stop();
        done
    }

    async fn start(&self, logs: &LogArgs) -> anyhow::Result<Sandbox> {
        // A build that takes minutes must not keep signals from being heard.
        let binaries = tokio::task::spawn_blocking(Binaries::find_or_build).await??;
        let begin = Instant::now();
        let progress = |step: &str| eprintln!("{:5.1} s  {step}", begin.elapsed().as_secs_f32());
        let options = SandboxOptions {
            sgp: env::current_exe().context("this program's own path is unknown")?,
            data_dir: self.data_dir.clone(),
            webhook_arguments: vec![format!("--log-level={}", logs.log_level)],
        };
        let sandbox = Sandbox::start(&binaries, options, progress).await?;
        progress("ready");
        Ok(sandbox)
    }

    fn write_kubeconfig(&self, sandbox: &Sandbox) -> anyhow::Result<WrittenKubeconfig> {
        let original = sandbox.control_plane().kubeconfig();
        let Some(path) = &self.kubeconfig else {
            return Ok(WrittenKubeconfig::Original(original.to_owned()));
        };
        // Keeps the mode, so that only its owner can read it.
        fs::copy(original, path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(WrittenKubeconfig::Copy(path.clone()))
    }

    async fn use_sandbox(&self, sandbox: &Sandbox, kubeconfig: &Path) -> anyhow::Result<()> {
        if self.demo {
            let kubectl = sandbox.control_plane().kubectl();
            let as_expected = tokio::task::spawn_blocking(move || show_demo(&kubectl)).await??;
            if self.exit && as_expected {
                return Ok(());
            }
            if self.exit {
                bail!("the demo did not show what it should");
            }
        }
        introduce(sandbox, kubeconfig);
        std::future::pending().await
    }
}

fn show_demo(kubectl: &std::process::Command) -> std::io::Result<bool> {
    let again = || {
        let mut command = std::process::Command::new(kubectl.get_program());
        command.envs(
            kubectl
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        command
    };
    demo::run(again, &mut anstream::stdout())
}

fn introduce(sandbox: &Sandbox, kubeconfig: &Path) {
    let kubectl = sandbox.control_plane().kubectl();
    println!("\nready\n");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    let folder = Path::new(kubectl.get_program()).parent();
    if let Some(folder) = folder.filter(|_| !is_on_path("kubectl")) {
        println!("  export PATH=\"$PATH:{}\"", folder.display());
    }
    println!("\nThree commands to try:\n");
    println!("  kubectl apply -f examples/");
    println!(
        "  kubectl get pods -o custom-columns='NAME:.metadata.name,RESOURCES:.spec.containers[0].resources.limits'"
    );
    println!("  kubectl describe replicaset hasty");
    println!(
        "\nThe webhook's log is {}.",
        sandbox
            .control_plane()
            .run_dir()
            .join("webhook.log")
            .display()
    );
    println!("Ctrl-C ends everything.");
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Where the administrator's kubeconfig is; a copy goes at the end.
enum WrittenKubeconfig {
    Original(PathBuf),
    Copy(PathBuf),
}

impl WrittenKubeconfig {
    fn path(&self) -> &Path {
        match self {
            Self::Original(path) | Self::Copy(path) => path,
        }
    }
}

impl Drop for WrittenKubeconfig {
    fn drop(&mut self) {
        if let Self::Copy(path) = self {
            // It leads nowhere once the cluster is gone; a file that stays does no harm.
            let _ = fs::remove_file(path);
        }
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            interrupt,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
