//! A real Kubernetes control plane on this machine: etcd, API server, controller manager,
//! and where pods shall run the scheduler, with kwok in the place of the nodes' kubelets.
//!
//! ```text
//! Binaries::find_or_build ─▶ ControlPlane::start ─▶ etcd ─▶ kube-apiserver ─▶ controller manager
//!                                      │                                  └─▶ scheduler, kwok
//!                                      └─ ProcessGroup: ends all of them with their owner
//! ```
//!
//! Any number of instances run side by side: each has its own run folder, port, keys and
//! certificates. Nothing here knows of pods' security groups, of the webhook or of EC2.

mod admission;
mod binaries;
mod components;
mod credentials;
mod go_build;
mod ports;
mod process_group;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{DeleteParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

pub use binaries::{Binaries, BinariesError};
use components::Components;
use credentials::{Credentials, create_private_folder};
pub use credentials::{CredentialsError, KUBECONFIG_NAME};
pub use ports::free_port;
pub use process_group::{Process, ProcessGroup};

/// Where Services get their addresses.
const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first address of [`SERVICE_RANGE`], which is that of the Service `kubernetes`.
const SERVICE_IP: &str = "10.96.0.1";

/// Long enough for a start on a machine that runs many at once.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Longer than the watchdog of a killed predecessor needs to end its children.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// A port can be taken between the look at it and the bind.
const START_ATTEMPTS: u32 = 3;
/// For a component whose work has to be sound on the disk.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How to start a control plane.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keeps objects, keys and the kubeconfig in this folder for the next start. Without it
    /// everything goes with the instance.
    pub data_dir: Option<PathBuf>,
    /// Starts the scheduler, and kwok with this in the place of kubelets. Without it pods stay
    /// Pending.
    pub kubelets: Option<Kubelets>,
    /// The client certificate that the API server shows an admission webhook. Without it, it
    /// shows none to any.
    pub webhook_client: Option<WebhookClient>,
}

/// Who the API server is to an admission webhook.
#[derive(Debug, Clone)]
pub struct WebhookClient {
    /// The webhook, as `NAME.NAMESPACE.svc:PORT` if it is behind a Service.
    pub host: String,
    /// The certificate, as PEM. It is read for each connection.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// What kwok does in the place of the kubelets of all nodes.
#[derive(Debug, Clone, Copy)]
pub struct Kubelets {
    /// kwok's stages of nodes and pods, as YAML.
    pub stages: &'static str,
    /// The IPv4 block that pods get their addresses from.
    pub pod_block: &'static str,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another instance keeps its data in the folder.
    #[error("{data_dir} is in use by another instance")]
    InUse {
        /// The folder that both want.
        data_dir: PathBuf,
    },
    /// A folder or a file cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The folder or file at fault.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// No port is free.
    #[error("no TCP port is free on 127.0.0.1")]
    NoPort(#[source] io::Error),
    /// Keys or certificates could not be made.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A program is not among those that were found.
    #[error(
        "nodes need {program}, which is not in the folder that KUBEBUILDER_ASSETS names; add it, \
         or unset the variable to build all of the control plane from Go modules"
    )]
    NoProgram {
        /// The program's name.
        program: &'static str,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program's name.
        program: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A component ended while it should have started.
    #[error("{component} ended with {status}; the last lines of its log:\n{log}")]
    Exited {
        /// The component's name.
        component: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The control plane took too long.
    #[error("waited {} s for {awaited} in vain; the last lines of the logs:\n{logs}", START_TIMEOUT.as_secs())]
    NotReady {
        /// What did not come true.
        awaited: &'static str,
        /// The end of each component's log.
        logs: String,
    },
    /// The kubeconfig just written is not understood.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// A client could not be made.
    #[error("cannot make a client")]
    Client(#[source] kube::Error),
}

impl StartError {
    fn is_taken_port(&self) -> bool {
        matches!(self, Self::Exited { log, .. } if log.contains("address already in use"))
    }
}

/// A running control plane. Stopped when dropped, and also when this process ends in any
/// other way.
#[derive(Debug)]
pub struct ControlPlane {
    /// In the order of their start. Fields are dropped from top to bottom, so these end
    /// before their group.
    components: Vec<Process>,
    group: ProcessGroup,
    binaries: Binaries,
    kubeconfig: PathBuf,
    client_config: Config,
    keeps_data: bool,
    /// Held by the watchdog too, until the last component is gone.
    _lock: Option<File>,
}

impl ControlPlane {
    /// Starts an instance and waits until it answers and its controllers work.
    ///
    /// # Errors
    ///
    /// When the data folder is in use, a component ends early or takes more than two minutes.
    /// The message has the ends of the logs.
    pub async fn start(binaries: &Binaries, options: Options) -> Result<Self, StartError> {
        // kube needs one, and whoever installed one before has chosen the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let lock = match &options.data_dir {
            Some(data_dir) => Some(lock(data_dir).await?),
            None => None,
        };
        for _ in 1..START_ATTEMPTS {
            match Self::start_once(binaries, &options, lock.as_ref()).await {
                Err(error) if error.is_taken_port() => {}
                result => return result,
            }
        }
        Self::start_once(binaries, &options, lock.as_ref()).await
    }

    async fn start_once(
        binaries: &Binaries,
        options: &Options,
        lock: Option<&File>,
    ) -> Result<Self, StartError> {
        let temporary = std::env::temp_dir();
        let held = || {
            lock.map(File::try_clone)
                .transpose()
                .map_err(unusable(&temporary))
        };
        let group = ProcessGroup::new(&temporary, "sgp-control-plane-", held()?)
            .map_err(unusable(&temporary))?;
        let run_dir = group.folder().to_owned();
        let kept = options.data_dir.as_deref().unwrap_or(&run_dir);
        let kept = std::path::absolute(kept).map_err(unusable(kept))?;
        let keeps_data = options.data_dir.is_some();

        let etcd = components::etcd(binaries, &run_dir, &kept.join("etcd"), keeps_data);
        let mut starting = Starting {
            group: &group,
            components: Vec::new(),
            since: Instant::now(),
        };
        starting.spawn("etcd", etcd)?;

        let port = free_port().map_err(StartError::NoPort)?;
        let keys = kept.join("credentials");
        let credentials = Credentials::issue(&keys)?;
        let kubeconfig = kept.join("kubeconfig");
        credentials.write_kubeconfig(&kubeconfig, port, "admin", Some("system:masters"))?;
        let admission = match &options.webhook_client {
            Some(client) => Some(admission::write(&run_dir, client).map_err(unusable(&run_dir))?),
            None => None,
        };
        let components = Components {
            binaries,
            credentials: &credentials,
            run_dir: &run_dir,
            admission: admission.as_deref(),
            port,
        };
        starting.spawn("kube-apiserver", components.api_server())?;

        let name = "kube-controller-manager";
        let manager_kubeconfig = keys.join(format!("{name}.kubeconfig"));
        credentials.write_kubeconfig(&manager_kubeconfig, port, &format!("system:{name}"), None)?;
        let client_config = client_config(&kubeconfig).await?;
        let client = polling_client(&client_config)?;
        let path_is_ok = async |path: &str| {
            let request = hyper::Request::get(path)
                .body(Vec::new())
                .expect("a constant path");
            client.request_text(request).await.is_ok()
        };
        starting
            .wait_for("the API server to answer", async || {
                path_is_ok("/healthz").await
            })
            .await?;
        starting.spawn(name, components.controller_manager(&manager_kubeconfig))?;
        starting
            .wait_for("the API server to be ready", async || {
                path_is_ok("/readyz").await
            })
            .await?;
        let service_accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let has_default = async || service_accounts.get("default").await.is_ok();
        if let Some(kubelets) = options.kubelets {
            starting
                .add_kubelets(&components, kubelets, &client, &keys)
                .await?;
        }
        starting
            .wait_for("the controllers to make a service account", has_default)
            .await?;

        let components = starting.components;
        let _lock = held()?;
        let binaries = binaries.clone();
        Ok(Self {
            components,
            group,
            binaries,
            kubeconfig,
            client_config,
            keeps_data,
            _lock,
        })
    }

    /// The administrator's kubeconfig. In the data folder, where there is one, at the same
    /// path after each start.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// How to reach the API server as administrator, for a client with settings of its own.
    pub fn client_config(&self) -> &Config {
        &self.client_config
    }

    /// A new client of the administrator. It works in the runtime in which it is made, so
    /// each runtime needs its own.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn client(&self) -> Client {
        Client::try_from(self.client_config.clone()).expect("a client was made of it at the start")
    }

    /// kubectl as administrator of this instance, with nothing of this user's own settings.
    ///
    /// The kubeconfig is given by environment, because plugins would not see a flag.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.binaries.kubectl);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.run_dir().join("kubectl-cache"))
            .env("KUBERC", "off");
        command
    }

    /// The folder for what goes with the instance: logs, sockets, passing files.
    pub fn run_dir(&self) -> &Path {
        self.group.folder()
    }

    /// Says which component has ended by itself, if any, with the end of its log.
    ///
    /// # Errors
    ///
    /// [`StartError::Exited`] with the first such component.
    pub fn check(&mut self) -> Result<(), StartError> {
        check(&mut self.components)
    }

    /// Starts a further process that ends with this instance at the latest, with output in
    /// `<name>.log` in the run folder.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> io::Result<Process> {
        self.group.spawn(name, command)
    }

    /// Ends all processes, last started first, and removes the run folder. With a data
    /// folder each component has time to end in order, so that the data is sound.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for component in self.components.iter_mut().rev() {
            // What does not end now is killed with the group.
            let _ = if self.keeps_data {
                component.stop(STOP_GRACE)
            } else {
                component.kill()
            };
        }
    }
}

/// The components so far, and what to say when they come no further.
struct Starting<'a> {
    group: &'a ProcessGroup,
    components: Vec<Process>,
    since: Instant,
}

impl Starting<'_> {
    fn spawn(&mut self, program: &'static str, command: Command) -> Result<(), StartError> {
        let spawned = self.group.spawn(program, command);
        self.components
            .push(spawned.map_err(|source| StartError::Spawn { program, source })?);
        Ok(())
    }

    /// Starts kwok, and the scheduler once kwok has taken over the nodes that there are.
    async fn add_kubelets(
        &mut self,
        components: &Components<'_>,
        kubelets: Kubelets,
        client: &Client,
        keys: &Path,
    ) -> Result<(), StartError> {
        let (credentials, port) = (components.credentials, components.port);
        let found = |name, program: &Option<PathBuf>| {
            let program = program.clone();
            program.ok_or(StartError::NoProgram { program: name })
        };
        let nodes: Api<Node> = Api::all(client.clone());
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        let every = ListParams::default();

        let name = "kwok";
        let program = found(name, &components.binaries.kwok)?;
        let kubeconfig = keys.join(format!("{name}.kubeconfig"));
        // For all nodes, so with more rights than any one of them.
        credentials.write_kubeconfig(&kubeconfig, port, name, Some("system:masters"))?;
        let stages = components.run_dir.join("kwok.yaml");
        std::fs::write(&stages, kubelets.stages).map_err(unusable(&stages))?;
        // It leaves nodes alone as long as an earlier one may still act for them.
        let let_go = async || {
            let deletion = DeleteParams::default();
            leases.delete_collection(&deletion, &every).await.is_ok()
        };
        self.wait_for("the leases of nodes to go", let_go).await?;
        let kwok = components.kwok(&program, &kubeconfig, &stages, kubelets.pod_block);
        self.spawn(name, kwok)?;
        // It has to know the addresses of pods that run before there are more.
        let has_them = async || {
            let found = tokio::try_join!(nodes.list(&every), leases.list(&every));
            found.is_ok_and(|(nodes, leases)| leases.items.len() >= nodes.items.len())
        };
        self.wait_for("kwok to take over the nodes", has_them)
            .await?;

        let name = "kube-scheduler";
        let program = found(name, &components.binaries.kube_scheduler)?;
        let kubeconfig = keys.join(format!("{name}.kubeconfig"));
        credentials.write_kubeconfig(&kubeconfig, port, &format!("system:{name}"), None)?;
        self.spawn(name, components.scheduler(&program, &kubeconfig))
    }

    async fn wait_for(
        &mut self,
        awaited: &'static str,
        condition: impl AsyncFn() -> bool,
    ) -> Result<(), StartError> {
        loop {
            // A server that accepts but does not answer must not hold up the look at the rest.
            let answer = tokio::time::timeout(Duration::from_secs(5), condition());
            if answer.await == Ok(true) {
                return Ok(());
            }
            check(&mut self.components)?;
            if self.since.elapsed() > START_TIMEOUT {
                return Err(StartError::NotReady {
                    awaited,
                    logs: self.last_log_lines(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn last_log_lines(&self) -> String {
        let logs = self
            .components
            .iter()
            .map(|it| format!("{}:\n{}", it.name(), it.last_log_lines()));
        logs.collect::<Vec<_>>().join("\n")
    }
}

/// An error if a component has ended.
fn check(components: &mut [Process]) -> Result<(), StartError> {
    for component in components {
        if let Ok(Some(status)) = component.try_wait() {
            return Err(StartError::Exited {
                component: component.name().to_owned(),
                status,
                log: component.last_log_lines(),
            });
        }
    }
    Ok(())
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    |source| StartError::File { path, source }
}

/// Takes the data folder for this instance. Waits a little, because the watchdog of a killed
/// predecessor lets go of it only when the last component is gone.
async fn lock(data_dir: &Path) -> Result<File, StartError> {
    create_private_folder(data_dir)?;
    let path = data_dir.join("lock");
    let open = || {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().map_err(unusable(&path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(StartError::File { path, source }),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::InUse {
                    data_dir: data_dir.to_owned(),
                });
            }
        }
    }
}

async fn client_config(kubeconfig: &Path) -> Result<Config, StartError> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A proxy in the environment is for the world outside.
    config.proxy_url = None;
    Ok(config)
}

/// A client that leaves retries to its caller, who knows better when to look again.
fn polling_client(config: &Config) -> Result<Client, StartError> {
    let mut config = config.clone();
    config.default_retry = false;
    Client::try_from(config).map_err(StartError::Client)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn only_a_taken_port_is_worth_another_attempt() {
        let taken = r#"E1121 11:56:05.308460 9050 run.go:72] "command failed" err="failed to create listener: failed to listen on 127.0.0.1:20998: listen tcp 127.0.0.1:20998: bind: address already in use""#;

        for (log, again) in [(taken, true), ("unknown flag: --verbos", false)] {
            let error = StartError::Exited {
                component: "kube-apiserver".to_owned(),
                status: ExitStatus::from_raw(256),
                log: log.to_owned(),
            };
            assert_eq!(error.is_taken_port(), again, "{log}");
        }
    }
}
