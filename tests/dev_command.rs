//! `sgp dev` as a person uses it: what it shows, and that nothing of it stays.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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
        self.told("export KUBECONFIG=", "\n")
    }

    fn run_folder(&self) -> PathBuf {
        self.told("The webhook's log is ", "/webhook.log")
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
        let id = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(id, signal).unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The processes that have something in this folder among their arguments.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let arguments = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
    let all = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(arguments);
    let text = all.map(|arguments| String::from_utf8_lossy(&arguments).replace('\0', " "));
    text.filter(|arguments| arguments.contains(folder))
        .collect()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn assert_nothing_is_left(run_folder: &Path) {
    eventually("the run folder to go", || !run_folder.exists());
    eventually("the last process to go", || {
        processes_of(run_folder).is_empty()
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
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(
        output.status.success(),
        "{shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        shown.contains("All 9 steps showed what they should."),
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

    let why = readme_says("kubectl describe replicaset hasty");
    let why = why
        .iter()
        .find(|line| line.contains("denied the request"))
        .unwrap();
    let (_, why) = why.split_once("Error creating: ").unwrap();
    eventually("the refusal in the description", || {
        text(&dev.kubectl("describe replicaset hasty")).contains(why)
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
    killed.end(Signal::KILL);

    let next = Dev::start(&arguments);
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
