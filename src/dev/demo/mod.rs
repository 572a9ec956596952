//! A walkthrough on the live API server and the simulated EC2: what is done, what it says,
//! and whether it says what it should.
//!
//! The steps are data. Each runs the real `kubectl`, or a call to EC2 that is written and
//! shown as the AWS CLI would, and shows what really came of it.

mod aws;
mod steps;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use aws::Aws;
use steps::STEPS;

/// One thing to do and what must show.
struct Step {
    title: &'static str,
    action: Action,
    expected: Expected,
    /// How long it is done again until it shows what it should. Only for what leaves no trace.
    patience: Duration,
    remembers: Option<Remembered>,
}

/// A name, and what the first word is like that is known by it from then on: `{name}` in
/// later steps.
type Remembered = (&'static str, fn(&str) -> bool);

/// What a step does.
enum Action {
    /// Arguments of `kubectl`, and what it reads on standard input, if anything.
    Kubectl(&'static [&'static str], Option<&'static str>),
    /// A call to EC2.
    Aws(aws::Call),
}

/// What must show.
struct Expected {
    success: bool,
    /// Texts that must occur in the output, on either stream.
    texts: &'static [&'static str],
    /// Texts that must not.
    no_texts: &'static [&'static str],
}

/// What came of a step.
struct Outcome {
    success: bool,
    text: String,
}

/// What is known by a name.
#[derive(Default)]
struct Known(BTreeMap<&'static str, String>);

impl Known {
    /// The text with what is known in place of the names in braces.
    fn fill_in(&self, text: &str) -> String {
        let names = self.0.iter();
        names.fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }
}

/// Runs the walkthrough with `kubectl` and `aws` and shows it on `out`, until it is over or
/// `interrupted`. True if every step showed what it should.
///
/// # Errors
///
/// When `kubectl` can't be run or `out` can't be written to.
pub fn run(
    kubectl: impl Fn() -> Command,
    aws: &Aws,
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
    let mut known = aws.known();
    for (number, step) in (1..).zip(STEPS) {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        writeln!(out, "\n{bold}{number}. {}{bold:#}", step.title)?;
        writeln!(out, "{dim}$ {}{dim:#}", step.action.command_line(&known))?;
        out.flush()?;
        let since = Instant::now();
        let problem = loop {
            let outcome = step.action.carry_out(&kubectl, aws, &known)?;
            let problem = step.missed_by(&outcome, &mut known);
            let goes_on = since.elapsed() < step.patience && !interrupted.load(Ordering::Relaxed);
            if problem.is_none() || !goes_on {
                for line in outcome.text.lines() {
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

impl Step {
    /// What is wrong with an outcome, if anything; else what is to be remembered of it is.
    fn missed_by(&self, outcome: &Outcome, known: &mut Known) -> Option<String> {
        let problem = self.expected.missed_by(outcome, known);
        if problem.is_none()
            && let Some((name, is_meant)) = self.remembers
        {
            let mut words = outcome.text.split_whitespace();
            let Some(word) = words.find(|word| is_meant(word)) else {
                return Some(format!("there is no {name}"));
            };
            known.0.insert(name, word.to_owned());
        }
        problem
    }
}

impl Action {
    fn command_line(&self, known: &Known) -> String {
        match self {
            Self::Kubectl(arguments, _) => format!("kubectl {}", quoted(&filled(arguments, known))),
            Self::Aws(call) => format!("aws {}", quoted(&call.arguments(known))),
        }
    }

    fn carry_out(
        &self,
        kubectl: &impl Fn() -> Command,
        aws: &Aws,
        known: &Known,
    ) -> io::Result<Outcome> {
        match self {
            Self::Kubectl(arguments, manifest) => {
                let manifest = manifest.map(|manifest| known.fill_in(manifest));
                let mut command = kubectl();
                command.args(filled(arguments, known));
                let output = call(&mut command, manifest.as_deref())?;
                Ok(Outcome {
                    success: output.status.success(),
                    text: text(&output),
                })
            }
            Self::Aws(call) => Ok(aws.carry_out(call, known)),
        }
    }
}

impl Expected {
    /// What is wrong with an outcome, if anything.
    fn missed_by(&self, outcome: &Outcome, known: &Known) -> Option<String> {
        if outcome.success != self.success {
            let word = if self.success { "succeed" } else { "fail" };
            return Some(format!("the command should {word}"));
        }
        let has = |text: &String| outcome.text.contains(text);
        let mut texts = self.texts.iter().map(|text| known.fill_in(text));
        if let Some(missing) = texts.find(|text| !has(text)) {
            return Some(format!("{missing:?} is missing"));
        }
        let mut no_texts = self.no_texts.iter().map(|text| known.fill_in(text));
        let unwanted = no_texts.find(has)?;
        Some(format!("{unwanted:?} should not be there"))
    }
}

fn filled(arguments: &[&str], known: &Known) -> Vec<String> {
    let arguments = arguments.iter();
    arguments.map(|argument| known.fill_in(argument)).collect()
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
fn quoted(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:".contains(c);
    let quote = |argument: &String| match argument {
        word if word.chars().all(plain) => word.clone(),
        text if text.contains('\'') => format!("\"{text}\""),
        text => format!("'{}'", text.replace('\n', "\\n")),
    };
    arguments.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(success: bool, text: &str) -> Outcome {
        let text = text.to_owned();
        Outcome { success, text }
    }

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
            let problem = expected.missed_by(&outcome(success, text), &Known::default());
            assert_eq!(problem.is_none(), as_expected, "{text}");
        }
    }

    #[test]
    fn what_one_step_shows_later_steps_can_name() {
        let mut known = Known::default();
        let first = STEPS.iter().find(|step| step.remembers.is_some()).unwrap();
        let (name, _) = first.remembers.unwrap();
        let shown = "green   1/1   Running   0   3s   10.0.32.7   node-1";

        assert_eq!(
            first
                .missed_by(&outcome(true, "green 1/1 Running"), &mut known)
                .as_deref(),
            Some("there is no address")
        );
        assert_eq!(first.missed_by(&outcome(true, shown), &mut known), None);

        assert_eq!(
            known.fill_in(&format!("<{{{name}}}> {{else}}")),
            "<10.0.32.7> {else}"
        );
    }

    #[test]
    fn every_name_in_a_step_is_known_by_then() {
        let mut known = Known(aws::NAMES.map(|name| (name, "x".to_owned())).into());
        for step in STEPS {
            let mut texts = vec![step.action.command_line(&known)];
            if let Action::Kubectl(_, Some(manifest)) = step.action {
                texts.push(known.fill_in(manifest));
            }
            texts.extend(step.expected.texts.iter().map(|text| known.fill_in(text)));
            for text in texts {
                let names = STEPS.iter().filter_map(|step| step.remembers);
                let unknown = names.map(|(name, _)| format!("{{{name}}}"));
                let unknown: Vec<_> = unknown.filter(|name| text.contains(name)).collect();
                assert_eq!(unknown, [""; 0], "{}", step.title);
            }
            if let Some((name, _)) = step.remembers {
                known.0.insert(name, "x".to_owned());
            }
        }
    }

    #[test]
    fn only_what_leaves_no_trace_is_done_again() {
        for step in STEPS.iter().filter(|step| !step.patience.is_zero()) {
            let harmless = match &step.action {
                Action::Kubectl(arguments, _) => {
                    ["describe", "get", "events"].contains(&arguments[0])
                        || arguments.contains(&"--dry-run=server")
                }
                Action::Aws(call) => call.only_reads(),
            };
            assert!(harmless, "{}", step.title);
        }
    }

    #[test]
    fn command_lines_are_quoted_for_a_shell() {
        let arguments = ["get", "-o", "jsonpath={.a}{\"\\n\"}", "join(' ',b)"];
        let arguments = arguments.map(str::to_owned);
        assert_eq!(
            quoted(&arguments),
            "get -o 'jsonpath={.a}{\"\\n\"}' \"join(' ',b)\""
        );
    }
}
