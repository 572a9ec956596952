//! The thread in which the simulated EC2 answers.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::state_file::StateFile;
use crate::ec2::simulator::{self, Simulator};

/// How late a change is saved at most; what a kill of this process may cost.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);

/// A served simulator. Saves a last time and ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    endpoint_url: String,
    /// Dropping it ends the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on a free port of 127.0.0.1 from now on.
    pub(super) fn start(
        simulator: Simulator,
        state_file: Option<Arc<StateFile>>,
    ) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))
            .context("no TCP port is free on 127.0.0.1")?;
        listener.set_nonblocking(true)?;
        let endpoint_url = format!("http://{}", listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (running, ended) = oneshot::channel();
        let serve = async move {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the simulated EC2 can't listen"),
            };
            let shutdown = async {
                let _ = ended.await;
            };
            let serving = simulator::serve(listener, simulator.clone(), shutdown);
            match &state_file {
                None => serving.await,
                Some(file) => {
                    tokio::select! {
                        () = serving => {}
                        () = save_changes(file, &simulator) => {}
                    }
                    save(file, &simulator);
                }
            }
        };
        let thread = thread::Builder::new().name("ec2-simulator".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve))?;
        Ok(Self {
            endpoint_url,
            running: Some(running),
            thread: Some(thread),
        })
    }

    pub(super) fn endpoint_url(&self) -> &str {
        &self.endpoint_url
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by itself.
            let _ = thread.join();
        }
    }
}

/// Saves again and again, for as long as it is polled. Only calls change a cloud, so nothing
/// is done while none come.
async fn save_changes(file: &StateFile, simulator: &Simulator) {
    let mut seen = simulator.call_counts();
    loop {
        tokio::time::sleep(SAVE_INTERVAL).await;
        let counts = simulator.call_counts();
        if counts != seen {
            save(file, simulator);
            seen = counts;
        }
    }
}

fn save(file: &StateFile, simulator: &Simulator) {
    if let Err(error) = file.save_again(simulator) {
        let error: &dyn std::error::Error = error.as_ref();
        tracing::error!(error, "the simulated EC2 is not saved");
    }
}
