//! How the servers in a cluster reach its API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How the API server is reached.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// Kubeconfig file; by default $KUBECONFIG, ~/.kube/config or the pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl ClusterArgs {
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None => Config::infer()
                .await
                .context("no cluster to talk to; give --kubeconfig")?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        // An API server is not reached through a proxy that the environment names for other
        // purposes.
        config.proxy_url = None;
        // Watches and lookups know better how soon to try again, and count their failures.
        config.default_retry = false;
        Client::try_from(config).context("the cluster's configuration can't be used")
    }
}
