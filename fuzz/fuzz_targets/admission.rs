#![no_main]

#[path = "../checks/admission.rs"]
mod admission;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| admission::check(bytes));
