//! Flags and wiring. No logic: each subcommand gathers what its room needs and runs it.

mod allocator;
mod cluster;
mod crds;
mod dev;
mod ec2_simulator;
mod signals;
mod webhook;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;

use crate::telemetry::logs;

/// Gives Kubernetes pods EC2 security groups of their own.
///
/// A SecurityGroupPolicy selects pods by their labels or by those of their service account.
/// The webhook asks for a branch network interface for each pod that one selects, and the
/// allocator makes it in EC2.
#[derive(Debug, Parser)]
// The last of a flag counts, so that a chart's flags can replace those of the manifests.
#[command(name = "sgp", version, max_term_width = 100, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    #[command(flatten, next_help_heading = "Logging")]
    logs: logs::LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Webhook(webhook::WebhookArgs),
    Allocator(allocator::AllocatorArgs),
    Dev(dev::DevArgs),
    Crds(crds::CrdsArgs),
    Ec2Simulator(ec2_simulator::Ec2SimulatorArgs),
}

/// Runs the command that the process was called with.
///
/// The exit code is 0 for success, 1 for a failure that is told on standard error, and 2
/// for arguments that make no sense.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Webhook(webhook) => {
            logs::init(&arguments.logs);
            webhook.run()
        }
        Command::Allocator(allocator) => {
            logs::init(&arguments.logs);
            allocator.run()
        }
        Command::Dev(dev) => dev.run(&arguments.logs),
        Command::Crds(crds) => crds.run(),
        Command::Ec2Simulator(simulator) => {
            logs::init(&arguments.logs);
            simulator.run()
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("{}: {error:#}", style::ERROR.paint("error"));
            ExitCode::FAILURE
        }
    }
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    crate::listen::listen(address).with_context(|| format!("can't listen on {address}"))
}

/// Colours, which `anstream` leaves out where the output is no terminal.
mod style {
    use anstyle::{AnsiColor, Style};

    /// One style and how to write in it.
    #[derive(Clone, Copy)]
    pub(super) struct Paint(Style);

    pub(super) const ERROR: Paint = Paint(AnsiColor::Red.on_default().bold());

    impl Paint {
        pub(super) fn paint(self, text: &str) -> String {
            format!("{style}{text}{style:#}", style = self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use k8s_openapi::api::apps::v1::Deployment;
    use std::collections::BTreeSet;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused_while_parsing() {
        for (arguments, understood) in [
            (&["sgp", "webhook"][..], true),
            (
                &[
                    "sgp",
                    "webhook",
                    "--tls-cert",
                    "tls.crt",
                    "--tls-key",
                    "tls.key",
                ],
                true,
            ),
            (&["sgp", "webhook", "--tls-cert", "tls.crt"], false),
            (&["sgp", "webhook", "--tls-key", "tls.key"], false),
            (
                &[
                    "sgp",
                    "webhook",
                    "--tls-cert",
                    "a",
                    "--tls-key",
                    "b",
                    "--tls-name",
                    "c",
                ],
                true,
            ),
            (&["sgp", "webhook", "--tls-name", "a b"], false),
            (&["sgp", "webhook", "--certificate-lifetime", "20s"], true),
            (
                &["sgp", "webhook", "--certificate-lifetime", "1d 12h"],
                true,
            ),
            (&["sgp", "webhook", "--certificate-lifetime", "9s"], false),
            (&["sgp", "webhook", "--certificate-lifetime=-90d"], false),
            (&["sgp", "webhook", "--certificate-lifetime", "20"], false),
            (
                &["sgp", "webhook", "--certificate-secret", "ours/name"],
                true,
            ),
            (&["sgp", "webhook", "--certificate-secret", "ours/"], false),
            (
                &[
                    "sgp",
                    "webhook",
                    "--tls-cert=a",
                    "--tls-key=b",
                    "--certificate-lifetime=20s",
                ],
                false,
            ),
            (&["sgp", "webhook", "--grace-period-policy", "set"], true),
            (
                &["sgp", "webhook", "--grace-period-policy", "ignore"],
                false,
            ),
            (&["sgp", "webhook", "--unsupported-pods", "deny"], true),
            (&["sgp", "webhook", "--listen", "127.0.0.1"], false),
            (&["sgp", "webhook", "--log-level", "sgp=noisy"], false),
            (
                &["sgp", "dev", "--churn", "9", "--kills", "2", "--exit"],
                true,
            ),
            (&["sgp", "dev", "--churn", "9", "--demo"], false),
            (&["sgp", "dev", "--churn", "0"], false),
            (&["sgp", "dev", "--kills", "2"], false),
            (&["sgp", "allocator", "--cluster-name", "c"], true),
            (&["sgp", "allocator"], false),
            (&["sgp", "allocator", "--cluster-name", "a b"], false),
            (
                &[
                    "sgp",
                    "allocator",
                    "--cluster-name",
                    "c",
                    "--lease-duration",
                    "0",
                ],
                false,
            ),
            (&["sgp", "dev", "--demo", "--exit"], true),
            (&["sgp", "dev", "--exit"], false),
            (
                &[
                    "sgp",
                    "dev",
                    "--nodes",
                    "m5.large=1",
                    "--nodes",
                    "c5.xlarge=2",
                ],
                true,
            ),
            (&["sgp", "dev", "--nodes", "none"], true),
            (&["sgp", "dev", "--nodes", "m5.large"], false),
            (&["sgp", "dev", "--demo", "--nodes", "m5.large=1"], false),
            (&["sgp", "crds", "eniconfigs"], true),
            (&["sgp", "ec2-simulator"], true),
            (&["sgp", "ec2-simulator", "--listen", "4566"], false),
            (&["sgp"], false),
        ] {
            let parsed = Arguments::try_parse_from(arguments);
            assert_eq!(parsed.is_ok(), understood, "{arguments:?}: {parsed:?}");
        }
    }

    #[test]
    fn every_flag_of_the_servers_is_documented_and_no_other() {
        for (name, page) in [
            ("webhook", include_str!("../../docs/webhook.md")),
            ("allocator", include_str!("../../docs/allocator.md")),
        ] {
            let arguments = Arguments::command();
            let command = arguments.find_subcommand(name).unwrap();
            let all = command.get_arguments().chain(arguments.get_arguments());
            let flags: BTreeSet<_> = all.filter_map(|argument| argument.get_long()).collect();
            let (_, section) = page.split_once("\n## Flags\n").unwrap();
            let (section, _) = section.split_once("\n## ").unwrap();
            let rows = section
                .lines()
                .filter_map(|line| line.strip_prefix("| `--"));
            let end = |c: char| !(c.is_ascii_lowercase() || c == '-');
            let documented: BTreeSet<_> = rows.filter_map(|row| row.split(end).next()).collect();
            assert_eq!(documented, flags, "docs/{name}.md");
        }
    }

    #[test]
    fn programs_understand_what_the_deployment_gives_them() {
        let manifest = include_str!("../../manifests/base/deployment.yaml");
        let deployment: Deployment = serde_saphyr::from_str(manifest).unwrap();
        let containers = deployment.spec.unwrap().template.spec.unwrap().containers;
        let names: Vec<_> = containers.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["webhook", "allocator"]);
        let mut refused = Vec::new();
        for container in containers {
            let given = container.args.unwrap();
            let given = [vec!["sgp".to_owned()], given].concat();
            // As a kubelet leaves it where nothing sets the variable.
            if Arguments::try_parse_from(&given).is_err() {
                refused.push(container.name);
            }
            let named = given.iter().map(|it| it.replace("$(CLUSTER_NAME)", "c"));
            let parsed = Arguments::try_parse_from(named);
            assert!(parsed.is_ok(), "{parsed:?}");
        }
        assert_eq!(refused, ["allocator"]);
    }

    #[test]
    fn flag_that_is_given_again_replaces_that_of_the_deployment() {
        let manifest = include_str!("../../manifests/base/deployment.yaml");
        let deployment: Deployment = serde_saphyr::from_str(manifest).unwrap();
        for container in deployment.spec.unwrap().template.spec.unwrap().containers {
            let mut given = vec!["sgp".to_owned()];
            for argument in container.args.unwrap() {
                let argument = argument.replace("$(CLUSTER_NAME)", "c");
                given.push(argument);
            }
            let again = given[2..].to_vec();
            given.extend(again);
            given.extend(["--metrics-listen=127.0.0.1:9".to_owned()]);
            given.extend(["--log-format=text".to_owned()]);

            let parsed = Arguments::command().try_get_matches_from(&given);
            let parsed = parsed.unwrap_or_else(|error| panic!("{given:?}: {error}"));
            let (_, flags) = parsed.subcommand().unwrap();
            for (flag, value) in [("metrics_listen", "127.0.0.1:9"), ("log_format", "text")] {
                let counts: Vec<_> = flags.get_raw(flag).unwrap().collect();
                assert_eq!(counts, [value], "{flag} of {}", container.name);
            }
        }
    }
}
