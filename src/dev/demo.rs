//! A walkthrough on the live API server: what is done, what it says, and whether it says
//! what it should.
//!
//! The steps are data. Each runs the real `kubectl` and shows its real output.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a step waits for what controllers and watches bring about.
const PATIENCE: Duration = Duration::from_secs(30);

/// One thing to do and what must show.
struct Step {
    title: &'static str,
    /// Arguments of `kubectl`.
    command: &'static [&'static str],
    /// What `kubectl` reads on standard input, if anything.
    manifest: Option<&'static str>,
    expected: Expected,
    /// Whether it is done again until it shows what it should. Only for what leaves no trace.
    patient: bool,
}

/// What must show.
struct Expected {
    success: bool,
    /// Texts that must occur in the output, on either stream.
    texts: &'static [&'static str],
    /// Texts that must not.
    no_texts: &'static [&'static str],
}

const REQUESTED: &str = r#""vpc.amazonaws.com/pod-eni":"1""#;

const POLICY: &str = include_str!("../../examples/1-policy.yaml");
const GREEN: &str = include_str!("../../examples/2-green.yaml");
const RED: &str = include_str!("../../examples/3-red.yaml");
const HASTY_REPLICA_SET: &str = include_str!("../../examples/5-hasty.yaml");
const HASTY_POD: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: hasty
  labels:
    app: green
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: app
      image: registry.k8s.io/pause:3.10
";

const DENIAL: &[&str] = &[
    "denied the request: pod",
    r#"SecurityGroupPolicy "database-clients""#,
    "spec.terminationGracePeriodSeconds is 0",
    "Write terminationGracePeriodSeconds: 1 or more",
];

const RESOURCES: &str = "jsonpath={.spec.containers[0].resources}{\"\\n\"}";

const STEPS: &[Step] = &[
    Step {
        title: "A namespace of its own",
        command: &["create", "namespace", "demo"],
        manifest: None,
        expected: shows(&["namespace/demo created"]),
        patient: false,
    },
    Step {
        title: "A policy: pods with app=green get a security group",
        command: &["apply", "--namespace=demo", "-f", "-"],
        manifest: Some(POLICY),
        expected: shows(&["securitygrouppolicy.vpcresources.k8s.aws/database-clients created"]),
        patient: false,
    },
    Step {
        title: "What would become of a green pod? A server-side dry run tells, and keeps nothing",
        command: &[
            "apply",
            "--namespace=demo",
            "--dry-run=server",
            "-o",
            RESOURCES,
            "-f",
            "-",
        ],
        manifest: Some(GREEN),
        expected: shows(&[REQUESTED]),
        patient: true,
    },
    Step {
        title: "The green pod: it asks for a branch interface now, in limits and requests",
        command: &["apply", "--namespace=demo", "-o", RESOURCES, "-f", "-"],
        manifest: Some(GREEN),
        expected: shows(&[r#""limits":{"vpc."#, r#""requests":{"vpc."#, REQUESTED]),
        patient: false,
    },
    Step {
        title: "The red pod: no policy selects it, so it is left as it is",
        command: &["apply", "--namespace=demo", "-o", RESOURCES, "-f", "-"],
        manifest: Some(RED),
        expected: Expected {
            success: true,
            texts: &["{}"],
            no_texts: &["pod-eni"],
        },
        patient: false,
    },
    Step {
        title: "A green pod that would vanish at once: refused, with the reason",
        command: &["apply", "--namespace=demo", "-f", "-"],
        manifest: Some(HASTY_POD),
        expected: Expected {
            success: false,
            texts: DENIAL,
            no_texts: &["created"],
        },
        patient: false,
    },
    Step {
        title: "The same through a ReplicaSet, which is let in",
        command: &["apply", "--namespace=demo", "-f", "-"],
        manifest: Some(HASTY_REPLICA_SET),
        expected: shows(&["replicaset.apps/hasty created"]),
        patient: false,
    },
    Step {
        title: "... and tells why it has no pod",
        command: &["describe", "--namespace=demo", "replicaset", "hasty"],
        manifest: None,
        expected: Expected {
            success: true,
            texts: DENIAL,
            no_texts: &[],
        },
        patient: true,
    },
    Step {
        title: "What there is in the end",
        command: &[
            "get",
            "--namespace=demo",
            "securitygrouppolicies,replicasets,pods",
        ],
        manifest: None,
        expected: Expected {
            success: true,
            texts: &[
                "database-clients",
                "sg-0c584133ac916ab3c",
                "pod/green",
                "pod/red",
            ],
            no_texts: &["pod/hasty"],
        },
        patient: false,
    },
];

const fn shows(texts: &'static [&'static str]) -> Expected {
    Expected {
        success: true,
        texts,
        no_texts: &[],
    }
}

/// Runs the walkthrough with `kubectl` and shows it on `out`, until it is over or
/// `interrupted`. True if every step showed what it should.
///
/// # Errors
///
/// When `kubectl` can't be run or `out` can't be written to.
pub fn run(
    kubectl: impl Fn() -> Command,
    out: &mut impl Write,
    interrupted: &AtomicBool,
) -> io::Result<bool> {
    let bold = anstyle::Style::new().bold();
    let dim = anstyle::Style::new().dimmed();
    let mut failures = 0;
    // What an earlier walkthrough left in a sandbox that keeps its data.
    let clean = [
        "delete",
        "namespace",
        "demo",
        "--ignore-not-found",
        "--wait",
    ];
    call(kubectl().args(clean), None)?;
    for (number, step) in (1..).zip(STEPS) {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        writeln!(out, "\n{bold}{number}. {}{bold:#}", step.title)?;
        writeln!(out, "{dim}$ kubectl {}{dim:#}", quoted(step.command))?;
        out.flush()?;
        let since = Instant::now();
        let problem = loop {
            let output = call(kubectl().args(step.command), step.manifest)?;
            let text = text(&output);
            let problem = step.expected.missed_by(output.status.success(), &text);
            let goes_on = step.patient && !interrupted.load(Ordering::Relaxed);
            if problem.is_none() || !goes_on || since.elapsed() > PATIENCE {
                for line in text.lines() {
                    writeln!(out, "   {line}")?;
                }
                break problem;
            }
            thread::sleep(Duration::from_millis(200));
        };
        if let Some(problem) = problem {
            failures += 1;
            let red = anstyle::AnsiColor::Red.on_default().bold();
            writeln!(out, "{red}   NOT AS EXPECTED: {problem}{red:#}")?;
        }
    }
    let steps = STEPS.len();
    if failures == 0 {
        writeln!(out, "\nAll {steps} steps showed what they should.")?;
    } else {
        writeln!(
            out,
            "\n{failures} of {steps} steps did not show what they should."
        )?;
    }
    Ok(failures == 0)
}

impl Expected {
    /// What is wrong with an output, if anything.
    fn missed_by(&self, success: bool, text: &str) -> Option<String> {
        if success != self.success {
            let word = if self.success { "succeed" } else { "fail" };
            return Some(format!("the command should {word}"));
        }
        if let Some(missing) = self
            .texts
            .iter()
            .find(|expected| !text.contains(**expected))
        {
            return Some(format!("{missing:?} is missing"));
        }
        let unwanted = self
            .no_texts
            .iter()
            .find(|unwanted| text.contains(**unwanted))?;
        Some(format!("{unwanted:?} should not be there"))
    }
}

fn call(command: &mut Command, input: Option<&str>) -> io::Result<Output> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    child.wait_with_output()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The arguments as a shell would want them.
fn quoted(arguments: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./".contains(c);
    let quote = |argument: &&str| match argument.chars().all(plain) {
        true => (*argument).to_owned(),
        false => format!("'{}'", argument.replace('\n', "\\n")),
    };
    arguments.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_fails_for_each_thing_that_is_not_as_expected() {
        let expected = Expected {
            success: true,
            texts: &["one", "two"],
            no_texts: &["three"],
        };
        for (success, text, as_expected) in [
            (true, "one two", true),
            (false, "one two", false),
            (true, "one", false),
            (true, "one two three", false),
        ] {
            assert_eq!(
                expected.missed_by(success, text).is_none(),
                as_expected,
                "{text}"
            );
        }
    }

    #[test]
    fn only_what_leaves_no_trace_is_done_again() {
        for step in STEPS.iter().filter(|step| step.patient) {
            let harmless =
                step.command[0] == "describe" || step.command.contains(&"--dry-run=server");
            assert!(harmless, "{}", step.title);
        }
    }
}
