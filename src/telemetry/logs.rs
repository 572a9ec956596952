//! Structured logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Flags for logging.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: a level (error, warn, info, debug, trace), or levels by module as in
    /// "warn,sgp::webhook=debug".
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", value_parser = check_filter)]
    pub log_level: String,
}

impl LogArgs {
    /// The arguments that give a further process of this program the same logs.
    pub fn to_arguments(&self) -> Vec<String> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![
            format!("--log-format={format}"),
            format!("--log-level={}", self.log_level),
        ]
    }
}

fn check_filter(filter: &str) -> Result<String, ParseError> {
    EnvFilter::try_new(filter).map(|_| filter.to_owned())
}

/// Installs the subscriber of the process. To be called once.
pub fn init(args: &LogArgs) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&args.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
