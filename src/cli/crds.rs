//! `sgp crds`: the definitions of the custom resources as YAML.

use anyhow::Context;
use clap::{Args, ValueEnum};
use kube::CustomResourceExt;

use crate::api::{CNINode, ENIConfig, SecurityGroupPolicy};

/// Print the definitions of the custom resources
///
/// What stands in manifests/crds and manifests/sandbox is made by this command.
#[derive(Debug, Args)]
#[command(after_help = "Example: sgp crds securitygrouppolicies | kubectl apply -f -")]
pub(super) struct CrdsArgs {
    /// The resource; all three if none is named
    #[arg(value_enum)]
    resources: Vec<CustomResource>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum CustomResource {
    Securitygrouppolicies,
    Cninodes,
    /// Belongs to the VPC CNI plugin; for clusters that have none
    Eniconfigs,
}

impl CrdsArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let all = CustomResource::value_variants();
        let resources = if self.resources.is_empty() {
            all
        } else {
            &self.resources
        };
        for resource in resources {
            let definition = match resource {
                CustomResource::Securitygrouppolicies => SecurityGroupPolicy::crd(),
                CustomResource::Cninodes => CNINode::crd(),
                CustomResource::Eniconfigs => ENIConfig::crd(),
            };
            let yaml = serde_saphyr::to_string(&definition)
                .with_context(|| format!("{resource:?} can't be written as YAML"))?;
            println!("---\n{}", yaml.trim_end());
        }
        Ok(())
    }
}
