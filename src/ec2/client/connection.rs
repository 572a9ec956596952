//! The SDK's client, which there is once a region is known.
//!
//! What names the region may come later than this process: the metadata of an instance that
//! has just started, a profile that somebody writes. So it is looked for with the first call,
//! and again with later ones until it is found.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{Config, IdentityCache, StalledStreamProtectionConfig};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::gate::Gate;

/// A connection within a region is there in milliseconds, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Finding credentials takes an answer of STS, of the Pod Identity agent or of the instance's
/// metadata. Shorter than a call's whole time, so that its failure tells of the credentials.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(8);

/// Finding the region takes an answer of the instance's metadata, for which the SDK would wait
/// half a minute.
const REGION_TIMEOUT: Duration = Duration::from_secs(8);

/// How long nobody looks again after a look in vain; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause. A look costs two small files and two requests to the instance's metadata,
/// and pods wait for its end.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// No source of configuration names an AWS region.
#[derive(Debug, thiserror::Error)]
#[error(
    "no AWS region is known; set AWS_REGION, or `region` in the profile of AWS_CONFIG_FILE \
     that AWS_PROFILE names, or let the instance metadata service answer (from inside of a \
     pod it needs a hop limit of 2)"
)]
pub(super) struct NoRegion;

/// Gives region, credentials and endpoint, as they can be found now.
type Source = Box<dyn Fn() -> BoxFuture<'static, SdkConfig> + Send + Sync>;

/// A client that is made when it is first needed.
pub(super) struct Connection {
    source: Source,
    gate: Gate,
    client: OnceCell<Client>,
    looks: Mutex<Looks>,
}

/// The looks for a region so far, all of them in vain.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    pause: Duration,
    /// Nobody looks before; `None` before the first look.
    next: Option<Instant>,
}

impl Connection {
    /// Asks `source` for each look; `gate` is that of all calls.
    pub(super) fn new<F>(source: impl Fn() -> F + Send + Sync + 'static, gate: Gate) -> Self
    where
        F: Future<Output = SdkConfig> + Send + 'static,
    {
        Self {
            source: Box::new(move || source().boxed()),
            gate,
            client: OnceCell::new(),
            looks: Mutex::default(),
        }
    }

    /// The same with another gate.
    pub(super) fn with_gate(self, gate: Gate) -> Self {
        Self {
            gate,
            // One that there is already asks the gate of before.
            client: OnceCell::new(),
            ..self
        }
    }

    /// The client. Of several that need it at once, one looks for the region, and the others
    /// wait for what it finds.
    ///
    /// # Errors
    ///
    /// When no region is found, or none was found a short time ago.
    pub(super) async fn client(&self) -> Result<&Client, NoRegion> {
        self.client.get_or_try_init(|| self.look()).await
    }

    async fn look(&self) -> Result<Client, NoRegion> {
        let before = *self.looks();
        if before.next.is_some_and(|next| Instant::now() < next) {
            return Err(NoRegion);
        }
        let found = timeout(REGION_TIMEOUT, (self.source)()).await.ok();
        let region = found.as_ref().and_then(|config| config.region());
        // A variable without a value names none.
        match (&found, region.filter(|region| !region.as_ref().is_empty())) {
            (Some(config), Some(region)) => {
                if before.next.is_some() {
                    tracing::info!(%region, "an AWS region is known now");
                }
                Ok(client(config, &self.gate))
            }
            _ => {
                *self.looks() = before.in_vain(Instant::now());
                Err(NoRegion)
            }
        }
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looks {
    /// After a further one that ended now.
    fn in_vain(self, now: Instant) -> Self {
        let pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        Self {
            pause,
            next: Some(now + pause),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("client", &self.client)
            .field("looks", &self.looks)
            .finish_non_exhaustive()
    }
}

/// With the region, credentials and endpoint from there; retries and timeouts are our own.
fn client(config: &SdkConfig, gate: &Gate) -> Client {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT);
    let identities = IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT);
    let config: Config = aws_sdk_ec2::config::Builder::from(config)
        .identity_cache(identities.build())
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts.build())
        .interceptor(gate.clone())
        .build();
    Client::from_conf(config)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_config::{BehaviorVersion, Region};
    use tokio::time::sleep;

    use super::*;

    /// A source that names a region from this look on, and takes so long for each.
    fn late(from: usize, takes: Duration) -> (Connection, Arc<AtomicUsize>) {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = looks.clone();
        let source = move || {
            let look = counted.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                sleep(takes).await;
                let region = (look >= from).then(|| Region::new("us-west-2"));
                let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
                config.region(region).build()
            }
        };
        (Connection::new(source, Gate::default()), looks)
    }

    #[tokio::test(start_paused = true)]
    async fn region_is_looked_for_again_after_pauses_that_double_up_to_a_bound() {
        let (connection, looks) = late(8, Duration::ZERO);
        let begin = Instant::now();
        let mut looked_at = Vec::new();
        while connection.client().await.is_err() {
            if looks.load(Ordering::Relaxed) > looked_at.len() {
                looked_at.push(begin.elapsed().as_millis());
            }
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(looked_at, [0, 500, 1_500, 3_500, 7_500, 15_500, 23_500]);
        assert_eq!(begin.elapsed().as_millis(), 31_500);

        connection.client().await.unwrap();
        assert_eq!(looks.load(Ordering::Relaxed), 8, "it stays known");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_need_it_at_once_look_once() {
        let (connection, looks) = late(2, Duration::from_secs(5));
        let begin = Instant::now();
        let calls = futures::future::join_all((0..50).map(|_| connection.client()));
        assert!(calls.await.iter().all(Result::is_err));
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn look_that_takes_too_long_is_one_in_vain() {
        let (connection, _) = late(1, Duration::from_secs(3_600));
        let begin = Instant::now();
        let error = connection.client().await.unwrap_err();
        assert!(error.to_string().contains("AWS_REGION"), "{error}");
        assert_eq!(begin.elapsed(), REGION_TIMEOUT);
    }

    #[tokio::test]
    async fn variable_without_a_value_names_no_region() {
        let source = || async {
            let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
            config.region(Region::new("")).build()
        };
        let connection = Connection::new(source, Gate::default());
        assert!(connection.client().await.is_err());
    }
}
