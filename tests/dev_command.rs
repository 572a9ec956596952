//! `sgp dev` as a person uses it: what it shows, and that nothing of it stays.

#[path = "support/processes.rs"]
mod processes;
#[path = "support/waiting.rs"]
mod waiting;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

use processes::processes_of;
use rustix::process::{Pid, Signal, kill_process};
use waiting::eventually;

/// A running `sgp dev`; killed when the test is over.
struct Dev {
    process: Child,
    /// What it printed until it was ready.
    introduction: String,
    /// Open as long as the process is, so that it can go on talking.
    progress: ChildStderr,
}

impl Dev {
    /// Starts `sgp dev` and waits until it says that it is ready.
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_sgp"))
            .arg("dev")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let progress = process.stderr.take().unwrap();
        let stdout = process.stdout.take().unwrap();
        // From here on the process ends with the test, whatever happens.
        let mut dev = Self {
            process,
            introduction: String::new(),
            progress,
        };
        for line in BufReader::new(stdout).lines() {
            dev.introduction += &line.unwrap();
            dev.introduction.push('\n');
            if dev.introduction.ends_with("Ctrl-C ends everything.\n") {
                return dev;
            }
        }
        let mut error = String::new();
        dev.progress.read_to_string(&mut error).unwrap();
        panic!("it ended before it was ready: {error}");
    }

    /// What stands in the introduction between `before` and `after`.
    #[track_caller]
    fn told(&self, before: &str, after: &str) -> PathBuf {
        let (_, rest) = self
            .introduction
            .split_once(before)
            .expect(&self.introduction);
        rest.split_once(after).expect(&self.introduction).0.into()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.told("export KUBECONFIG='", "'\n")
    }

    fn run_folder(&self) -> PathBuf {
        self.told("The webhook's log is ", "/webhook.log")
    }

    /// A line for each node, with its instance's type, zone and id.
    fn nodes(&self) -> String {
        let nodes = self.told(
            "The nodes, instances of a simulated EC2 (us-west-2):\n\n",
            "\n\n",
        );
        nodes.to_str().unwrap().to_owned()
    }

    fn kubectl(&self, command: &str) -> Output {
        // As in a shell, with both streams in the order in which a person sees them.
        let kubectl = sgp::dev::control_plane::Binaries::find_or_build()
            .unwrap()
            .kubectl;
        let script = format!("exec {} {command} 2>&1", kubectl.display());
        Command::new("sh")
            .args(["-c", &script])
            .env("KUBECONFIG", self.kubeconfig())
            .output()
            .unwrap()
    }

    /// Sends a signal and waits for the end.
    fn end(&mut self, signal: Signal) -> ExitStatus {
        send(&self.process, signal);
        self.process.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn send(process: &Child, signal: Signal) {
    let id = Pid::from_raw(process.id().cast_signed()).unwrap();
    kill_process(id, signal).unwrap();
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn assert_nothing_is_left(run_folder: &Path) {
    eventually("the run folder and the last process to go", || {
        let is_left = run_folder.exists() || !processes_of(run_folder).is_empty();
        (!is_left).then_some(())
    });
}

/// The console block of the README that begins with this command, without the command.
fn readme_says(command: &str) -> Vec<String> {
    let readme = include_str!("../README.md");
    let (_, rest) = readme
        .split_once(&format!("$ {command}\n"))
        .expect("the README has it");
    rest.split_once("```")
        .unwrap()
        .0
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn demo_shows_what_it_should_and_ends_with_status_0() {
    let output = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["dev", "--demo", "--exit"])
        // Leads nowhere: what runs on this machine is not reached through a proxy.
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(
        output.status.success(),
        "{shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        shown.contains(" steps showed what they should.\n") && shown.contains("\nAll "),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "colours are for terminals only");
}

#[test]
fn examples_give_what_the_readme_says_line_for_line() {
    let dev = Dev::start(&[]);
    let applied = dev.kubectl("apply -f examples/");
    let lines: Vec<_> = text(&applied).lines().map(str::to_owned).collect();
    assert_eq!(lines, readme_says("kubectl apply -f examples/"));

    let columns = "NAME:.metadata.name,RESOURCES:.spec.containers[0].resources.limits";
    let command = format!("kubectl get pods -o custom-columns='{columns}'");
    let pods = dev.kubectl(command.strip_prefix("kubectl ").unwrap());
    let lines: Vec<_> = text(&pods).lines().map(str::to_owned).collect();
    assert_eq!(lines, readme_says(&command));

    let command = "kubectl get pods -o custom-columns='NAME:.metadata.name,STATUS:.status.phase'";
    eventually("all pods to run", || {
        let pods = dev.kubectl(command.strip_prefix("kubectl ").unwrap());
        let lines: Vec<_> = text(&pods).lines().map(str::to_owned).collect();
        (lines == readme_says(command)).then_some(())
    });

    let why = readme_says("kubectl describe replicaset hasty");
    let why = why
        .iter()
        .find(|line| line.contains("denied the request"))
        .unwrap();
    let (_, why) = why.split_once("Error creating: ").unwrap();
    eventually("the refusal in the description", || {
        let described = text(&dev.kubectl("describe replicaset hasty"));
        described.contains(why).then_some(())
    });
}

#[test]
fn signal_to_end_leaves_no_process_and_no_folder() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let mut dev = Dev::start(&["--kubeconfig", kubeconfig.to_str().unwrap()]);
        let run_folder = dev.run_folder();
        assert!(
            !processes_of(&run_folder).is_empty(),
            "the search finds what runs"
        );
        let nodes = dev.kubectl("get --raw /readyz");
        assert_eq!(text(&nodes), "ok", "the kubeconfig leads to the API server");

        let status = dev.end(signal);
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!run_folder.exists(), "{signal:?}");
        assert_eq!(
            processes_of(&run_folder),
            Vec::<String>::new(),
            "{signal:?}"
        );
        assert!(!kubeconfig.exists(), "{signal:?}");
    }
}

#[test]
fn killed_instance_leaves_nothing_and_the_next_start_goes_on_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap()];
    let mut killed = Dev::start(&arguments);
    text(&killed.kubectl("apply -f examples/1-policy.yaml"));
    let run_folder = killed.run_folder();
    let nodes = killed.nodes();
    assert_eq!(nodes.lines().count(), 5, "{nodes}");
    killed.end(Signal::KILL);

    let next = Dev::start(&arguments);
    assert_eq!(next.nodes(), nodes, "the same nodes on the same instances");
    let ready = next.kubectl("wait --for=condition=Ready --timeout=120s nodes --all");
    assert_eq!(text(&ready).lines().count(), 5, "{ready:?}");
    let policies = text(&next.kubectl("get securitygrouppolicies"));
    assert!(policies.contains("database-clients"), "{policies}");
    let pod = text(&next.kubectl("create --dry-run=server -o yaml -f examples/2-green.yaml"));
    assert!(
        pod.contains("vpc.amazonaws.com/pod-eni"),
        "the webhook is called: {pod}"
    );
    assert_nothing_is_left(&run_folder);
}

#[test]
fn instance_killed_without_data_to_keep_leaves_nothing() {
    let mut dev = Dev::start(&[]);
    let run_folder = dev.run_folder();
    dev.end(Signal::KILL);
    assert_nothing_is_left(&run_folder);
}

#[test]
fn demo_that_is_interrupted_does_nothing_more_and_says_so() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["dev", "--demo", "--exit"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().unwrap().starts_with("1. "));
    send(&process, Signal::INT);
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    let output = process.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();

    assert!(first.is_some(), "{error}");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("the demo was interrupted"), "{error}");
    // The step that ran at the signal is finished, and perhaps one that had just begun.
    let later = rest.iter().find(|line| line.starts_with("4. "));
    assert!(later.is_none(), "{rest:#?}");
}

#[test]
fn build_that_is_interrupted_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // Stands for a Go that builds for minutes, and tells when it has begun.
    let begun = folder.path().join("begun");
    let go = folder.path().join("go");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nbuild) touch '{}'; exec sleep 600;;\n*) exec '{}' \"$@\";;\nesac\n",
        begun.display(),
        program("go").display()
    );
    fs::write(&go, script).unwrap();
    fs::set_permissions(&go, PermissionsExt::from_mode(0o755)).unwrap();
    let inherited = env::var("PATH").unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .arg("dev")
        .env("PATH", format!("{}:{inherited}", folder.path().display()))
        .env("SGP_CACHE_DIR", folder.path())
        .env_remove("KUBEBUILDER_ASSETS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the build to begin", || begun.exists().then_some(()));
    send(&process, Signal::INT);
    eventually("the end", || process.try_wait().unwrap());
    let output = process.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();

    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("ended by SIGINT before everything was started"),
        "{error}"
    );
    eventually("the build's processes to go", || {
        processes_of(folder.path()).is_empty().then_some(())
    });
}

fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join(name));
    candidates.find(|path| path.is_file()).expect(name)
}

#[test]
fn simulated_ec2_has_the_nodes_that_were_asked_for() {
    let dev = Dev::start(&["--nodes", "c5.xlarge=1", "--nodes", "m5.large=1"]);
    let nodes = dev.nodes();
    let types: Vec<_> = nodes
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(types.len(), 2, "{nodes}");
    assert!(
        types.contains(&"c5.xlarge") && types.contains(&"m5.large"),
        "{nodes}"
    );

    let endpoint = dev.told("export AWS_ENDPOINT_URL_EC2=http://", "\n");
    let mut connection = TcpStream::connect(endpoint.to_str().unwrap()).unwrap();
    let call = "GET /?Action=DescribeInstances&Version=2016-11-15 HTTP/1.1\r\n\
                Host: ec2\r\nConnection: close\r\n\r\n";
    connection.write_all(call.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    for line in nodes.lines() {
        let instance = line.split_whitespace().last().unwrap();
        assert!(answer.contains(instance), "{instance}: {answer}");
    }
}

#[test]
fn unknown_instance_type_is_refused_with_names_near_to_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["dev", "--nodes", "m5.lagre=3"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();

    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("there is no instance type m5.lagre"),
        "{error}"
    );
    assert!(error.contains("m5.large"), "{error}");
}

#[test]
fn kubeconfig_of_somebody_else_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("config");
    let theirs = "apiVersion: v1\nkind: Config\nclusters: [{name: production, cluster: {}}]\n";
    fs::write(&kubeconfig, theirs).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["dev", "--kubeconfig"])
        .arg(&kubeconfig)
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("is not a kubeconfig of sgp dev; name another file"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&kubeconfig).unwrap(), theirs);
}
