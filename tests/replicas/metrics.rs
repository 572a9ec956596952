//! What replicas and the API server have counted.

use std::io::{Read, Write};
use std::net::TcpStream;

use sgp::dev::Sandbox;

/// The sum of all samples of a metric with these labels.
pub fn sum(text: &str, metric: &str, labels: &[(&str, &str)]) -> u64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let has_all = labels
            .iter()
            .all(|(name, value)| found.contains(&format!("{name}=\"{value}\"")));
        has_all.then(|| value.trim().parse::<f64>().unwrap())
    });
    // Counters.
    samples.sum::<f64>() as u64
}

/// A replica's metrics.
pub fn of_replica(metrics_port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", metrics_port)).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// How many pods' creations each replica has answered for, the oldest first.
pub fn mutations(sandbox: &mut Sandbox) -> Vec<u64> {
    let replicas = sandbox.webhooks().iter();
    let texts = replicas.map(|replica| of_replica(replica.metrics_port()));
    texts
        .map(|text| {
            sum(
                &text,
                "sgp_admission_requests_total",
                &[("webhook", "mpod")],
            )
        })
        .collect()
}

/// The calls to webhooks that failed, as the API server counts them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FailedCalls {
    /// After which the request went on as if there were no webhook.
    pub let_in: u64,
    /// After which the request was refused.
    pub refused: u64,
}

/// What the API server has counted so far.
pub fn failed_calls(sandbox: &Sandbox) -> FailedCalls {
    let mut kubectl = sandbox.control_plane().kubectl();
    let output = kubectl.args(["get", "--raw", "/metrics"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let refused = |error_type| {
        let metric = "apiserver_admission_webhook_rejection_count";
        sum(&text, metric, &[("error_type", error_type)])
    };
    FailedCalls {
        let_in: sum(&text, "apiserver_admission_webhook_fail_open_count", &[]),
        refused: refused("calling_webhook_error") + refused("apiserver_internal_error"),
    }
}
