//! Our selectors against those of Kubernetes, which a Go program asks in our place.
//!
//! Random selectors and labels, the same ones in each run. `SGP_ORACLE_PAIRS` asks for more
//! of them and `SGP_ORACLE_SEED` for others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use serde::{Deserialize, Serialize};
use sgp::policy::{Selector, SelectorError};

#[derive(Debug, Serialize)]
struct Question {
    selector: LabelSelector,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    valid: bool,
    matches: bool,
    #[serde(default)]
    error: String,
}

impl Answer {
    /// Whether the selector matches, or why it is not valid.
    fn as_result(&self) -> Result<bool, &str> {
        if self.valid {
            Ok(self.matches)
        } else {
            Err(&self.error)
        }
    }
}

#[test]
fn selectors_are_valid_and_match_exactly_as_kubernetes_says() {
    let seed = from_env("SGP_ORACLE_SEED", 1);
    let pairs = from_env("SGP_ORACLE_PAIRS", 20_000);
    let questions = questions(seed, pairs);
    let answers = ask_kubernetes(&questions);

    let rerun = format!("SGP_ORACLE_SEED={seed} SGP_ORACLE_PAIRS={pairs}");
    assert_eq!(
        answers.len(),
        questions.len(),
        "one answer to each question; {rerun}"
    );
    let disagreements = questions
        .iter()
        .zip(&answers)
        .filter_map(|(question, theirs)| {
            let ours = answer(question);
            let theirs = theirs.as_result();
            (ours.as_ref().ok() != theirs.as_ref().ok()).then(|| {
                let Question { selector, labels } = question;
                let selector = serde_json::to_string(selector).unwrap();
                format!("selector {selector}\nlabels {labels:?}\nours {ours:?}\ntheirs {theirs:?}")
            })
        });
    let disagreements: Vec<_> = disagreements.collect();
    if let Some(shortest) = disagreements.iter().min_by_key(|text| text.len()) {
        let count = disagreements.len();
        panic!("{count} of {pairs} pairs differ ({rerun}), the shortest:\n{shortest}");
    }

    // Agreement means little if nearly all selectors are broken, or select nothing.
    let valid = answers.iter().filter(|answer| answer.valid).count();
    let matching = answers.iter().filter(|answer| answer.matches).count();
    let mix = format!("{pairs} pairs, {valid} valid, {matching} matching; {rerun}");
    assert!((pairs - valid) * 10 >= pairs, "too few invalid: {mix}");
    assert!(matching * 10 >= valid, "too few that match: {mix}");
    assert!(
        (valid - matching) * 10 >= valid,
        "too few that do not match: {mix}"
    );
    println!("{mix}");
}

fn answer(question: &Question) -> Result<bool, SelectorError> {
    Ok(Selector::try_from(&question.selector)?.matches(&question.labels))
}

fn from_env<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

// What is asked.

fn questions(seed: u64, count: usize) -> Vec<Question> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let question = question();
    (0..count)
        .map(|_| question.new_tree(&mut runner).unwrap().current())
        .collect()
}

fn question() -> impl Strategy<Value = Question> {
    (selector(), btree_map(key(), value(), 0..5))
        .prop_map(|(selector, labels)| Question { selector, labels })
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let match_labels = option::of(btree_map(key(), value(), 0..3));
    let match_expressions = option::of(vec(expression(), 0..4));
    (match_labels, match_expressions).prop_map(|(match_labels, match_expressions)| LabelSelector {
        match_labels,
        match_expressions,
    })
}

fn expression() -> impl Strategy<Value = LabelSelectorRequirement> {
    let some = || vec(value(), 1..5);
    let none = || Just(Vec::new());
    let operator_and_values = prop_oneof![
        12 => (select(&["In", "NotIn"][..]), some()),
        1 => (select(&["In", "NotIn"][..]), none()),
        12 => (select(&["Exists", "DoesNotExist"][..]), none()),
        1 => (select(&["Exists", "DoesNotExist"][..]), some()),
        1 => (select(WRONG_OPERATORS), prop_oneof![some(), none()]),
    ];
    // An empty list and none at all are different JSON.
    (key(), operator_and_values, any::<bool>()).prop_map(|(key, (operator, values), omit)| {
        let values = Some(values).filter(|values| !(omit && values.is_empty()));
        LabelSelectorRequirement {
            key,
            operator: operator.into(),
            values,
        }
    })
}

/// Few enough good ones that a selector and an object often name the same.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        60 => select(&["a", "b", "x.io/a"][..]).prop_map(String::from),
        2 => select(tricky_keys()),
        1 => tricky_text(),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        60 => select(&["", "1", "2", "A"][..]).prop_map(String::from),
        2 => select(tricky_values()),
        1 => tricky_text(),
    ]
}

/// Apimachinery knows some of these, yet not in a label selector object.
const WRONG_OPERATORS: &[&str] = &[
    "", "in", "IN", "notin", "exists", "!", "=", "==", "!=", "Equals", "Gt", "gt", "In ", "In\n",
];

fn tricky_keys() -> Vec<String> {
    let prefixes = [
        "", "A.io", "x.IO", "x..io", ".x", "x.", "-x", "x-", "x.-y", "x-.y", "x_y", "x\n", "é.io",
        "x y", "0", "0.1", "x--y", "x\0",
    ];
    let long_prefixes = [
        "x".repeat(253),
        "x".repeat(254),
        format!("{}.io", "x".repeat(250)),
        format!("{}.io", "x".repeat(251)),
        format!("{}x", "x.".repeat(126)),
        "é".repeat(126),
    ];
    let prefixed = prefixes.map(String::from).into_iter().chain(long_prefixes);
    let prefixed = prefixed.map(|prefix| format!("{prefix}/a"));
    let slashes = ["/", "//", "a//b", "a/b/c", "a/b/", "/a/b", "x.io/"];
    let names = tricky_values()
        .into_iter()
        .filter(|name| !name.contains('/'));
    let names = names.flat_map(|name| [format!("x.io/{name}"), name]);
    prefixed
        .chain(slashes.map(String::from))
        .chain(names)
        .collect()
}

fn tricky_values() -> Vec<String> {
    let short = [
        "",
        ".",
        "-",
        "_",
        ".a",
        "-a",
        "_a",
        "a.",
        "a-",
        "a_",
        "a.b",
        "a-b",
        "a_b",
        "a..b",
        "a-_.b",
        "a\n",
        "\na",
        "a\r",
        "a\0",
        "a b",
        " a",
        "a ",
        "a/b",
        "a\\b",
        "a=b",
        "é",
        "aé",
        "ａ",
        "١",
        "\u{feff}a",
        "a\u{301}",
        "\u{2028}",
        "😀",
        "\u{7f}",
        "@",
        "[",
        "`",
        "{",
        ":",
    ];
    let long = [
        "a".repeat(62),
        "a".repeat(63),
        "a".repeat(64),
        format!("{}-", "a".repeat(62)),
        format!("{}.a", "a".repeat(61)),
        format!("{}.a", "a".repeat(62)),
        format!("{}\n", "a".repeat(63)),
        "é".repeat(31),
        "é".repeat(63),
        "a".repeat(1000),
    ];
    short.map(String::from).into_iter().chain(long).collect()
}

/// Short strings in which what is allowed depends on the place.
fn tricky_text() -> impl Strategy<Value = String> {
    let character = select(&['a', 'b', 'A', 'Z', '0', '9', '-', '_', '.', '/', '\n', 'é'][..]);
    let weighted = prop_oneof![4 => select(&['a', '0', 'Z'][..]), 3 => character];
    vec(weighted, 0..8).prop_map(|characters| characters.into_iter().collect())
}

// Who is asked.

fn ask_kubernetes(questions: &[Question]) -> Vec<Answer> {
    let program = build_oracle();
    // A file rather than a pipe: whoever writes both ends of a pipe has to do it at once.
    let mut lines = BufWriter::new(tempfile::tempfile().unwrap());
    for question in questions {
        serde_json::to_writer(&mut lines, question).unwrap();
        lines.write_all(b"\n").unwrap();
    }
    let mut input: File = lines.into_inner().unwrap();
    input.rewind().unwrap();
    let output = Command::new(program)
        .stdin(Stdio::from(input))
        .output()
        .unwrap();
    assert_success(&output, "the oracle failed");
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    answers.collect::<Result<_, _>>().unwrap()
}

fn build_oracle() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("selector-oracle");
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([&program])
        .current_dir(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/selector-oracle"
        ))
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("CGO_ENABLED", "0")
        .output();
    let built = match built {
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "there is no `go` on the PATH: install Go 1.26 or newer, because this test \
             compares our selectors with those of Kubernetes"
        ),
        built => built.unwrap(),
    };
    assert_success(
        &built,
        "`go build` of tests/selector-oracle failed (it needs its modules)",
    );
    program
}

fn assert_success(output: &Output, failure: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{failure}, {}:\n{text}",
        output.status
    );
}
