//! `sgp ec2-simulator`: a simulated EC2 for people and for other projects' tests.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::listen;
use super::signals::Signals;
use crate::dev::private_file;
use crate::ec2::simulator::{self, Cloud, Settings, Simulator};

/// Run a simulated Amazon EC2
///
/// It answers the calls that networking of Kubernetes nodes and pods needs, in EC2's own
/// protocol and by EC2's own rules: VPCs, subnets, security groups, instances, network
/// interfaces, trunks. The AWS CLI, boto3 and the SDKs use it when their endpoint URL is the
/// one that it prints. Any credentials and any region will do. Ends on SIGINT or SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sgp ec2-simulator --listen 127.0.0.1:4566
  export AWS_ENDPOINT_URL_EC2=http://127.0.0.1:4566 AWS_DEFAULT_REGION=us-west-2
  export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
  aws ec2 create-vpc --cidr-block 10.0.0.0/16
  aws ec2 describe-network-interfaces --filters Name=status,Values=in-use

While it runs, everything else is set by HTTP (GET /simulator/ lists it):
  curl $AWS_ENDPOINT_URL_EC2/simulator/calls            how many calls there were
  curl -X PATCH $AWS_ENDPOINT_URL_EC2/simulator/settings \\
    -d '{\"latency_ms\": {\"*\": 200}}'                   answer slowly
  curl -X POST $AWS_ENDPOINT_URL_EC2/simulator/faults \\
    -d '{\"action\": \"CreateNetworkInterface\", \"times\": 1, \"outcome\": \"drop\"}'
                                                        give one call no answer")]
pub(super) struct Ec2SimulatorArgs {
    /// Address and port to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Load the cloud's state from this file, if it is there, and save it there at the end
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Settings as JSON: latency, throttling, permissions, delays, quotas
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,

    /// The region that an empty cloud is in
    #[arg(long, value_name = "REGION", default_value = "us-west-2")]
    region: String,

    /// The account that an empty cloud belongs to
    #[arg(long, value_name = "NUMBER", default_value = "123456789012")]
    account: String,

    /// Where the ids of an empty cloud begin; the same seed gives the same ids
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

impl Ec2SimulatorArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let mut signals = Signals::listen()?;
        let shutdown = async {
            signals.next().await;
        };

        let simulator = self.simulator()?;
        let listener = listen(self.listen)?;
        introduce(listener.local_addr()?, &self.region)?;
        simulator::serve(listener, simulator.clone(), shutdown).await;
        if let Some(path) = &self.state {
            let json = simulator.save()?;
            let written = private_file::write(path, &json);
            written.with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    fn simulator(&self) -> anyhow::Result<Simulator> {
        let simulator = Simulator::new(Cloud::new(&self.region, &self.account, self.seed));
        if let Some(path) = &self.settings {
            let read = || {
                let settings: Settings = serde_json::from_slice(&fs::read(path)?)?;
                anyhow::Ok(simulator.set(settings)?)
            };
            read().with_context(|| format!("can't use the settings in {}", path.display()))?;
        }
        if let Some(path) = self.state.as_deref().filter(|path| path.exists()) {
            let read = || anyhow::Ok(simulator.load(&fs::read(path)?)?);
            read().with_context(|| format!("can't use the state in {}", path.display()))?;
        }
        Ok(simulator)
    }
}

/// The first line is the endpoint's URL and nothing else, for scripts.
fn introduce(address: SocketAddr, region: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "http://{address}\n\n\
         The AWS CLI and the SDKs use it with this environment:\n\n\
         \x20 export AWS_ENDPOINT_URL_EC2=http://{address} AWS_DEFAULT_REGION={region}\n\
         \x20 export AWS_REGION=$AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any\n\n\
         Latency, faults, counts and more: http://{address}/simulator/\n\
         Ctrl-C ends it."
    )?;
    out.flush()
}
