//! What the allocator makes of pods: how long they wait for their interface, and how often EC2
//! is called.
//!
//! ```text
//! pods ─▶ API server ─▶ scheduler ─▶ sgp allocator ─▶ simulated EC2 (this program)
//!             │                            │
//!             └──── this program's watch ◀─┘ annotation
//! ```
//!
//! Everything is real but EC2 and the kubelets, and all of it runs on one machine, so the
//! figures hold what the API server and the scheduler take too. Instants are those at which
//! this program's own watch tells of a binding or an annotation.

mod cluster;
mod latency;
mod life;
#[path = "../admission/process.rs"]
mod process;
mod report;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use sgp::dev::control_plane::Binaries;

use crate::report::{Report, Section};

/// Measures how long pods wait for their interfaces, and how often EC2 is called for them
///
/// Starts a control plane with simulated nodes for each scenario, and prints the figures with
/// the budgets beside them. Takes about eight minutes.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench allocation --", max_term_width = 100)]
struct Arguments {
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Only scenarios of this name: burst, thousand, idle, life or start; part of it is enough
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,

    /// Rounds of the bursts, each in a cluster of its own; their median counts
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,

    /// Nodes in the cluster in which the allocator starts, with 20 interfaces each
    #[arg(long, value_name = "NUMBER", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=6_000))]
    nodes: u32,

    /// The `sgp` program to measure, to compare builds; by default the one built with this
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_sgp"))]
    sgp: PathBuf,

    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What scenarios work with.
struct Bench {
    binaries: Binaries,
    sgp: PathBuf,
    begin: Instant,
}

impl Bench {
    fn progress(&self, step: &str) {
        eprintln!("{:5.1} s  {step}", self.begin.elapsed().as_secs_f32());
    }
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let bench = Bench {
        binaries: Binaries::find_or_build()?,
        sgp: arguments.sgp.clone(),
        begin: Instant::now(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(run(arguments, &bench))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

async fn run(arguments: &Arguments, bench: &Bench) -> anyhow::Result<Report> {
    let mut sections: Vec<Section> = Vec::new();
    let is_chosen = |name: &str| name.contains(&arguments.only);
    if is_chosen("burst") {
        sections.push(latency::burst(bench, &latency::BURST, arguments.rounds).await?);
    }
    if is_chosen("thousand") {
        sections.push(latency::burst(bench, &latency::THOUSAND, arguments.rounds).await?);
    }
    if is_chosen("idle") {
        sections.push(latency::idle(bench).await?);
    }
    if is_chosen("life") {
        sections.push(life::calls(bench).await?);
    }
    if is_chosen("start") {
        sections.push(start::start(bench, arguments.nodes as usize).await?);
    }
    ensure!(
        !sections.is_empty(),
        "no scenario is called {:?}",
        arguments.only
    );
    bench.progress("done");
    Ok(Report { sections })
}
