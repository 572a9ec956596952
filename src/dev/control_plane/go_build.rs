//! Builds the control plane's programs with `go build tool`.
//!
//! go.mod and go.sum are part of this program, so an installed `sgp` needs no source tree.
//! The build runs in a [`ProcessGroup`]: whatever ends this process also ends the compilers
//! and removes the half-done folder.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::binaries::{BinariesError, in_cache};
use super::process_group::ProcessGroup;

pub(super) const GO_MOD: &str = include_str!("modules/go.mod");
pub(super) const GO_SUM: &str = include_str!("modules/go.sum");

/// About how many packages an empty build cache has to compile.
const PACKAGES: u64 = 3_900;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often there is a line where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// The command that is `go`, with arguments that come before Go's own.
pub(super) struct Toolchain(Vec<OsString>);

impl Default for Toolchain {
    fn default() -> Self {
        Self(vec!["go".into()])
    }
}

impl Toolchain {
    #[cfg(test)]
    pub(super) fn program(name: &str) -> Self {
        Self(vec![name.into()])
    }

    #[cfg(test)]
    pub(super) fn script(script: &str) -> Self {
        Self(vec!["sh".into(), "-c".into(), script.into(), "go".into()])
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.0[0]);
        command
            .args(&self.0[1..])
            .current_dir(folder)
            .stdin(Stdio::null());
        // Whatever this shell is set up to build, these programs are for this machine and
        // from these modules.
        command
            .env("CGO_ENABLED", "0")
            .env("GO111MODULE", "on")
            .env("GOWORK", "off");
        command.env_remove("GOOS").env_remove("GOARCH");
        command
    }

    /// The version that builds a module in `folder`, which may be one that Go fetches for it.
    fn version(&self, folder: &Path) -> io::Result<Option<String>> {
        let output = self.command(folder).args(["env", "GOVERSION"]).output()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok((output.status.success() && !version.is_empty()).then_some(version))
    }

    fn check(&self, folder: &Path) -> Result<(), BinariesError> {
        let needed = directive("go");
        let missing = |_| BinariesError::GoMissing {
            needed: needed.to_owned(),
        };
        let version = self.version(folder).map_err(missing)?;
        if version
            .as_deref()
            .is_some_and(|version| is_at_least(version, needed))
        {
            return Ok(());
        }
        // Go refuses to answer beside a go.mod that is too new for it.
        let found = self.version(Path::new("/")).map_err(missing)?;
        Err(BinariesError::GoTooOld {
            found: found.unwrap_or_else(|| "of an unknown version".to_owned()),
            needed: needed.to_owned(),
        })
    }
}

/// The flags that decide what is built.
pub(super) fn flags() -> Vec<String> {
    let version = directive("k8s.io/kubernetes");
    let set_version = [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ]
    // Without a version, clients cannot parse the server's.
    .map(|package| format!("-X {package}.gitVersion={version}"))
    .join(" ");
    // The cache may be inside somebody's Git repository, of no concern to this build.
    let mut flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags"]
        .map(String::from)
        .to_vec();
    flags.push(format!("-s -w {set_version}"));
    flags
}

/// Builds into a new folder in `cache` and renames the result to `destination`.
pub(super) fn build(
    toolchain: &Toolchain,
    cache: &Path,
    prefix: &str,
    destination: &Path,
) -> Result<(), BinariesError> {
    let group = ProcessGroup::new(cache, prefix, None).map_err(in_cache(cache))?;
    let folder = group.folder();
    let programs = folder.join("bin");
    for (file, contents) in [("go.mod", GO_MOD), ("go.sum", GO_SUM)] {
        fs::write(folder.join(file), contents).map_err(in_cache(folder))?;
    }
    fs::create_dir(&programs).map_err(in_cache(&programs))?;
    toolchain.check(folder)?;

    let mut command = toolchain.command(folder);
    command
        .args(["build", "-v"])
        .args(flags())
        .args(["-o", "bin/", "tool"]);
    let mut go = group.spawn("go-build", command).map_err(in_cache(folder))?;
    let mut progress = Progress::start(destination);
    let mut log = File::open(go.log_path()).map_err(in_cache(folder))?;
    let status = loop {
        let status = go.try_wait().map_err(in_cache(folder))?;
        let mut news = Vec::new();
        log.read_to_end(&mut news).map_err(in_cache(folder))?;
        progress.show(&String::from_utf8_lossy(&news));
        match status {
            Some(status) => break status,
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    progress.end();
    if !status.success() {
        return Err(BinariesError::BuildFailed {
            output: go.last_log_lines(),
        });
    }

    fs::rename(programs.join("server"), programs.join("etcd")).map_err(in_cache(&programs))?;
    fs::rename(&programs, destination).map_err(in_cache(destination))
}

/// A spinner on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    packages: u64,
}

impl Progress {
    fn start(destination: &Path) -> Self {
        eprintln!(
            "building the Kubernetes control plane from Go modules into {} (about 5 minutes, once)",
            destination.display()
        );
        let bar = io::stderr().is_terminal().then(|| {
            let template = "{spinner} {elapsed} {pos} of about {len} packages: {wide_msg}";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            let bar = ProgressBar::new(PACKAGES).with_style(style);
            bar.enable_steady_tick(POLL_INTERVAL);
            bar
        });
        Self {
            bar,
            started: Instant::now(),
            last_line: Instant::now(),
            packages: 0,
        }
    }

    fn show(&mut self, news: &str) {
        // Beside packages, Go names the modules that it downloads.
        let packages = news
            .lines()
            .filter(|line| !line.starts_with("go: "))
            .count();
        self.packages += packages as u64;
        if let Some(bar) = &self.bar {
            bar.set_position(self.packages);
            if let Some(latest) = news.lines().last() {
                bar.set_message(latest.to_owned());
            }
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            eprintln!(
                "{seconds} s: {} of about {PACKAGES} packages built",
                self.packages
            );
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "go build ended after {} s",
            self.started.elapsed().as_secs()
        );
    }
}

/// What go.mod says after a word: the Go version, or the version of a required module.
fn directive(word: &str) -> &'static str {
    GO_MOD
        .lines()
        .find_map(|line| line.trim().strip_prefix(word)?.strip_prefix(' '))
        .and_then(|rest| rest.split_whitespace().next())
        .expect("go.mod is part of this program and has it")
}

/// Whether a version such as `go1.26.8` or `go1.27rc1` is `needed`, such as `1.26.0`, or later.
fn is_at_least(version: &str, needed: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        version
            .trim_start_matches("go")
            .split('.')
            .map_while(|part| {
                part.split(|c: char| !c.is_ascii_digit())
                    .next()?
                    .parse()
                    .ok()
            })
            .collect()
    };
    let (mut version, mut needed) = (numbers(version), numbers(needed));
    version.resize(3, 0);
    needed.resize(3, 0);
    version >= needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        for (version, enough) in [
            ("go1.26.0", true),
            ("go1.26.8", true),
            ("go1.26", true),
            ("go1.27rc1", true),
            ("go2.0", true),
            ("go1.26.8-custom X:nocoverageredesign", true),
            ("go1.25.9", false),
            ("go1.9", false),
            ("devel", false),
        ] {
            assert_eq!(is_at_least(version, "1.26.0"), enough, "{version}");
        }
    }

    #[test]
    fn the_kubernetes_version_is_read_from_go_mod() {
        let version = directive("k8s.io/kubernetes");

        assert!(version.starts_with("v1."), "{version}");
        assert!(
            flags()
                .last()
                .unwrap()
                .contains(&format!("version.gitVersion={version}"))
        );
    }

    #[test]
    fn modules_name_no_folder_of_any_machine() {
        let replaced_by_folder = GO_MOD.lines().filter(|line| {
            line.split("=> ")
                .nth(1)
                .is_some_and(|target| target.starts_with(['.', '/']))
        });

        assert_eq!(replaced_by_folder.count(), 0);
    }
}
