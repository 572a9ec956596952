//! The figures beside their budgets.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
}

/// The figures of one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    title: String,
    figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    what: String,
    figure: f64,
    /// The most that will do.
    budget: Option<f64>,
}

impl Section {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            figures: Vec::new(),
        }
    }

    /// Adds a figure that is only shown.
    pub(crate) fn show(&mut self, what: impl Into<String>, figure: f64) {
        self.add(what.into(), figure, None);
    }

    /// Adds a figure that has a budget.
    pub(crate) fn check(&mut self, what: impl Into<String>, figure: f64, budget: f64) {
        self.add(what.into(), figure, Some(budget));
    }

    fn add(&mut self, what: String, figure: f64, budget: Option<f64>) {
        self.figures.push(Figure {
            what,
            figure,
            budget,
        });
    }
}

/// The duration below which this part of all durations lies.
pub(crate) fn percentile(durations: &[Duration], percent: usize) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(last * percent / 100)
        .copied()
        .unwrap_or_default()
}

pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Section { title, figures } in &self.sections {
            writeln!(f, "\n{title:64} {:>9} {:>11}", "figure", "budget")?;
            for figure in figures {
                write!(f, "  {:62} {:9.3}", figure.what, figure.figure)?;
                match figure.budget {
                    Some(budget) => {
                        let is_met = figure.figure <= budget;
                        let verdict = if is_met { "met" } else { "MISSED" };
                        writeln!(f, " <= {budget:8.3}  {verdict}")?;
                    }
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}
