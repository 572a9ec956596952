//! Live questions to the API server, bounded in time and asked once however many requests
//! wait for the answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use prometheus_client::metrics::counter::Counter;
use thiserror::Error;

/// Why there is no answer; shared by all who waited for it.
#[derive(Clone, Debug, Error)]
pub enum LookupError {
    /// The API server did not answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The API server could not be asked, or refused to answer.
    #[error(transparent)]
    Failed(Arc<kube::Error>),
}

type Pending<V> = Shared<BoxFuture<'static, Result<V, LookupError>>>;

/// One kind of question.
#[derive(Debug)]
pub struct Lookup<K, V: Clone> {
    timeout: Duration,
    asked: Counter,
    pending: Mutex<HashMap<K, Pending<V>>>,
}

impl<K: Clone + Eq + Hash, V: Clone + Send + Sync + 'static> Lookup<K, V> {
    /// Answers take at most `timeout`; `asked` counts the questions that went out.
    pub fn new(timeout: Duration, asked: Counter) -> Self {
        Self {
            timeout,
            asked,
            pending: Mutex::default(),
        }
    }

    /// The answer of `ask`, or that of an equal question that is already under way.
    pub async fn run<F>(&self, key: K, ask: F) -> Result<V, LookupError>
    where
        F: Future<Output = Result<V, kube::Error>> + Send + 'static,
    {
        let (pending, is_mine) = self.join_or_ask(key.clone(), ask);
        // If the one who asked goes away, whoever still waits drives the question on; the
        // entry must go all the same.
        let _forget = is_mine.then(|| Forget { lookup: self, key });
        pending.await
    }

    fn join_or_ask<F>(&self, key: K, ask: F) -> (Pending<V>, bool)
    where
        F: Future<Output = Result<V, kube::Error>> + Send + 'static,
    {
        match self.pending.lock().expect(POISONED).entry(key) {
            Entry::Occupied(entry) => (entry.get().clone(), false),
            Entry::Vacant(entry) => {
                self.asked.inc();
                let timeout = self.timeout;
                let bounded = async move {
                    match tokio::time::timeout(timeout, ask).await {
                        Ok(answer) => answer.map_err(|error| LookupError::Failed(error.into())),
                        Err(_) => Err(LookupError::TimedOut(timeout)),
                    }
                };
                (entry.insert(bounded.boxed().shared()).clone(), true)
            }
        }
    }
}

const POISONED: &str = "no one panics while the map of questions is locked";

struct Forget<'a, K: Eq + Hash, V: Clone> {
    lookup: &'a Lookup<K, V>,
    key: K,
}

impl<K: Eq + Hash, V: Clone> Drop for Forget<'_, K, V> {
    fn drop(&mut self) {
        self.lookup
            .pending
            .lock()
            .expect(POISONED)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn lookup() -> Lookup<&'static str, usize> {
        Lookup::new(Duration::from_secs(2), Counter::default())
    }

    #[tokio::test]
    async fn equal_questions_at_the_same_time_are_asked_once() {
        let lookup = lookup();
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let asked = asked.clone();
            async move {
                tokio::task::yield_now().await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            }
        };

        let (one, two, other) = tokio::join!(
            lookup.run("a", ask()),
            lookup.run("a", ask()),
            lookup.run("b", ask())
        );
        assert_eq!(one.unwrap(), two.unwrap());
        other.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);

        lookup.run("a", ask()).await.unwrap();
        assert_eq!(
            asked.load(Ordering::Relaxed),
            3,
            "an old answer is not given again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_in_an_error_for_all_who_wait() {
        let lookup = lookup();
        let (one, two) = tokio::join!(
            lookup.run("a", std::future::pending()),
            lookup.run("a", std::future::pending())
        );
        for answer in [one, two] {
            assert!(matches!(answer, Err(LookupError::TimedOut(_))));
        }
        assert!(lookup.pending.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn question_outlives_the_request_that_asked_it() {
        let lookup = lookup();
        let (answer, waiting) = tokio::sync::oneshot::channel();
        let mut first =
            Box::pin(lookup.run("a", async { Ok(waiting.await.expect("an answer is sent")) }));
        assert!(futures::poll!(&mut first).is_pending());
        let second = lookup.run("a", async { Ok(0) });
        futures::pin_mut!(second);
        assert!(futures::poll!(&mut second).is_pending());

        drop(first);
        answer.send(7).unwrap();
        assert_eq!(second.await.unwrap(), 7);
    }
}
