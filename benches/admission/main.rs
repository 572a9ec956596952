//! What one admission costs: the webhook beside a handler on the same stack that takes the
//! body and answers a constant.
//!
//! ```text
//!                ┌─ TLS, HTTP/2 or HTTP/1.1 ─▶ sgp webhook, beside a real control plane
//! load (1 thread)┤
//!                └─ the same ────────────────▶ constant handler, this program once more
//! ```
//!
//! The two take turns in short rounds and the median of the rounds counts, so that the
//! ratios hold on a machine that others use too. CPU time is that of the server's process
//! as the kernel counts it. Every answer is checked for its status, and for everything else
//! if its length is new and once in [`load::CHECK_EVERY`] times.
//!
//! `tests/data/admission-review.json` is what kube-apiserver 1.36 sends for a pod of a
//! Deployment: a webhook that writes bodies to a file was registered for pods on
//! `sgp dev`, and a Deployment with two containers, probes, environment and labels, as
//! they are common, was applied. Only the namespace and one label are replaced here.

mod cluster;
mod constant;
mod load;
mod process;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use sgp::dev::control_plane::Binaries;
use sgp::dev::{Sandbox, SandboxOptions};

use crate::cluster::Namespace;
use crate::constant::ConstantHandler;
use crate::load::{Burst, Expectation, Load, Protocol, Question, Target, Transport};
use crate::process::Memory;
use crate::report::{MemoryFigures, Report, Row, Subject};

/// Measures what one admission costs, beside a handler that answers a constant
///
/// Starts a control plane with the webhook, fills it with policies and service accounts, and
/// prints throughput, latency and CPU time of each scenario with the budgets beside them.
/// Takes about two minutes.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench admission --", max_term_width = 100)]
struct Arguments {
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Rounds of every measurement; their median counts
    #[arg(long, value_name = "NUMBER", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Milliseconds of one measurement in one round
    #[arg(long, value_name = "NUMBER", default_value_t = 120, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    milliseconds: u64,

    /// Only connections of this kind, such as "HTTP/2, 32 streams"; part of the name is enough
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,

    /// Service accounts in the cluster
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    service_accounts: usize,

    /// The `sgp` program to measure, to compare builds; by default the one built with this
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_sgp"))]
    sgp: PathBuf,

    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,

    /// Be the constant handler
    #[arg(long, hide = true)]
    serve_constant: bool,
}

const TRANSPORTS: [Transport; 4] = {
    const fn of(protocol: Protocol, concurrency: usize) -> Transport {
        Transport {
            protocol,
            concurrency,
        }
    }
    [
        of(Protocol::Http2, 1),
        of(Protocol::Http2, 32),
        of(Protocol::Http1, 1),
        of(Protocol::Http1, 32),
    ]
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.serve_constant {
        constant::serve()
    } else {
        measure(&arguments)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let binaries = Binaries::find_or_build()?;
    // One thread for the load leaves the others to the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(run(arguments, &binaries))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

async fn run(arguments: &Arguments, binaries: &Binaries) -> anyhow::Result<Report> {
    let begin = Instant::now();
    let progress = |step: &str| eprintln!("{:5.1} s  {step}", begin.elapsed().as_secs_f32());

    // Kept between two starts: the webhook that is measured meets a cluster that is full
    // already, as one that is rolled out does.
    let state = tempfile::tempdir()?;
    let options = SandboxOptions {
        data_dir: Some(state.path().to_owned()),
        ..SandboxOptions::new(&arguments.sgp)
    };
    let sandbox = Sandbox::start(binaries, options.clone(), progress).await?;
    progress("creating policies and service accounts");
    cluster::fill(
        &sandbox.control_plane().client(),
        arguments.service_accounts,
    )
    .await?;
    sandbox.stop();
    let mut sandbox = Sandbox::start(binaries, options, progress).await?;
    let webhook = cluster::webhook_target(&mut sandbox).await?;
    let idle = Memory::of(webhook.process)?;

    progress("starting the constant handler");
    let constant = ConstantHandler::start()?;
    let chosen = TRANSPORTS.into_iter();
    let chosen = chosen.filter(|transport| transport.to_string().contains(&arguments.only));
    let mut races = Vec::new();
    for transport in chosen {
        races.push(Race::prepare(transport, &webhook, constant.target()).await?);
    }
    ensure!(
        !races.is_empty(),
        "no connection is of kind {:?}",
        arguments.only
    );
    let duration = Duration::from_millis(arguments.milliseconds);
    progress("warming up");
    for race in &mut races {
        race.run(duration / 4).await?;
    }
    for race in &mut races {
        race.forget();
    }
    // Each round takes all kinds of connections, because the machine's speed changes over
    // the minutes.
    for round in 1..=arguments.rounds {
        progress(&format!("round {round} of {}", arguments.rounds));
        for race in &mut races {
            race.run(duration).await?;
        }
    }
    let rows = races.iter().flat_map(Race::rows).collect();

    let memory = MemoryFigures {
        service_accounts: arguments.service_accounts,
        idle,
        after_load: Memory::of(webhook.process)?,
        constant: Memory::of(constant.target().process)?,
    };
    progress("done");
    drop(constant);
    sandbox.stop();
    Ok(Report::new(rows, memory))
}

/// What is measured over one kind of connection, in this order.
const SUBJECTS: [(Subject, Namespace); 5] = [
    (Subject::Constant, Namespace::One),
    (Subject::webhook(1, true), Namespace::One),
    (Subject::webhook(1, false), Namespace::One),
    (Subject::webhook(1_000, true), Namespace::Thousand),
    (Subject::webhook(1_000, false), Namespace::Thousand),
];

/// All subjects over one kind of connection.
struct Race {
    transport: Transport,
    to_webhook: Load,
    to_constant: Load,
    bursts: [Vec<Burst>; SUBJECTS.len()],
}

impl Race {
    async fn prepare(
        transport: Transport,
        webhook: &Target,
        constant: &Target,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            transport,
            to_webhook: Load::connect(webhook, transport).await?,
            to_constant: Load::connect(constant, transport).await?,
            bursts: Default::default(),
        })
    }

    /// One round: each subject in turn.
    async fn run(&mut self, duration: Duration) -> anyhow::Result<()> {
        for ((subject, namespace), bursts) in SUBJECTS.into_iter().zip(&mut self.bursts) {
            let (load, answer) = match subject {
                Subject::Constant => (&mut self.to_constant, Expectation::Constant),
                Subject::Webhook { matches: patch, .. } => {
                    (&mut self.to_webhook, Expectation::Admission { patch })
                }
            };
            let body = cluster::review(namespace, subject.matches());
            let burst = load.burst(&Question { body, answer }, duration).await;
            bursts.push(burst.with_context(|| format!("{}, {subject}", self.transport))?);
        }
        Ok(())
    }

    /// Forgets what was measured so far.
    fn forget(&mut self) {
        self.bursts.iter_mut().for_each(Vec::clear);
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let subjects = SUBJECTS.iter().zip(&self.bursts);
        subjects.map(|((subject, _), own)| Row::new(self.transport, *subject, own, &self.bursts[0]))
    }
}
