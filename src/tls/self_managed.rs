//! Certificates that the replicas make and renew by themselves, shared in a Secret.
//!
//! What is done and in which order is decided in `rotation`; here it is looked at, carried out,
//! and waited for the next reason to look. Each look reads the Secret and the configurations
//! anew and as they are stored; the watches only say when.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use rustls::pki_types::ServerName;

use super::certificate::instant;
use super::pair::{Pair, PairError};
use super::rotation::{Action, Authority, Now, Replica, Schedule, Sight, Source, Stored};
use super::secret::Pairs;
use super::serving::Serving;
use super::{ca_bundle, secret};
use crate::api_server::is_not_found;
use crate::telemetry::metrics::ConfigurationKind;

/// How long the API server may take for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Steps in a row without anything to wait for. A renewal has three; the rest is for others
/// who do the same at the same time.
const MOST_STEPS: usize = 30;

/// Names of the webhook configurations whose calls come here.
#[derive(Clone, Debug)]
pub struct WebhookConfigurations {
    /// The MutatingWebhookConfiguration's.
    pub mutating: String,
    /// The ValidatingWebhookConfiguration's.
    pub validating: String,
}

/// A replica's part in making and renewing the certificate that all share.
pub struct SelfManaged {
    client: Client,
    secrets: Api<Secret>,
    namespace: String,
    secret: String,
    /// The Secret in messages.
    shown: String,
    configurations: [Configuration; 2],
    names: Vec<String>,
    server_names: Vec<ServerName<'static>>,
    schedule: Schedule,
}

struct Configuration {
    api: Api<DynamicObject>,
    kind: ConfigurationKind,
    name: String,
}

/// Why a look or what follows it failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{object}: {error}{}", way_out(error))]
    Api {
        object: String,
        error: Box<kube::Error>,
    },
    #[error("{object}: the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut { object: String },
    #[error("no certificate could be made: {0}")]
    NotMade(#[from] PairError),
    #[error("others change the same objects without end, last {0}")]
    Contended(String),
}

fn way_out(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            ". Give the ServiceAccount the rights in manifests/base/rbac.yaml, or give the webhook certificate files (--tls-cert)"
        }
        kube::Error::Api(status) if status.code == 404 => {
            ". Create the namespace, or name another one in --certificate-secret"
        }
        kube::Error::Api(status) if status.code == 422 => {
            ". Delete the Secret, so that the webhook makes it anew, or name another one in --certificate-secret"
        }
        _ => "",
    }
}

/// What a look has shown.
struct Look {
    secret: Option<Secret>,
    pairs: Pairs,
    sight: Sight,
    /// The configurations in `sight`, with the places of their APIs.
    objects: Vec<(usize, DynamicObject)>,
}

/// Whether a write has been done, or somebody else's was first.
enum Written {
    Done,
    /// With the name of the object.
    Conflict(String),
}

/// What this process remembers.
#[derive(Default)]
struct Memory {
    replica: Replica,
    in_use: Option<Pair>,
    /// What was wrong with the Secret, so that it is told once.
    problem: Option<String>,
    /// The places of the configurations that are not there, for the same reason.
    missing: BTreeSet<usize>,
}

impl SelfManaged {
    /// Shares the Secret `namespace`/`secret`. Certificates are for all these names, and valid
    /// for `lifetime`.
    pub fn new(
        client: Client,
        namespace: &str,
        secret: &str,
        configurations: WebhookConfigurations,
        names: Vec<ServerName<'static>>,
        lifetime: Duration,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            client: client.clone(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            shown: format!("Secret {namespace}/{secret}"),
            configurations: [
                Configuration::new::<MutatingWebhookConfiguration>(
                    client.clone(),
                    ConfigurationKind::Mutating,
                    configurations.mutating,
                ),
                Configuration::new::<ValidatingWebhookConfiguration>(
                    client,
                    ConfigurationKind::Validating,
                    configurations.validating,
                ),
            ],
            names: names
                .iter()
                .map(|name| name.to_str().into_owned())
                .collect(),
            server_names: names,
            schedule: Schedule { lifetime },
        }
    }

    /// A pair for the time until the Secret is read. Nobody trusts it, but probes take it.
    pub fn placeholder(&self) -> Result<Pair, PairError> {
        Pair::make(&self.names, self.schedule.lifetime, SystemTime::now())
    }

    /// Sees to it that `serving` has a certificate that the configurations trust, for as long
    /// as the future is polled.
    pub async fn run(&self, serving: &Serving) -> Infallible {
        let mut changes = self.changes();
        let mut memory = Memory::default();
        let mut pauses = pauses();
        let mut told: Option<String> = None;
        loop {
            let pause = match self.reconcile(&mut memory, serving).await {
                Ok(pause) => {
                    if told.take().is_some() {
                        tracing::info!("the certificate is looked after again");
                    }
                    pauses = self::pauses();
                    pause
                }
                Err(failure) => {
                    let text = failure.to_string();
                    if told.as_ref() == Some(&text) {
                        tracing::debug!("the certificate is still not looked after: {text}");
                    } else {
                        let metrics = serving.metrics();
                        metrics.failures.inc();
                        tracing::warn!(
                            "the certificate can't be looked after, and the one in use stays \
                             while that is tried again: {text}"
                        );
                        told = Some(text);
                    }
                    pauses.next().expect("an endless row of pauses")
                }
            };
            // What changes meanwhile is looked at together.
            let _ = tokio::time::timeout(pause, changes.next()).await;
        }
    }

    /// Whatever may be a reason to look. Never ends.
    fn changes(&self) -> SelectAll<BoxStream<'static, ()>> {
        let config =
            |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let [mutating, validating] = &self.configurations;
        let mut all = SelectAll::new();
        // Their metadata only: no key is held for that.
        let client = || self.client.clone();
        let api = Api::<PartialObjectMeta<Secret>>::namespaced(client(), &self.namespace);
        let watch = watcher(api, config(&self.secret));
        all.push(reasons(watch, self.shown.clone()));
        let api = Api::<PartialObjectMeta<MutatingWebhookConfiguration>>::all(client());
        let watch = watcher(api, config(&mutating.name));
        all.push(reasons(watch, mutating.shown()));
        let api = Api::<PartialObjectMeta<ValidatingWebhookConfiguration>>::all(client());
        let watch = watcher(api, config(&validating.name));
        all.push(reasons(watch, validating.shown()));
        all
    }

    /// Does all that can be done at once, and says how long there is nothing more to do unless
    /// something changes.
    async fn reconcile(&self, memory: &mut Memory, serving: &Serving) -> Result<Duration, Failure> {
        let mut conflict = None;
        for _ in 0..MOST_STEPS {
            let look = self.look(memory, serving).await?;
            let written = match self.next(&look, memory, serving) {
                Action::Wait(pause) => return Ok(pause),
                Action::Store { current, next } => self.store(&look, memory, current, next).await?,
                Action::Trust(changes) => self.trust(&look, changes).await?,
                Action::Serve(_) => unreachable!("served by `next`"),
            };
            if let Written::Conflict(object) = written {
                tracing::debug!(object, "changed by somebody else, looking again");
                conflict = Some(object);
            }
        }
        Err(Failure::Contended(conflict.unwrap_or_default()))
    }

    /// What to do about what was seen, once everything is served that can be.
    fn next(&self, look: &Look, memory: &mut Memory, serving: &Serving) -> Action {
        loop {
            let now = Now {
                date: SystemTime::now(),
                instant: Instant::now(),
            };
            memory.replica.see(&look.sight, now);
            serving.set_trusted(memory.replica.is_trusted());
            let source = match memory.replica.next(&look.sight, self.schedule, now) {
                Action::Serve(source) => source,
                action => return action,
            };
            let pair = memory.pair(look, source).expect("a pair that was seen");
            if memory
                .in_use
                .as_ref()
                .is_none_or(|it| !it.serving().is(pair.serving()))
            {
                let until = instant(pair.serving().validity().not_after);
                tracing::info!(secret = self.shown, until, "new certificate");
                serving.serve(pair.serving());
            }
            memory.in_use = Some(pair);
            memory.replica.serve(&look.sight.stored, source);
        }
    }

    async fn look(&self, memory: &mut Memory, serving: &Serving) -> Result<Look, Failure> {
        let secret = in_time(&self.shown, self.secrets.get_opt(&self.secret)).await?;
        let pairs = self.read(secret.as_ref(), memory);
        let issued = |pair: &Option<Pair>| pair.as_ref().map(|it| it.issued(&self.server_names));
        let stored = Stored {
            current: issued(&pairs.current),
            next: issued(&pairs.next),
        };
        let (mut objects, mut seen) = (Vec::new(), Vec::new());
        for (index, configuration) in self.configurations.iter().enumerate() {
            let read = configuration.api.get_opt(&configuration.name);
            match in_time(&configuration.shown(), read).await {
                Ok(Some(object)) => {
                    self.note_presence(index, true, memory, serving);
                    seen.push(ca_bundle::read(&object));
                    objects.push((index, object));
                }
                // Nobody calls through it. It is written to when it is there.
                Ok(None) => self.note_presence(index, false, memory, serving),
                Err(failure) => {
                    memory.replica.note_lacking(&stored, &seen);
                    return Err(failure);
                }
            }
        }
        Ok(Look {
            secret,
            pairs,
            sight: Sight {
                stored,
                configurations: seen,
            },
            objects,
        })
    }

    /// Tells once that a configuration is not there, and once that it is back: nothing else
    /// would say why nobody calls.
    fn note_presence(&self, index: usize, is_there: bool, memory: &mut Memory, serving: &Serving) {
        let configuration = &self.configurations[index];
        let (shown, meaning) = (configuration.shown(), configuration.when_missing());
        if is_there && memory.missing.remove(&index) {
            tracing::info!("{shown} is there now");
        } else if !is_there && memory.missing.insert(index) {
            tracing::warn!(
                "{shown} is not there: {meaning}. Apply the manifests again; the CA is written \
                 into it by itself"
            );
        }
        let metrics = serving.metrics();
        metrics.note_configuration(configuration.kind, is_there);
    }

    fn read(&self, secret: Option<&Secret>, memory: &mut Memory) -> Pairs {
        let (pairs, problems) = secret.map(secret::read).unwrap_or_default();
        let is_lost = secret.is_none() && memory.in_use.is_some();
        let problem = if is_lost {
            Some("it is gone".to_owned())
        } else {
            problems.first().map(ToString::to_string)
        };
        if let Some(problem) = problem
            .as_ref()
            .filter(|it| memory.problem.as_ref() != Some(it))
        {
            tracing::warn!(
                "{}: {problem}. It is made anew, with the certificate in use until there is \
                 another one that is trusted",
                self.shown
            );
        }
        memory.problem = problem;
        pairs
    }

    async fn store(
        &self,
        look: &Look,
        memory: &Memory,
        current: Source,
        next: Source,
    ) -> Result<Written, Failure> {
        let pair = |source| match source {
            Source::Fresh => self.placeholder().map(Some),
            source => Ok(memory.pair(look, source)),
        };
        let pairs = Pairs {
            current: pair(current)?,
            next: pair(next)?,
        };
        let secret = secret::written(&self.secret, &pairs, look.secret.as_ref());
        let parameters = PostParams::default();
        let written = if look.secret.is_some() {
            // Refused if it is not as it was seen, for it has that resourceVersion.
            let replace = self.secrets.replace(&self.secret, &parameters, &secret);
            in_time(&self.shown, replace).await
        } else {
            in_time(&self.shown, self.secrets.create(&parameters, &secret)).await
        };
        let is_other = |error: &kube::Error| {
            is_status(error, 409) || (look.secret.is_some() && is_not_found(error))
        };
        let done = outcome(written, &self.shown, is_other)?;
        if let Written::Done = done {
            let step = match (current, next) {
                (_, Source::Fresh) => "next certificate stored",
                (Source::Next, _) => "next certificate is the current one",
                _ => "certificate in use stored again",
            };
            tracing::info!(secret = self.shown, "{step}");
        }
        Ok(done)
    }

    async fn trust(
        &self,
        look: &Look,
        changes: Vec<(usize, Vec<Vec<Authority>>)>,
    ) -> Result<Written, Failure> {
        let mut all = Ok(Written::Done);
        for (seen, bundles) in changes {
            let (index, object) = &look.objects[seen];
            let configuration = &self.configurations[*index];
            let patch = Patch::Json::<()>(ca_bundle::patch(object, &bundles));
            let parameters = PatchParams::default();
            let write = configuration
                .api
                .patch(&configuration.name, &parameters, &patch);
            let shown = configuration.shown();
            let written = in_time(&shown, write).await;
            // 422: a test of the patch has failed.
            let is_other = |error: &kube::Error| {
                is_status(error, 409) || is_status(error, 422) || is_not_found(error)
            };
            match outcome(written, &shown, is_other) {
                Ok(Written::Done) => {
                    tracing::info!(configuration = shown, "CA bundle written");
                }
                // The other one all the same.
                other => all = other,
            }
        }
        all
    }
}

impl Memory {
    fn pair(&self, look: &Look, source: Source) -> Option<Pair> {
        match source {
            Source::Current => look.pairs.current.clone(),
            Source::Next => look.pairs.next.clone(),
            Source::InUse => self.in_use.clone(),
            Source::Nothing | Source::Fresh => None,
        }
    }
}

impl Configuration {
    fn new<K: Resource<DynamicType = ()>>(
        client: Client,
        kind: ConfigurationKind,
        name: String,
    ) -> Self {
        Self {
            kind,
            api: Api::all_with(client, &ApiResource::erase::<K>(&())),
            name,
        }
    }

    fn shown(&self) -> String {
        format!("{} {}", self.kind.name(), self.name)
    }

    /// What it means that it is not there.
    fn when_missing(&self) -> &'static str {
        match self.kind {
            ConfigurationKind::Mutating => {
                "no pod is given its security groups, and pods that a policy selects are refused \
                 or start without them"
            }
            ConfigurationKind::Validating => "nothing is refused that the webhook would refuse",
        }
    }
}

/// From when a look fails again and again.
fn pauses() -> impl Iterator<Item = Duration> {
    let builder = ExponentialBuilder::default().with_min_delay(Duration::from_millis(200));
    builder
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_jitter()
        .build()
}

/// A watch as reasons to look.
fn reasons<T: Send + 'static>(
    watch: impl futures::Stream<Item = watcher::Result<watcher::Event<T>>> + Send + 'static,
    object: String,
) -> BoxStream<'static, ()> {
    let noted = watch.default_backoff().inspect_err(move |error| {
        tracing::debug!(object, %error, "watch failed, starting it again");
    });
    // The end of a list says nothing that its objects have not said, but that there are none.
    let told = noted.filter_map(async |event| {
        use watcher::Event::{Apply, Delete, InitDone};
        matches!(event, Ok(Apply(_) | Delete(_) | InitDone)).then_some(())
    });
    told.boxed()
}

async fn in_time<T>(
    object: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| Failure::Api {
            object: object.to_owned(),
            error: Box::new(error),
        }),
        Err(_) => Err(Failure::TimedOut {
            object: object.to_owned(),
        }),
    }
}

/// What came of a write. `is_other` says which errors tell that the object is not as it was
/// seen.
fn outcome<T>(
    written: Result<T, Failure>,
    object: &str,
    is_other: impl Fn(&kube::Error) -> bool,
) -> Result<Written, Failure> {
    match written {
        Ok(_) => Ok(Written::Done),
        Err(Failure::Api { error, .. }) if is_other(&error) => {
            Ok(Written::Conflict(object.to_owned()))
        }
        Err(failure) => Err(failure),
    }
}

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
