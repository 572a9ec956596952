#![no_main]

#[path = "../checks/selector.rs"]
mod selector;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| selector::check(bytes));
