//! The body of a request, as far as it is JSON and not too long.

use std::sync::Arc;

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Webhook;
use crate::api::endpoint::Endpoint;
use crate::server::TooLong;
use crate::server::limits::LONGEST_BODY;

/// The whole body of a request that says that it is JSON.
///
/// An extractor rather than layers around the handler: each layer would allocate for every
/// request.
#[derive(Debug)]
pub struct JsonBody(pub Bytes);

impl FromRequest<Arc<Webhook>> for JsonBody {
    type Rejection = Response;

    async fn from_request(request: Request, webhook: &Arc<Webhook>) -> Result<Self, Response> {
        if !is_json(request.headers()) {
            let message = "the Content-Type must be application/json, as the API server sends it";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response());
        }
        let endpoint = Endpoint::of_path(request.uri().path());
        if let Some((TooLong(beginning), endpoint)) =
            request.extensions().get::<TooLong>().zip(endpoint)
        {
            return Err(webhook.exchange(endpoint).refuse_too_long(beginning));
        }
        // A body that breaks off leaves no one to read the answer, so that the one reason
        // to tell is the length.
        let body = to_bytes(request.into_body(), LONGEST_BODY).await;
        body.map(Self).map_err(|_| too_long())
    }
}

/// The response to a body that is longer than it may be, and no review.
pub(super) fn too_long() -> Response {
    let message = "the body is longer than 3 MiB";
    (StatusCode::PAYLOAD_TOO_LARGE, message).into_response()
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    let essence = content_type
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or(value).trim());
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use axum::body::Body;

    async fn status(content_type: &str, length: usize) -> StatusCode {
        let request = Request::builder().header(header::CONTENT_TYPE, content_type);
        let request = request.body(Body::from(vec![b' '; length])).unwrap();
        let service = tower::service_fn(async |_: Request<kube::client::Body>| {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let client = kube::Client::new(service, "default");
        let webhook = Arc::new(Webhook::new(client, Settings::default(), None));
        match JsonBody::from_request(request, &webhook).await {
            Ok(JsonBody(body)) => {
                assert_eq!(body.len(), length);
                StatusCode::OK
            }
            Err(response) => response.status(),
        }
    }

    #[tokio::test]
    async fn only_json_of_bounded_length_is_read() {
        for (content_type, length, expected) in [
            ("application/json", 0, StatusCode::OK),
            (
                "Application/JSON; charset=utf-8",
                LONGEST_BODY,
                StatusCode::OK,
            ),
            (
                "application/json",
                LONGEST_BODY + 1,
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            ("application/yaml", 1, StatusCode::UNSUPPORTED_MEDIA_TYPE),
            ("", 1, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ] {
            let got = status(content_type, length).await;
            assert_eq!(got, expected, "{length} bytes of {content_type:?}");
        }
    }
}
