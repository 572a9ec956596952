//! What is in the cluster, and the reviews of its pods.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use sgp::api::names::MUTATING_WEBHOOK_CONFIGURATION;
use sgp::api::security_group_policy::SecurityGroups;
use sgp::api::{SecurityGroupPolicy, SecurityGroupPolicySpec};
use sgp::dev::Sandbox;

use crate::load::Target;

const REVIEW: &str = include_str!("../../tests/data/admission-review.json");

/// The label that policies select, and its value in the recorded review.
const LABEL: &str = "app.kubernetes.io/name";
const SELECTED: &str = "checkout";
/// As long, and no policy selects it.
const NOT_SELECTED: &str = "checkups";

/// Service accounts in one namespace.
const ACCOUNTS_A_NAMESPACE: usize = 1_000;
/// Requests to the API server at a time.
const CONCURRENCY: usize = 64;

/// A namespace with policies, exactly one of which selects the recorded pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Namespace {
    /// With 1 policy; that of the recorded review.
    One,
    /// With 1,000.
    Thousand,
}

impl Namespace {
    fn name(self) -> &'static str {
        match self {
            Self::One => "shop",
            Self::Thousand => "mall",
        }
    }

    fn policies(self) -> usize {
        match self {
            Self::One => 1,
            Self::Thousand => 1_000,
        }
    }
}

/// The recorded review, moved to a namespace.
pub(crate) fn review(namespace: Namespace, selected: bool) -> Bytes {
    let label = |value| format!(r#""{LABEL}":"{value}""#);
    let moved = REVIEW.replace(
        r#""namespace":"shop""#,
        &format!(r#""namespace":"{}""#, namespace.name()),
    );
    let value = if selected { SELECTED } else { NOT_SELECTED };
    moved.replace(&label(SELECTED), &label(value)).into()
}

/// Creates both namespaces with their policies, and further ones with service accounts.
pub(crate) async fn fill(client: &Client, service_accounts: usize) -> anyhow::Result<()> {
    let parameters = PostParams::default();
    let namespaces = Api::<NamespaceObject>::all(client.clone());
    let elsewhere =
        (0..service_accounts.div_ceil(ACCOUNTS_A_NAMESPACE)).map(|n| format!("team-{n}"));
    let elsewhere: Vec<_> = elsewhere.collect();
    let ours = [Namespace::One.name(), Namespace::Thousand.name()];
    for name in ours.into_iter().chain(elsewhere.iter().map(String::as_str)) {
        let object = NamespaceObject {
            metadata: named(name),
            ..NamespaceObject::default()
        };
        namespaces.create(&parameters, &object).await?;
    }

    for namespace in [Namespace::One, Namespace::Thousand] {
        let api = Api::<SecurityGroupPolicy>::namespaced(client.clone(), namespace.name());
        let created = stream::iter(0..namespace.policies()).map(|number| {
            let (api, parameters) = (&api, &parameters);
            async move { api.create(parameters, &policy(number)).await }
        });
        created
            .buffer_unordered(CONCURRENCY)
            .try_for_each(async |_| Ok(()))
            .await?;
    }

    let accounts = stream::iter(0..service_accounts).map(|number| {
        let namespace = &elsewhere[number / ACCOUNTS_A_NAMESPACE];
        let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
        let parameters = &parameters;
        async move { api.create(parameters, &service_account(number)).await }
    });
    accounts
        .buffer_unordered(CONCURRENCY)
        .try_for_each(async |_| Ok(()))
        .await?;
    Ok(())
}

/// The first policy selects the recorded pod, each other one pods with a label value of
/// their own.
fn policy(number: usize) -> SecurityGroupPolicy {
    let value = match number {
        0 => SELECTED.to_owned(),
        _ => format!("service-{number}"),
    };
    let spec = SecurityGroupPolicySpec {
        pod_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(LABEL.to_owned(), value.clone())])),
            ..LabelSelector::default()
        }),
        security_groups: Some(SecurityGroups {
            group_ids: Some(vec![format!("sg-{number:017x}")]),
        }),
        ..SecurityGroupPolicySpec::default()
    };
    SecurityGroupPolicy::new(&value, spec)
}

/// Labels as Helm charts write them.
fn service_account(number: usize) -> ServiceAccount {
    let name = format!("service-{number}");
    let labels = [
        (LABEL, name.as_str()),
        ("app.kubernetes.io/instance", "production"),
        ("app.kubernetes.io/managed-by", "Helm"),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ServiceAccount {
        metadata: ObjectMeta {
            labels: Some(labels.into()),
            ..named(&name)
        },
        ..ServiceAccount::default()
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

/// The sandbox's webhook, once it knows the whole cluster.
pub(crate) async fn webhook_target(sandbox: &mut Sandbox) -> anyhow::Result<Target> {
    let client = sandbox.control_plane().client();
    let configurations = Api::<MutatingWebhookConfiguration>::all(client);
    let configuration = configurations.get(MUTATING_WEBHOOK_CONFIGURATION).await?;
    let mut entries = configuration.webhooks.iter().flatten();
    let ca = entries.find_map(|entry| entry.client_config.ca_bundle.as_ref());
    let ca = String::from_utf8(ca.context("the webhook has written no CA")?.0.clone())?;
    let target = Target::new(sandbox.webhook_port(), &ca, sandbox.webhook().id())?;
    for _ in 0..200 {
        if target.is_ready().await? {
            return Ok(target);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the webhook is not ready after 10 s")
}
