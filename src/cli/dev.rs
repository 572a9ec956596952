//! `sgp dev`: a sandbox for people.

use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kube::config::Kubeconfig;

use super::signals::Signals;
use crate::dev::allocator::AllocatorOptions;
use crate::dev::cloud::{Instance, REGION};
use crate::dev::control_plane::{Binaries, KUBECONFIG_NAME};
use crate::dev::nodes::{NodeGroup, NodeGroupError};
use crate::dev::{CloudOptions, Sandbox, SandboxOptions, churn, demo, private_file};
use crate::telemetry::logs::LogArgs;

/// Run a Kubernetes cluster with sgp and a simulated EC2 on this machine
///
/// A real Kubernetes API server, etcd, controller manager and scheduler, with our custom
/// resources, the webhook and the allocator, on free ports of 127.0.0.1. The nodes are
/// instances of a simulated EC2, which the AWS CLI can look into; kwok acts as their kubelets,
/// so pods are scheduled and run, though nothing runs in them. The first start builds the programs from
/// Go modules, which takes minutes; later ones take seconds. Ctrl-C ends everything and
/// leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sgp dev                        five nodes of type m5.large over three zones
  sgp dev --demo                 start, and show what sgp does step by step
  sgp dev --demo --exit          the same as a check: exit code 0 if all went as it should
  sgp dev --churn 1000 --kills 20 --nodes m5.large=20 --exit
                                 let 1,000 pods come and go while the allocator is killed 20
                                 times: exit code 0 if nothing leaks
  sgp dev --nodes m5.large=3 --nodes c5.xlarge=2
  sgp dev --custom-networking    pods with security groups get addresses of 100.64.0.0/16
  sgp dev --kubeconfig sgp.conf  start, and write the kubeconfig to a file of your choice
  sgp dev --data-dir state       keep the cluster and the simulated EC2 for the next start

While it runs:
  kubectl apply -f examples/     a policy and pods
  kubectl annotate pod POD sgp.dev/outcome=Succeeded
                                 let a pod come to its end, or to its failure with Failed
  aws ec2 describe-network-interfaces
                                 look into the simulated EC2, with the environment that is
                                 printed at the start
  curl $AWS_ENDPOINT_URL_EC2/simulator/
                                 what else it can do: delays, faults, counts of calls

Environment:
  KUBEBUILDER_ASSETS  folder with etcd, kube-apiserver, kube-controller-manager,
                      kube-scheduler, kwok and kubectl, to be used instead of building them
  SGP_CACHE_DIR       where built programs are kept; by default sgp in the user's cache folder")]
pub(super) struct DevArgs {
    /// Nodes of an EC2 instance type and how many; repeatable; `none` for no nodes
    ///
    /// They are spread over three zones. With --data-dir, what is there already counts, and
    /// nothing is removed. [default: m5.large=5, or what the data folder has]
    #[arg(long, value_name = "TYPE=COUNT", value_parser = parse_nodes)]
    nodes: Vec<Nodes>,

    /// Take the addresses of pods with security groups from subnets of their own
    ///
    /// Sets AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG on the aws-node DaemonSet, and makes an
    /// ENIConfig for each zone.
    #[arg(long)]
    custom_networking: bool,

    /// Write the administrator's kubeconfig here; removed at the end
    ///
    /// A file that is there already is only replaced if an earlier sgp dev has left it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Keep the state of the cluster and of the simulated EC2 here for the next start
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Show what sgp does, step by step on the live API server and the simulated EC2
    ///
    /// Its numbers are those of five nodes of type m5.large with nothing else on them.
    #[arg(long, group = "shown", conflicts_with = "nodes")]
    demo: bool,

    /// Let so many pods come and go, and show that nothing leaks
    ///
    /// They live for seconds, some come to their end, some take the name of one that has gone;
    /// the policies that select them change meanwhile. In the end the interfaces in EC2 are
    /// compared with what the pods that live on need. Sets the cooldown of branches to its
    /// minimum; still, they rest for 30 seconds, so an m5.large takes about 15 pods a minute.
    #[arg(long, value_name = "PODS", group = "shown", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    churn: Option<u32>,

    /// Kill the allocator so often meanwhile, with SIGKILL
    #[arg(long, value_name = "NUMBER", requires = "churn", default_value_t = 3)]
    kills: u32,

    /// What pods do and when the allocator is killed follows from this number
    #[arg(long, value_name = "NUMBER", requires = "churn", default_value_t = 1)]
    seed: u64,

    /// End after the demo or the churn, with exit code 0 only if all was as it should be
    #[arg(long, requires = "shown")]
    exit: bool,
}

/// A value of `--nodes`.
#[derive(Clone, Debug)]
enum Nodes {
    None,
    Group(NodeGroup),
}

fn parse_nodes(text: &str) -> Result<Nodes, NodeGroupError> {
    match text {
        "none" | "0" => Ok(Nodes::None),
        group => Ok(Nodes::Group(group.parse()?)),
    }
}

impl DevArgs {
    pub(super) fn run(self, logs: &LogArgs) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let done = runtime.block_on(self.serve(logs));
        // A build that a signal has interrupted ends with this process, not before it.
        runtime.shutdown_background();
        done
    }

    async fn serve(self, logs: &LogArgs) -> anyhow::Result<()> {
        let mut signals = Signals::listen()?;
        if let Some(path) = &self.kubeconfig {
            WrittenKubeconfig::check_free(path)?;
        }
        let mut sandbox = tokio::select! {
            sandbox = self.start(logs) => sandbox?,
            // What has been started so far ends with this process.
            name = signals.next() => bail!("ended by {name} before everything was started"),
        };
        let done = self.use_sandbox(&mut sandbox, &mut signals).await;
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
            webhook_arguments: logs.to_arguments(),
            webhook_replicas: 1,
            webhook_client: None,
            cloud: Some(CloudOptions {
                nodes: self.wanted_nodes(),
                custom_networking: self.custom_networking,
            }),
            allocator: Some(AllocatorOptions {
                arguments: logs.to_arguments(),
                ..AllocatorOptions::default()
            }),
        };
        let sandbox = Sandbox::start(&binaries, options, progress).await?;
        progress("ready");
        Ok(sandbox)
    }

    fn wanted_nodes(&self) -> Option<Vec<NodeGroup>> {
        let groups = self.nodes.iter().filter_map(|nodes| match nodes {
            Nodes::None => None,
            Nodes::Group(group) => Some(group.clone()),
        });
        (!self.nodes.is_empty()).then(|| groups.collect())
    }

    async fn use_sandbox(
        &self,
        sandbox: &mut Sandbox,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let original = sandbox.control_plane().kubeconfig().to_owned();
        let written = match &self.kubeconfig {
            Some(path) => Some(WrittenKubeconfig::copy(&original, path)?),
            None => None,
        };
        if let Some(pods) = self.churn {
            let options = churn::Options {
                pods: pods as usize,
                kills: self.kills as usize,
                seed: self.seed,
            };
            let report = tokio::select! {
                report = show_churn(sandbox, &options) => report?,
                name = signals.next() => bail!("the churn was ended by {name}"),
            };
            match (self.exit, report.is_clean()) {
                (true, true) => return Ok(()),
                (true, false) => bail!("the churn has left what should not be"),
                (false, _) => {}
            }
        }
        if self.demo {
            match show_demo(sandbox, signals).await? {
                Shown::AsExpected if self.exit => return Ok(()),
                Shown::NotAsExpected if self.exit => {
                    bail!("the demo did not show what it should");
                }
                Shown::Interrupted if self.exit => bail!("the demo was interrupted"),
                Shown::Interrupted => return Ok(()),
                Shown::AsExpected | Shown::NotAsExpected => {}
            }
        }
        introduce(
            sandbox,
            written.as_ref().map_or(&original, |written| &written.path),
        );
        let name = signals.next().await;
        eprintln!("{name}: ending everything");
        Ok(())
    }
}

/// Plays a churn and prints what it has come to.
async fn show_churn(
    sandbox: &mut Sandbox,
    options: &churn::Options,
) -> anyhow::Result<churn::Report> {
    eprintln!("pods come and go, and the allocator is killed");
    // Hidden where standard error is no terminal.
    let template = "{spinner} {elapsed} [{wide_bar}] {pos} of {len} pods created {msg}";
    let style = ProgressStyle::with_template(template).expect("a constant template");
    let progress = ProgressBar::new(options.pods as u64).with_style(style);
    progress.enable_steady_tick(Duration::from_millis(100));
    let report = churn::run(sandbox, options, &progress).await;
    progress.finish_and_clear();
    let report = report?;
    print!("{report}");
    Ok(report)
}

/// What the step that runs at a signal has until everything ends.
const LAST_STEP: Duration = Duration::from_secs(5);

/// How a demo ended.
enum Shown {
    AsExpected,
    NotAsExpected,
    Interrupted,
}

/// Shows the demo until it is over or a signal comes; then the step that runs is finished
/// first, for it needs the cluster.
async fn show_demo(sandbox: &Sandbox, signals: &mut Signals) -> anyhow::Result<Shown> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (kubectl, stop) = (sandbox.control_plane().kubectl(), interrupted.clone());
    let aws = demo::Aws::new(sandbox.cloud());
    let mut demo = tokio::task::spawn_blocking(move || {
        demo::run(|| again(&kubectl), &aws, &mut anstream::stdout(), &stop)
    });
    tokio::select! {
        as_expected = &mut demo => Ok(match as_expected?? {
            true => Shown::AsExpected,
            false => Shown::NotAsExpected,
        }),
        name = signals.next() => {
            eprintln!("{name}: ending everything");
            interrupted.store(true, Ordering::Relaxed);
            // A step that hangs, or a second signal, ends the wait for it.
            tokio::select! {
                shown = demo => { shown??; }
                _ = signals.next() => {}
                () = tokio::time::sleep(LAST_STEP) => {}
            }
            Ok(Shown::Interrupted)
        }
    }
}

/// The same program in the same environment once more.
fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    // A terminal's Ctrl-C is for us, who let the step come to its end.
    again.process_group(0);
    again.envs(
        command
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    again
}

fn introduce(sandbox: &Sandbox, kubeconfig: &Path) {
    let kubectl = sandbox.control_plane().kubectl();
    println!("\nready\n");
    println!("  export KUBECONFIG='{}'", kubeconfig.display());
    let folder = Path::new(kubectl.get_program()).parent();
    if let Some(folder) = folder.filter(|_| !is_on_path("kubectl")) {
        println!("  export PATH=\"$PATH:{}\"", folder.display());
    }
    let cloud = sandbox.cloud();
    match sandbox.nodes() {
        [] => println!("\nThere are no nodes, and a simulated EC2 ({REGION}) without instances."),
        _ => println!("\nThe nodes, instances of a simulated EC2 ({REGION}):\n"),
    }
    let width = sandbox.nodes().iter().map(|node| node.name.len()).max();
    for node in sandbox.nodes() {
        let Instance {
            id,
            instance_type,
            zone,
            ..
        } = &node.instance;
        let (name, width) = (&node.name, width.unwrap_or_default());
        println!("  {name:width$}  {instance_type}  {zone}  {id}");
    }
    println!("\nThe AWS CLI looks into it with\n");
    let variables = cloud
        .environment()
        .map(|(name, value)| format!("{name}={value}"));
    let (endpoint, others) = variables.split_at(1);
    println!("  export {}", endpoint.join(" "));
    println!("  export {}", others.join(" "));
    let groups = &cloud.network().groups;
    println!("\nand finds these security groups, among others:\n");
    println!("  {}  green, which the examples use", groups.green);
    println!("  {}  database, which green may reach", groups.database);
    println!("  {}  the nodes' own", groups.nodes);
    println!("\nCommands to try:\n");
    println!("  kubectl apply -f examples/");
    println!("  kubectl get pods -o wide");
    println!("  kubectl get pods -o custom-columns='{COLUMNS}'");
    println!("  kubectl describe replicaset hasty");
    println!(
        "  kubectl get nodes -L node.kubernetes.io/instance-type -L topology.kubernetes.io/zone"
    );
    println!("  aws ec2 describe-network-interfaces");
    let log = sandbox.control_plane().run_dir().join("webhook.log");
    println!("\nThe webhook's log is {},", log.display());
    println!("and beside it is allocator.log.");
    println!("Ctrl-C ends everything.");
}

const COLUMNS: &str = "NAME:.metadata.name,RESOURCES:.spec.containers[0].resources.limits";

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A kubeconfig where the user wants it. Goes at the end, since it leads nowhere then.
struct WrittenKubeconfig {
    path: PathBuf,
    content: Vec<u8>,
}

impl WrittenKubeconfig {
    /// Refuses to write over what may be somebody's only way into their clusters. What a
    /// killed instance has left is not.
    fn check_free(path: &Path) -> anyhow::Result<()> {
        let found = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.with_context(|| format!("can't read {}", path.display()))?,
        };
        let kubeconfig = serde_saphyr::from_slice::<Kubeconfig>(&found).ok();
        let is_ours = kubeconfig.is_some_and(|config| {
            let clusters: Vec<_> = config.clusters.iter().map(|named| &named.name).collect();
            clusters == [KUBECONFIG_NAME]
        });
        if is_ours {
            return Ok(());
        }
        bail!(
            "{} exists and is not a kubeconfig of sgp dev; name another file, or move it away",
            path.display()
        );
    }

    fn copy(original: &Path, path: &Path) -> anyhow::Result<Self> {
        Self::check_free(path)?;
        let content = fs::read(original)?;
        let path = std::path::absolute(path)?;
        let written = private_file::write(&path, &content);
        written.with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self { path, content })
    }
}

impl Drop for WrittenKubeconfig {
    fn drop(&mut self) {
        // Another instance may have written its own over it.
        if fs::read(&self.path).is_ok_and(|content| content == self.content) {
            // A file that stays does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}
