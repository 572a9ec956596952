#![no_main]

#[path = "../checks/annotation.rs"]
mod annotation;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| annotation::check(bytes));
