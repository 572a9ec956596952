//! The `sgp` command.

fn main() {}
