//! What is fuzzed also holds for the corpus of the fuzz targets, in every test run.
//!
//! docs/development.md says how to fuzz.

use std::fs;
use std::path::Path;

#[path = "../fuzz/checks/admission.rs"]
mod admission;
#[path = "../fuzz/checks/annotation.rs"]
mod annotation;
#[path = "../fuzz/checks/selector.rs"]
mod selector;
#[path = "../fuzz/checks/simulator.rs"]
mod simulator;

/// Gives each input of a target to its check, cut off at each of its bytes too: what breaks
/// off is what a reader meets most.
fn check_all(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let inputs = fs::read_dir(folder.join(target)).unwrap();
    let mut count = 0;
    for input in inputs {
        let path = input.unwrap().path();
        // So that a failure says with which input.
        println!("{}", path.display());
        let bytes = fs::read(&path).unwrap();
        check(&bytes);
        let step = (bytes.len() / 64).max(1);
        (0..bytes.len())
            .step_by(step)
            .for_each(|end| check(&bytes[..end]));
        count += 1;
    }
    assert!(count > 0, "the corpus of {target} is empty");
}

#[test]
fn admission_reviews_are_read_or_refused_and_pods_patched_once() {
    check_all("admission", admission::check);
}

#[test]
fn selectors_select_what_their_text_says_or_are_refused() {
    check_all("selector", selector::check);
}

#[test]
fn annotations_are_written_as_they_were_read() {
    check_all("annotation", annotation::check);
}

#[test]
fn simulated_ec2_answers_every_call_and_never_contradicts_itself() {
    check_all("simulator", simulator::check);
}
