#![no_main]

#[path = "../checks/simulator.rs"]
mod simulator;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| simulator::check(bytes));
