//! Live questions to the API server, bounded in time and asked once however many requests
//! wait for the answer.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use tokio::time::Instant;

/// Why there is no answer; shared by all who waited for it.
#[derive(Clone, Debug, Error)]
pub enum LookupError {
    /// The API server did not answer in time.
    #[error("the API server did not answer in time")]
    TimedOut,
    /// The API server could not be asked, or refused to answer.
    #[error("{}", in_words(.0))]
    Failed(Arc<kube::Error>),
}

/// What the API server says, without the rest of its answer.
fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "{}; give the webhook's service account the rights of manifests/base/rbac.yaml",
            status.message
        ),
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

type Pending<V> = Shared<BoxFuture<'static, Result<V, LookupError>>>;

/// One kind of question.
///
/// Who asks is told what the API server knew at the time of asking or later. Requests that
/// come while an equal question is on its way therefore wait for the next one, together: at
/// most one question of a key is under way at a time.
#[derive(Debug)]
pub struct Lookup<K, V: Clone> {
    timeout: Duration,
    asked: Counter,
    pending: Mutex<HashMap<K, Question<V>>>,
}

/// The latest question of a key.
#[derive(Debug)]
struct Question<V: Clone> {
    /// Whether it is on its way, so that its answer may be older than a request that comes now.
    begun: Arc<AtomicBool>,
    answer: Pending<V>,
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

    /// The answer of `ask`, or that of an equal question that is still to be asked.
    ///
    /// Waits until `deadline` at most. The question goes on for those who came later.
    pub async fn run<F>(&self, key: K, deadline: Instant, ask: F) -> Result<V, LookupError>
    where
        F: Future<Output = Result<V, kube::Error>> + Send + 'static,
    {
        let answer = self.join_or_ask(key.clone(), ask);
        // Also when the request goes away before its answer comes. Whoever still waits has
        // the question in hands and drives it on.
        let _forget = Forget {
            lookup: self,
            key,
            answer: answer.clone(),
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(LookupError::TimedOut),
        }
    }

    fn join_or_ask<F>(&self, key: K, ask: F) -> Pending<V>
    where
        F: Future<Output = Result<V, kube::Error>> + Send + 'static,
    {
        let mut pending = self.pending.lock().expect(POISONED);
        let under_way = match pending.get(&key) {
            Some(next) if !next.begun.load(Ordering::Acquire) => return next.answer.clone(),
            under_way => under_way.map(|question| question.answer.clone()),
        };
        let begun = Arc::new(AtomicBool::new(false));
        let (timeout, asked, begins) = (self.timeout, self.asked.clone(), begun.clone());
        let answer = async move {
            if let Some(under_way) = under_way {
                // Its answer is not for us, whatever it is.
                let _ = under_way.await;
            }
            begins.store(true, Ordering::Release);
            asked.inc();
            match tokio::time::timeout(timeout, ask).await {
                Ok(answer) => answer.map_err(|error| LookupError::Failed(error.into())),
                Err(_) => Err(LookupError::TimedOut),
            }
        };
        let answer = answer.boxed().shared();
        let question = Question {
            begun,
            answer: answer.clone(),
        };
        pending.insert(key, question);
        answer
    }
}

const POISONED: &str = "no one panics while the map of questions is locked";

/// Takes a question off the map when it is answered, or when nobody waits for it any more.
struct Forget<'a, K: Eq + Hash, V: Clone> {
    lookup: &'a Lookup<K, V>,
    key: K,
    answer: Pending<V>,
}

impl<K: Eq + Hash, V: Clone> Drop for Forget<'_, K, V> {
    fn drop(&mut self) {
        let mut pending = self.lookup.pending.lock().expect(POISONED);
        let latest = pending.get(&self.key);
        let is_latest = latest.is_some_and(|question| question.answer.ptr_eq(&self.answer));
        // The map's own and this one are left when nobody else waits.
        let is_last = self.answer.strong_count().is_none_or(|count| count <= 2);
        if is_latest && (is_last || self.answer.peek().is_some()) {
            pending.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Semaphore;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn lookup() -> Lookup<&'static str, usize> {
        Lookup::new(Duration::from_secs(2), Counter::default())
    }

    /// Answers with how often it has been asked, once it may.
    fn ask(
        asked: &Arc<AtomicUsize>,
        may_answer: &Arc<Semaphore>,
    ) -> impl Future<Output = Result<usize, kube::Error>> + use<> {
        let (asked, may_answer) = (asked.clone(), may_answer.clone());
        async move {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            may_answer.acquire().await.expect("never closed").forget();
            Ok(number)
        }
    }

    #[tokio::test]
    async fn requests_that_wait_together_share_one_question() {
        let lookup = lookup();
        let (asked, may_answer) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let requests = (0..5).map(|_| lookup.run("a", later(), ask(&asked, &may_answer)));
        let mut all = futures::future::join_all(requests);
        assert!(futures::poll!(&mut all).is_pending());
        let other = lookup.run("b", later(), ask(&asked, &may_answer));

        may_answer.add_permits(3);
        // The first was on its way when the others came.
        let answers = all.await.into_iter().map(Result::unwrap);
        assert_eq!(answers.collect::<Vec<_>>(), [0, 1, 1, 1, 1]);
        assert_eq!(other.await.unwrap(), 2, "another key is another question");
        assert!(lookup.pending.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn answer_is_never_older_than_the_request() {
        let lookup = lookup();
        let (asked, may_answer) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let mut first = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        assert!(futures::poll!(&mut first).is_pending(), "it is on its way");
        let mut second = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        let mut third = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!(asked.load(Ordering::Relaxed), 1, "one at a time");

        may_answer.add_permits(2);
        assert_eq!(second.await.unwrap(), 1);
        assert_eq!(third.await.unwrap(), 1);
        assert_eq!(first.await.unwrap(), 0);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_in_an_error_for_all_who_wait() {
        let lookup = lookup();
        let (one, two) = tokio::join!(
            lookup.run("a", later(), std::future::pending()),
            lookup.run("a", later(), std::future::pending())
        );
        for answer in [one, two] {
            assert!(matches!(answer, Err(LookupError::TimedOut)));
        }
        assert!(lookup.pending.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn request_that_goes_away_holds_up_nobody() {
        let lookup = lookup();
        let (asked, may_answer) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let mut gone = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        assert!(futures::poll!(&mut gone).is_pending());
        let mut waiting = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        let mut joined = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(futures::poll!(&mut joined).is_pending());

        drop(gone);
        drop(waiting);
        let mut late = Box::pin(lookup.run("a", later(), ask(&asked, &may_answer)));
        assert!(futures::poll!(&mut late).is_pending());
        may_answer.add_permits(2);
        assert_eq!(joined.await.unwrap(), 1);
        assert_eq!(
            late.await.unwrap(),
            1,
            "it shares the question that others left"
        );
        assert!(lookup.pending.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_until_the_deadline() {
        let lookup = lookup();
        let deadline = Instant::now() + Duration::from_secs(1);
        let begin = Instant::now();
        let answer = lookup.run("a", deadline, std::future::pending()).await;
        assert!(matches!(answer, Err(LookupError::TimedOut)));
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
        assert!(lookup.pending.lock().unwrap().is_empty());
    }
}
