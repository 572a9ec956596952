//! What those get who may not call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use tokio::time::Instant;

use super::{Webhook, probes};
use crate::telemetry::metrics::CallerMetrics;
use crate::tls::CallerRefusal;

/// Between two lines of the log about the same reason: strangers can call as often as they like.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Those who were refused, by reason in the order of [`CallerMetrics::refused`].
#[derive(Debug)]
pub(super) struct Refused {
    metrics: CallerMetrics,
    logged: Mutex<[Option<Instant>; CallerMetrics::REASONS.len()]>,
}

impl Refused {
    pub(super) fn new(metrics: CallerMetrics) -> Self {
        let logged = Mutex::default();
        Self { metrics, logged }
    }

    /// Counts one. Whether it is worth a line.
    fn note(&self, refusal: &CallerRefusal) -> bool {
        let reason = match refusal {
            CallerRefusal::NoCertificate => 0,
            CallerRefusal::OtherName(..) => 2,
            _ => 1,
        };
        self.metrics.refused[reason].inc();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut logged[reason];
        let is_due = last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Answers probes, and tells everybody else why nothing else is answered.
pub(super) fn router(webhook: Arc<Webhook>) -> Router {
    probes(webhook.clone()).fallback(refuse).with_state(webhook)
}

async fn refuse(
    State(webhook): State<Arc<Webhook>>,
    Extension(refusal): Extension<CallerRefusal>,
    version: Version,
) -> Response {
    if webhook.refused.note(&refusal) {
        tracing::warn!("refused a caller: {refusal}");
    }
    // Of a 401 the API server tells its users nothing but the number.
    let mut answer = (StatusCode::FORBIDDEN, refusal.to_string()).into_response();
    if version <= Version::HTTP_11 {
        // Whoever gets another certificate has to show it, for which it must connect anew.
        let close = header::HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_refusal_is_counted_and_one_a_minute_is_logged() {
        let metrics = CallerMetrics::default();
        let refused = Refused::new(metrics.clone());
        let none = CallerRefusal::NoCertificate;
        let name = CallerRefusal::OtherName(crate::tls::ClientName::None, Vec::new());
        assert!(refused.note(&none));
        assert!(!refused.note(&none));
        assert!(refused.note(&name), "another reason");
        tokio::time::advance(LOG_EVERY / 2).await;
        assert!(!refused.note(&none));
        tokio::time::advance(LOG_EVERY / 2).await;
        assert!(refused.note(&none));

        let counts = metrics.refused.map(|it| it.get());
        assert_eq!(counts, [4, 0, 1]);
    }
}
