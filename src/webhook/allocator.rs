//! Questions to the allocator in the same pod: do a pod's groups exist, is there an interface?
//!
//! Its answers add to what is told to whoever creates a pod, a policy or a workload. Without
//! one in time these are let in as if there were no allocator.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::api::SecurityGroupId;
use crate::policy::Availability;
use crate::telemetry::metrics::AllocatorMetrics;

/// How long a pod waits for the allocator.
const BUDGET: Duration = Duration::from_millis(100);

/// How long a policy or a workload waits for it: they are rarely written, often name groups
/// that EC2 has to be asked for first, and their authors are who can mend them.
const AUTHORS_BUDGET: Duration = Duration::from_secs(1);

/// How long an answer holds for other pods with the same groups, also that there was none: many
/// pods come at once where a Deployment is scaled.
const HOLDS: Duration = Duration::from_secs(1);

/// The most answers that are held; their questions are made of what users write.
const MOST_HELD: usize = 256;

/// The most groups that are asked for, which is what the allocator takes. EC2 takes fewer for
/// an interface.
const MOST_IDS: usize = 200;

/// The longest answer: twice what it can have to say about so many groups.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The allocator, as the webhook sees it.
pub struct Allocator {
    socket: PathBuf,
    held: Held,
    is_silent: AtomicBool,
    metrics: AllocatorMetrics,
}

/// Why there is no answer.
#[derive(Debug, Error)]
enum Unanswered {
    #[error("it did not answer in time")]
    TimedOut,
    #[error("its socket can't be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the connection failed: {0}")]
    Failed(#[from] hyper::Error),
    #[error("it said {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("its answer can't be read: {0}")]
    Unreadable(String),
}

impl Allocator {
    /// The allocator that listens on this socket, now or later.
    pub fn new(socket: PathBuf, metrics: AllocatorMetrics) -> Self {
        Self {
            socket,
            held: Held::default(),
            is_silent: AtomicBool::new(false),
            metrics,
        }
    }

    /// What there is of these groups and of branch interfaces; `None` if the allocator does not
    /// say so within the time that a pod has.
    pub async fn ask(&self, group_ids: &[&SecurityGroupId]) -> Option<Arc<Availability>> {
        self.ask_within(BUDGET, group_ids).await
    }

    /// The same, for who writes a policy or a workload and can wait longer than a pod.
    pub async fn ask_for_author(
        &self,
        group_ids: &[&SecurityGroupId],
    ) -> Option<Arc<Availability>> {
        self.ask_within(AUTHORS_BUDGET, group_ids).await
    }

    async fn ask_within(
        &self,
        budget: Duration,
        group_ids: &[&SecurityGroupId],
    ) -> Option<Arc<Availability>> {
        // Others do not exist, whatever the allocator says, and need no escaping here.
        let well_formed = group_ids.iter().filter(|id| id.is_well_formed());
        let ids: Vec<_> = well_formed
            .take(MOST_IDS)
            .map(|id| format!("id={id}"))
            .collect();
        let question = format!("/v1/admission?{}", ids.join("&"));
        let deadline = Instant::now() + budget;
        let ask = self.ask_until(deadline, &question);
        let answer = self.held.answer(&question, deadline, ask).await;
        match &answer {
            Some(_) => self.metrics.answered.inc(),
            None => self.metrics.unanswered.inc(),
        };
        answer
    }

    async fn ask_until(&self, deadline: Instant, question: &str) -> Option<Arc<Availability>> {
        let asked = tokio::time::timeout_at(deadline, self.call(question)).await;
        match asked.unwrap_or(Err(Unanswered::TimedOut)) {
            Ok(availability) => {
                if self.is_silent.swap(false, Ordering::Relaxed) {
                    tracing::info!("the allocator answers again");
                }
                Some(Arc::new(availability))
            }
            Err(error) => {
                tracing::debug!(question, %error, "no answer of the allocator");
                if !self.is_silent.swap(true, Ordering::Relaxed) {
                    tracing::warn!(socket = %self.socket.display(), %error,
                        "the allocator gives no answer; pods are let in without a look at their \
                         groups until it does");
                }
                None
            }
        }
    }

    /// Asks over a connection of its own: on one machine it costs next to nothing, and none
    /// has to be kept, mended or shared.
    async fn call(&self, question: &str) -> Result<Availability, Unanswered> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(question)
            .header(header::HOST, "allocator")
            .header(header::CONNECTION, "close")
            .body(Body::empty())
            .expect("well-formed ids make a well-formed path");
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = axum::body::to_bytes(Body::new(response.into_body()), LONGEST_ANSWER);
            let body = body.await.map_err(unreadable)?;
            if status != StatusCode::OK {
                let body = String::from_utf8_lossy(&body).into_owned();
                return Err(Unanswered::Refused { status, body });
            }
            serde_json::from_slice(&body).map_err(unreadable)
        };
        // The connection moves the answer, and ends with it.
        let (_, answer) = futures::future::join(connection, answer).await;
        answer
    }
}

fn unreadable(error: impl std::fmt::Display) -> Unanswered {
    Unanswered::Unreadable(error.to_string())
}

/// Answers that still hold, and questions that are under way.
#[derive(Default)]
struct Held(Mutex<HashMap<String, Question>>);

struct Question {
    since: Instant,
    answer: Arc<OnceCell<Option<Arc<Availability>>>>,
}

impl Held {
    /// The answer to a question that somebody else asked a moment ago, or what comes of `ask`.
    ///
    /// Waits until `deadline` at most, which `ask` keeps itself; it may be begun late, because
    /// who asked first has gone away.
    async fn answer(
        &self,
        question: &str,
        deadline: Instant,
        ask: impl Future<Output = Option<Arc<Availability>>>,
    ) -> Option<Arc<Availability>> {
        let cell = self.cell(question);
        let answer = tokio::time::timeout_at(deadline, cell.get_or_init(|| ask));
        answer.await.ok().cloned().flatten()
    }

    fn cell(&self, question: &str) -> Arc<OnceCell<Option<Arc<Availability>>>> {
        let mut held = self
            .0
            .lock()
            .expect("no one panics while answers are locked");
        let now = Instant::now();
        let holds = |question: &Question| now < question.since + HOLDS;
        if let Some(question) = held.get(question).filter(|question| holds(question)) {
            return question.answer.clone();
        }
        if held.len() >= MOST_HELD {
            held.retain(|_, question| holds(question));
        }
        let answer = Arc::new(OnceCell::new());
        if held.len() < MOST_HELD {
            let since = now;
            let answer = answer.clone();
            held.insert(question.to_owned(), Question { since, answer });
        }
        answer
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    fn soon() -> Instant {
        Instant::now() + BUDGET
    }

    fn none_free() -> Option<Arc<Availability>> {
        Some(Arc::new(Availability {
            free: Some(0),
            ..Availability::default()
        }))
    }

    /// Answers after so long, and counts.
    async fn ask(
        asked: &AtomicUsize,
        after: Duration,
        answer: Option<Arc<Availability>>,
    ) -> Option<Arc<Availability>> {
        asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(after).await;
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_come_together_ask_once() {
        let (held, asked) = (Held::default(), AtomicUsize::new(0));
        let slow = BUDGET / 2;
        for answer in [none_free(), None] {
            let ask = || ask(&asked, slow, answer.clone());
            let before = asked.load(Ordering::Relaxed);
            let (one, two) = tokio::join!(
                held.answer("a", soon(), ask()),
                held.answer("a", soon(), ask())
            );
            assert_eq!((one, two), (answer.clone(), answer.clone()));
            tokio::time::advance(HOLDS - slow - Duration::from_millis(1)).await;
            assert_eq!(held.answer("a", soon(), ask()).await, answer);
            assert_eq!(asked.load(Ordering::Relaxed), before + 1);
            held.answer("b", soon(), ask()).await;
            assert_eq!(
                asked.load(Ordering::Relaxed),
                before + 2,
                "another question"
            );

            tokio::time::advance(HOLDS).await;
            held.answer("a", soon(), ask()).await;
            assert_eq!(asked.load(Ordering::Relaxed), before + 3, "it is too old");
            tokio::time::advance(HOLDS).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pod_waits_no_longer_than_the_budget_whoever_asked_first() {
        let held = Held::default();
        let never = || std::future::pending();
        let mut first = Box::pin(held.answer("a", soon(), never()));
        assert!(futures::poll!(&mut first).is_pending());
        let begin = Instant::now();
        let mut second = Box::pin(held.answer("a", soon(), never()));
        assert!(futures::poll!(&mut second).is_pending());
        tokio::time::advance(BUDGET / 2).await;
        drop(first);
        assert_eq!(second.await, None);
        assert_eq!(begin.elapsed(), BUDGET);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_questions_are_asked_all_the_same() {
        let (held, asked) = (Held::default(), AtomicUsize::new(0));
        for number in 0..2 * MOST_HELD {
            let ask = ask(&asked, Duration::ZERO, none_free());
            let question = number.to_string();
            assert_eq!(held.answer(&question, soon(), ask).await, none_free());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2 * MOST_HELD);
        assert_eq!(held.0.lock().unwrap().len(), MOST_HELD);
        tokio::time::advance(HOLDS).await;
        held.answer("a", soon(), std::future::ready(None)).await;
        assert_eq!(held.0.lock().unwrap().len(), 1);
    }

    /// Answers each connection with this text, and gives the lines of the requests.
    pub(crate) fn serve(listener: UnixListener, answer: String) -> Arc<Mutex<Vec<String>>> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let line = request.lines().next().unwrap_or_default().to_owned();
                note.lock().unwrap().push(line);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        asked
    }

    pub(crate) fn response(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    #[tokio::test]
    async fn whatever_is_no_answer_counts_as_none() {
        let answer = r#"{"missing": ["sg-0123abcd"], "elsewhere": [], "vpc_id": null,
            "free": 7, "nodes": 1}"#;
        let expected = Availability {
            missing: vec!["sg-0123abcd".to_owned()],
            free: Some(7),
            nodes: 1,
            ..Availability::default()
        };
        let too_long = format!("{answer}{}", " ".repeat(LONGEST_ANSWER));
        for (answer, expected) in [
            (response("200 OK", answer), Ok(expected)),
            (
                response("503 Service Unavailable", r#"{"error": "no EC2"}"#),
                Err("it said 503 Service Unavailable: {\"error\": \"no EC2\"}"),
            ),
            (
                response("200 OK", "{}"),
                Err("its answer can't be read: missing field"),
            ),
            (
                response("200 OK", &too_long),
                Err("its answer can't be read: length limit"),
            ),
            ("HTTP/1.1 200".to_owned(), Err("the connection failed: ")),
            (String::new(), Err("the connection failed: ")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("socket");
            let asked = serve(UnixListener::bind(&path).unwrap(), answer);
            let allocator = Allocator::new(path, Metrics::new().allocator);
            let answer = allocator.call("/v1/admission?id=sg-0123abcd").await;
            match (answer, expected) {
                (Ok(answer), Ok(expected)) => assert_eq!(answer, expected),
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().starts_with(expected), "{error}");
                }
                (answer, expected) => panic!("{answer:?}, not {expected:?}"),
            }
            let line = "GET /v1/admission?id=sg-0123abcd HTTP/1.1";
            assert_eq!(*asked.lock().unwrap(), [line]);
        }
    }

    #[tokio::test]
    async fn allocator_that_is_away_or_silent_is_counted_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let metrics = Metrics::new().allocator;
        let allocator = Allocator::new(path.clone(), metrics.clone());
        let id = SecurityGroupId::from("sg-0123abcd");
        assert!(allocator.ask(&[&id]).await.is_none());
        assert_eq!((metrics.answered.get(), metrics.unanswered.get()), (0, 1));

        // Takes connections and says nothing. Another group, for the answer above still holds.
        let _silent = UnixListener::bind(&path).unwrap();
        let id = SecurityGroupId::from("sg-0000000b");
        let begin = std::time::Instant::now();
        assert!(allocator.ask(&[&id]).await.is_none());
        assert!(begin.elapsed() >= BUDGET, "it had its time");
        assert_eq!((metrics.answered.get(), metrics.unanswered.get()), (0, 2));
    }
}
