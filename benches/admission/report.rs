//! The figures beside their budgets.

use std::fmt::{self, Display};

use serde::{Serialize, Serializer};

use crate::load::{Burst, Protocol, Transport};
use crate::process::Memory;

/// Memory of the webhook with 1,000 policies and 10,000 service accounts, in MiB.
const MEMORY_BUDGET: f64 = 25.0;
/// CPU time at 1,000 policies over that at 1 policy.
const MANY_POLICIES_BUDGET: f64 = 1.2;
/// CPU time over HTTP/1.1 over that over HTTP/2.
const HTTP1_BUDGET: f64 = 1.3;

/// What a webhook's request may cost on HTTP/2.
struct Budget {
    /// Microseconds of CPU on the machine that the budgets were set on.
    cpu: f64,
    /// What the constant handler took there.
    constant_cpu: f64,
    /// Requests a second over those of the constant handler.
    throughput: f64,
}

/// The budget for one request at a time, and for many.
fn budget(concurrency: usize) -> Budget {
    match concurrency {
        1 => Budget {
            cpu: 60.0,
            constant_cpu: 37.0,
            throughput: 0.8,
        },
        _ => Budget {
            cpu: 27.0,
            constant_cpu: 12.0,
            throughput: 0.55,
        },
    }
}

impl Budget {
    fn cpu_ratio(&self) -> f64 {
        self.cpu / self.constant_cpu
    }
}

/// Who is asked, and for what kind of pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Subject {
    /// The handler that answers a constant.
    Constant,
    /// The webhook.
    Webhook {
        /// Policies in the pod's namespace.
        policies: usize,
        /// Whether one of them selects the pod.
        matches: bool,
    },
}

impl Subject {
    /// The webhook with a pod of a namespace with so many policies.
    pub(crate) const fn webhook(policies: usize, matches: bool) -> Self {
        Self::Webhook { policies, matches }
    }

    /// Whether a policy selects the pod that is sent.
    pub(crate) fn matches(self) -> bool {
        match self {
            Self::Constant => true,
            Self::Webhook { matches, .. } => matches,
        }
    }
}

impl Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.pad("constant handler"),
            Self::Webhook { policies, matches } => {
                let count = match policies {
                    1 => "1 policy",
                    1_000 => "1,000 policies",
                    _ => "policies",
                };
                let selects = if *matches { "match" } else { "no match" };
                f.pad(&format!("{count}, {selects}"))
            }
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The medians of one measurement's rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    transport: Transport,
    subject: Subject,
    requests_a_second: f64,
    p50_microseconds: f64,
    p99_microseconds: f64,
    cpu_microseconds: f64,
    /// Over the constant handler's of the same round.
    throughput_ratio: f64,
    /// Over the constant handler's of the same round.
    cpu_ratio: f64,
    #[serde(skip)]
    cpu_by_round: Vec<f64>,
}

impl Row {
    pub(crate) fn new(
        transport: Transport,
        subject: Subject,
        rounds: &[Burst],
        constant: &[Burst],
    ) -> Self {
        let each = |figure: fn(&Burst) -> f64| median(rounds.iter().map(figure));
        let ratio = |figure: fn(&Burst) -> f64| {
            let pairs = rounds.iter().zip(constant);
            median(pairs.map(|(one, other)| figure(one) / figure(other)))
        };
        Self {
            transport,
            subject,
            requests_a_second: each(|burst| burst.throughput),
            p50_microseconds: each(|burst| percentile(&burst.latencies, 50)),
            p99_microseconds: each(|burst| percentile(&burst.latencies, 99)),
            cpu_microseconds: each(|burst| burst.cpu),
            throughput_ratio: ratio(|burst| burst.throughput),
            cpu_ratio: ratio(|burst| burst.cpu),
            cpu_by_round: rounds.iter().map(|burst| burst.cpu).collect(),
        }
    }

    /// The CPU time over another row's, round by round.
    fn cpu_over(&self, other: &Self) -> f64 {
        let pairs = self.cpu_by_round.iter().zip(&other.cpu_by_round);
        median(pairs.map(|(own, other)| own / other))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 50)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(last * percent / 100)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Memory at the points that matter.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct MemoryFigures {
    /// In the cluster.
    pub(crate) service_accounts: usize,
    /// The webhook once it knows the cluster.
    pub(crate) idle: Memory,
    /// The webhook after all measurements.
    pub(crate) after_load: Memory,
    /// The constant handler after all measurements.
    pub(crate) constant: Memory,
}

/// A figure that has a budget.
#[derive(Clone, Debug, Serialize)]
struct Check {
    what: String,
    figure: f64,
    budget: f64,
    /// Whether the budget is the least that will do, rather than the most.
    at_least: bool,
}

impl Check {
    fn is_met(&self) -> bool {
        if self.at_least {
            self.figure >= self.budget
        } else {
            self.figure <= self.budget
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    memory_mebibytes: MemoryFigures,
    budgets: Vec<Check>,
}

impl Report {
    pub(crate) fn new(rows: Vec<Row>, memory: MemoryFigures) -> Self {
        let budgets = checks(&rows, memory);
        Self {
            rows,
            memory_mebibytes: memory,
            budgets,
        }
    }
}

fn checks(rows: &[Row], memory: MemoryFigures) -> Vec<Check> {
    let find = |transport: Transport, policies| {
        let subject = Subject::webhook(policies, true);
        rows.iter()
            .find(|row| row.transport == transport && row.subject == subject)
    };
    let mut checks = Vec::new();
    let mut check = |what, figure, budget, at_least| {
        checks.push(Check {
            what,
            figure,
            budget,
            at_least,
        });
    };
    for row in rows
        .iter()
        .filter(|row| row.subject == Subject::webhook(1, true))
    {
        let transport = row.transport;
        let budget = budget(transport.concurrency);
        match transport.protocol {
            Protocol::Http2 => {
                let ratio = budget.cpu_ratio();
                check(
                    format!("{transport}: CPU microseconds"),
                    row.cpu_microseconds,
                    budget.cpu,
                    false,
                );
                check(
                    format!("{transport}: CPU over constant handler"),
                    row.cpu_ratio,
                    ratio,
                    false,
                );
                check(
                    format!("{transport}: throughput over constant handler"),
                    row.throughput_ratio,
                    budget.throughput,
                    true,
                );
            }
            Protocol::Http1 => {
                let http2 = Transport {
                    protocol: Protocol::Http2,
                    ..transport
                };
                if let Some(http2) = find(http2, 1) {
                    let ratio = row.cpu_over(http2);
                    check(
                        format!("{transport}: CPU over HTTP/2"),
                        ratio,
                        HTTP1_BUDGET,
                        false,
                    );
                }
            }
        }
        if let Some(many) = find(transport, 1_000) {
            let ratio = many.cpu_over(row);
            check(
                format!("{transport}: CPU at 1,000 policies over 1"),
                ratio,
                MANY_POLICIES_BUDGET,
                false,
            );
        }
    }
    check(
        "webhook: MiB resident, idle".to_owned(),
        memory.idle.resident,
        MEMORY_BUDGET,
        false,
    );
    check(
        "webhook: MiB resident, after load".to_owned(),
        memory.after_load.resident,
        MEMORY_BUDGET,
        false,
    );
    check(
        "webhook: MiB resident, peak".to_owned(),
        memory.after_load.peak,
        MEMORY_BUDGET,
        false,
    );
    checks
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut transport = None;
        for row in &self.rows {
            if transport.replace(row.transport) != Some(row.transport) {
                let name = row.transport.to_string();
                let (second, ratio) = ("req/s", "x constant");
                writeln!(
                    f,
                    "\n{name:26} {second:>9} {:>9} {:>9} {:>9} {ratio:>11} {ratio:>11}",
                    "p50 us", "p99 us", "CPU us"
                )?;
                writeln!(
                    f,
                    "{:26} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11}",
                    "", "", "", "", "", "CPU", "req/s"
                )?;
            }
            let Row {
                subject,
                requests_a_second,
                p50_microseconds,
                p99_microseconds,
                cpu_microseconds,
                throughput_ratio,
                cpu_ratio,
                ..
            } = row;
            writeln!(
                f,
                "  {subject:24} {requests_a_second:9.0} {p50_microseconds:9.0} {p99_microseconds:9.0} {cpu_microseconds:9.1} {cpu_ratio:11.2} {throughput_ratio:11.2}"
            )?;
        }
        let MemoryFigures {
            service_accounts,
            idle,
            after_load,
            constant,
        } = &self.memory_mebibytes;
        writeln!(
            f,
            "\nMemory in MiB, {service_accounts} service accounts and 1,001 policies    resident    peak"
        )?;
        for (name, memory) in [
            ("webhook, cluster known", idle),
            ("webhook, after the load", after_load),
            ("constant handler, after the load", constant),
        ] {
            writeln!(
                f,
                "  {name:54} {:12.1} {:7.1}",
                memory.resident, memory.peak
            )?;
        }
        writeln!(
            f,
            "\n{:56} {:>8} {:>14}",
            "Budgets (matching pod)", "figure", "budget"
        )?;
        for check in &self.budgets {
            let bound = if check.at_least { ">=" } else { "<=" };
            let verdict = if check.is_met() { "met" } else { "MISSED" };
            writeln!(
                f,
                "  {:54} {:8.2} {bound:>8} {:5.2}  {verdict}",
                check.what, check.figure, check.budget
            )?;
        }
        Ok(())
    }
}
