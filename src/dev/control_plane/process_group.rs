//! Child processes that never outlive their owner, and the folder they write to.
//!
//! Every child of a [`ProcessGroup`] is in the process group of its watchdog, a small shell
//! script that waits on a pipe whose other end only the owner holds. The pipe closes when the
//! owner is gone, in whatever way: stopped, panicked, exited without running destructors, or
//! killed. The watchdog then ends everything in its group, removes the folder and itself.
//! While the watchdog lives its group id cannot be given to other processes, so a signal to
//! the group never hits a stranger.
//!
//! The group is not the terminal's foreground group, so Ctrl-C reaches the owner only, which
//! then ends the children in the order it wants.
//!
//! Nothing here knows what the children are, and nothing here needs an async runtime.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The folder is removed before the last signal because that one also ends the script. A child
/// that ignored SIGTERM may still write meanwhile, hence the second attempt.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
while read -r line; do :; done
kill -TERM 0
sleep 1
rm -rf -- "$1" || rm -rf -- "$1"
kill -KILL 0
"#;

/// How often a stopping child is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A folder and the processes that work in it; both go with this value.
#[derive(Debug)]
pub struct ProcessGroup {
    watchdog: Child,
    folder: PathBuf,
    /// Closing it wakes the watchdog. Rust opens pipes close-on-exec, so no child has a copy.
    owner_lives: Option<ChildStdin>,
}

impl ProcessGroup {
    /// Makes a private folder in `parent`, whose name starts with `prefix`, and its watchdog.
    ///
    /// A lock on `held` stays locked until both this value and the watchdog are gone: after a
    /// kill of the owner, that is when the last child has been ended.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made or `sh` cannot be started.
    pub fn new(parent: &Path, prefix: &str, held: Option<File>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "sgp-watchdog"])
            .arg(folder.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(held.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        // Taken out of the child, because waiting for a child closes what it still holds.
        let owner_lives = watchdog.stdin.take();
        Ok(Self {
            watchdog,
            folder: folder.keep(),
            owner_lives,
        })
    }

    /// The folder, readable by this user only. Logs are in it as `<name>.log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts `command` in the group, with output appended to `<name>.log` in the folder.
    ///
    /// # Errors
    ///
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> io::Result<Process> {
        let log_path = self.folder.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log_path)?;
        let group = Pid::from_child(&self.watchdog).as_raw_nonzero().get();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(group);
        Ok(Process {
            name: name.to_owned(),
            child: command.spawn()?,
            command,
            log_path,
        })
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Not yet waited for, so the id is still the watchdog's, also if it should be dead.
        // An error can only mean that nothing is left in the group.
        let _ = kill_process_group(Pid::from_child(&self.watchdog), Signal::KILL);
        let _ = self.watchdog.wait();
        self.owner_lives = None;
        // Killed processes that we do not wait for may still create a file for an instant.
        for _ in 0..20 {
            match fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(POLL_INTERVAL)
                }
                _ => break,
            }
        }
    }
}

/// One child of a [`ProcessGroup`]. Killed when dropped.
#[must_use = "a process is killed when its handle is dropped"]
#[derive(Debug)]
pub struct Process {
    name: String,
    command: Command,
    child: Child,
    log_path: PathBuf,
}

impl Process {
    /// The name under which it was started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with everything the process wrote.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// How the process ended, or `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks the process to end with SIGTERM and kills it when it is still there after `grace`.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + grace;
        self.signal(Signal::TERM)?;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
        self.kill()
    }

    /// Ends the process with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Starts the same command once more, after killing the process if it still runs. The
    /// output is appended to the same log.
    ///
    /// # Errors
    ///
    /// When the operating system refuses, for one because the group is gone.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.child = self.command.spawn()?;
        Ok(())
    }

    /// Sends a signal, such as SIGSTOP and SIGCONT. No error if the process has ended.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // Not waited for before, or known to have ended: the id is nobody else's.
        if self.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// The last lines of the log, for an error message.
    pub fn last_log_lines(&self) -> String {
        last_lines(&self.log_path)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The end of a log file, indented. Says so when there is nothing to read.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 15;
    const BYTES: u64 = 8 * 1024;

    let read_end = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let end = read_end().unwrap_or_default();
    let end = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = end.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "  (its log is empty)".to_owned();
    }
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn group() -> ProcessGroup {
        ProcessGroup::new(&std::env::temp_dir(), "sgp-process-group-test-", None).unwrap()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn runs(id: u32) -> bool {
        let id = Pid::from_raw(id.try_into().unwrap()).unwrap();
        rustix::process::test_kill_process(id).is_ok()
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "{what} did not come true");
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn wrote(process: &Process, words: &str) -> bool {
        fs::read_to_string(process.log_path())
            .unwrap()
            .contains(words)
    }

    #[test]
    fn dropping_the_group_ends_children_and_grandchildren_and_removes_the_folder() {
        let group = group();
        let folder = group.folder().to_owned();
        let process = group
            .spawn("parent", shell("sleep 1000 & echo $!; wait"))
            .unwrap();
        let grandchild = || -> Option<u32> {
            fs::read_to_string(process.log_path())
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        wait_for("the grandchild's start", || grandchild().is_some());
        let (parent, grandchild) = (process.id(), grandchild().unwrap());

        drop(group);
        drop(process);

        assert!(!runs(parent));
        // Reaped by init, not by us.
        wait_for("the grandchild's end", || {
            !runs(grandchild) || is_zombie(grandchild)
        });
        assert!(!folder.exists());
    }

    fn is_zombie(id: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.contains(") Z")
    }

    #[test]
    fn the_watchdog_cleans_up_when_only_the_pipe_closes() {
        let mut group = group();
        let folder = group.folder().to_owned();
        // Ignoring SIGTERM does not help.
        let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
        let mut process = group.spawn("stubborn", stubborn).unwrap();
        wait_for("the trap", || wrote(&process, "ready"));

        // What the kernel does for an owner that is killed: no destructor, but a closed pipe.
        group.owner_lives = None;

        wait_for("the end of the child", || {
            process.try_wait().unwrap().is_some()
        });
        assert!(!folder.exists());
    }

    #[test]
    fn stop_gives_time_to_end_in_order() {
        let group = group();
        let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let mut process = group.spawn("polite", shell(script)).unwrap();
        wait_for("the trap", || wrote(&process, "ready"));

        let status = process.stop(PATIENCE).unwrap();

        assert_eq!(status.code(), Some(3));
        assert!(wrote(&process, "bye"));
    }

    #[test]
    fn stop_kills_what_ignores_the_request() {
        let group = group();
        let mut process = group
            .spawn(
                "stubborn",
                shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"),
            )
            .unwrap();
        wait_for("the trap", || wrote(&process, "ready"));

        let status = process.stop(Duration::from_millis(50)).unwrap();

        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
    }

    #[test]
    fn restart_runs_the_same_command_and_goes_on_with_the_log() {
        let group = group();
        let mut process = group.spawn("again", shell("echo one; sleep 1000")).unwrap();
        wait_for("the first start", || wrote(&process, "one\n"));
        let first = process.id();
        // One that does not listen to reason either.
        process.signal(Signal::STOP).unwrap();

        process.restart().unwrap();

        assert_ne!(process.id(), first);
        wait_for("the second start", || wrote(&process, "one\none\n"));
        process.kill().unwrap();
        process.signal(Signal::TERM).unwrap();
        process.restart().unwrap();
        wait_for("the third start", || wrote(&process, "one\none\none\n"));

        drop(group);
        wait_for("the end with the group", || {
            process.try_wait().unwrap().is_some()
        });
    }

    #[test]
    fn an_ended_process_shows_its_last_words() {
        let group = group();
        let mut process = group
            .spawn("short", shell("echo one; echo two >&2; exit 7"))
            .unwrap();
        let status = process.child.wait().unwrap();

        assert_eq!(status.code(), Some(7));
        assert_eq!(process.last_log_lines(), "  one\n  two");
    }
}
