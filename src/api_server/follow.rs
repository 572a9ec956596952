//! Following a resource through one watch after another, whatever becomes of single ones.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, pin_mut};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};

/// How soon it is asked again whether a resource is defined by now.
const UNDEFINED_PAUSE: Duration = Duration::from_millis(500);

/// What a watch feeds.
pub trait Feed<K> {
    /// What is known of all objects.
    type Index: Default;
    /// Puts an object of a list into the index that the list will make.
    fn add(index: &mut Self::Index, object: K);
    /// A new or changed object.
    fn apply(&self, object: K);
    /// An object that is gone.
    fn delete(&self, object: &K);
    /// All objects that there are.
    fn reset(&self, index: Self::Index);
    /// The API server does not know the resource.
    fn undefined(&self, error: &watcher::Error);
    /// The watch failed and is started again.
    fn failed(&self, error: &watcher::Error);
}

/// Whether the API server says that it does not know the resource or the object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Short enough that an API server that comes back is noticed within seconds.
fn backoff() -> ExponentialBackoff {
    let longest = Duration::from_secs(3);
    let builder = backon::ExponentialBuilder::default().with_min_delay(longest / 16);
    builder
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .into()
}

/// Feeds the index from one watch after another. Never ends by itself.
pub async fn follow<K: Debug, S>(feed: impl Feed<K>, watch: impl Fn() -> S)
where
    S: Stream<Item = watcher::Result<Event<K>>> + Send,
{
    loop {
        // A watch whose resource went away begins anew with a list: going on where it was,
        // it would never learn what came and went meanwhile.
        follow_while_defined(&feed, watch()).await;
        tokio::time::sleep(UNDEFINED_PAUSE).await;
    }
}

async fn follow_while_defined<K: Debug, F: Feed<K>>(
    feed: &F,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) {
    let events = events.backoff(backoff());
    pin_mut!(events);
    let mut listed = F::Index::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = F::Index::default(),
            // Only what the index keeps stays in memory, not the objects of a whole cluster.
            Ok(Event::InitApply(object)) => F::add(&mut listed, object),
            Ok(Event::InitDone) => feed.reset(std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => feed.apply(object),
            Ok(Event::Delete(object)) => feed.delete(&object),
            Err(error) => match &error {
                watcher::Error::InitialListFailed(cause) if is_not_found(cause) => {
                    return feed.undefined(&error);
                }
                watcher::Error::WatchStartFailed(cause) if is_not_found(cause) => {
                    return feed.failed(&error);
                }
                _ => feed.failed(&error),
            },
        }
    }
}
