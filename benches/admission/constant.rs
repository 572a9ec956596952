//! The handler to compare with: the webhook's server with a handler that takes the whole
//! body and answers a constant of the real answer's size.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::post;
use sgp::api::names::MUTATE_POD_PATH;
use sgp::server;
use sgp::telemetry::metrics::{CertificateMetrics, ConnectionMetrics};
use sgp::tls::{Pair, Serving};
use tokio::net::TcpListener;

use crate::load::Target;

/// A real answer with a patch.
pub(crate) const ANSWER: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"249dd305-8f2a-4880-be48-86bfe53b6837","allowed":true,"patch":"W3sib3AiOiJhZGQiLCJwYXRoIjoiL3NwZWMvY29udGFpbmVycy8wL3Jlc291cmNlcy9saW1pdHMvdnBjLmFtYXpvbmF3cy5jb21+MXBvZC1lbmkiLCJ2YWx1ZSI6IjEifSx7Im9wIjoiYWRkIiwicGF0aCI6Ii9zcGVjL2NvbnRhaW5lcnMvMC9yZXNvdXJjZXMvcmVxdWVzdHMvdnBjLmFtYXpvbmF3cy5jb21+MXBvZC1lbmkiLCJ2YWx1ZSI6IjEifV0=","patchType":"JSONPatch"}}"#;

/// Serves until standard input ends. Writes the port and the CA to standard output.
pub(crate) fn serve() -> anyhow::Result<()> {
    // As many threads as the webhook has.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (day, now) = (Duration::from_secs(24 * 60 * 60), SystemTime::now());
        let pair = Pair::make(&["127.0.0.1".to_owned()], day, now)?;
        let ca = pair.ca_bundle();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        print!("{}\n{ca}\n", listener.local_addr()?.port());
        io::stdout().flush()?;

        let answer = async |_: Bytes| ([(header::CONTENT_TYPE, "application/json")], ANSWER);
        let router = Router::new().route(MUTATE_POD_PATH, post(answer));
        let owner_is_gone = async {
            let wait = || io::stdin().read_to_end(&mut Vec::new());
            // Whatever the end looks like, it is the end.
            let _ = tokio::task::spawn_blocking(wait).await;
        };
        let certificates = CertificateMetrics::default();
        let tls = Serving::new(pair.serving().clone(), certificates).server_config(None);
        server::serve(
            listener,
            tls,
            router,
            server::Limits::default(),
            ConnectionMetrics::default(),
            owner_is_gone,
        )
        .await;
        Ok(())
    })
}

/// The handler in a process of its own, which ends with this value.
pub(crate) struct ConstantHandler {
    child: Child,
    /// The process ends when this closes, also if this program is killed.
    stdin: Option<ChildStdin>,
    target: Target,
}

impl ConstantHandler {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("--serve-constant")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let port = lines
            .next()
            .context("the constant handler ended")??
            .parse()?;
        let mut ca = String::new();
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            ca += &line;
            ca.push('\n');
        }
        ensure!(!ca.is_empty(), "the constant handler ended");
        let target = Target::new(port, &ca, child.id())?;
        Ok(Self {
            child,
            stdin,
            target,
        })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }
}

impl Drop for ConstantHandler {
    fn drop(&mut self) {
        self.stdin = None;
        // Open connections would hold it up for its drain time.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
