//! AdmissionReview in and out (`admission.k8s.io/v1`, Kubernetes documentation, "Dynamic
//! Admission Control").

use std::borrow::Cow;
use std::fmt;

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::policy::field_error::{self, FieldError};
use crate::policy::pod::Text;

/// The most characters of a uid; the API server makes them of 36. Whoever asks must not make
/// an answer long.
const UID_CHARACTERS: usize = 256;

/// The most characters of what was wrong with a body, which may quote all of it.
const PROBLEM_CHARACTERS: usize = 1_000;

/// The most characters of a refusal, which may name what the caller wrote.
const MESSAGE_CHARACTERS: usize = 4_000;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What the API server asks, with the fields of the object that `O` needs. Whatever else
/// the review holds is skipped unread.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a, O> {
    /// Names this call; the answer must repeat it.
    #[serde(borrow)]
    pub uid: Text<'a>,
    /// The type of the object.
    #[serde(borrow, default)]
    pub kind: Kind<'a>,
    /// The resource that the caller addressed.
    #[serde(borrow, default)]
    pub resource: Resource<'a>,
    /// For example `ephemeralcontainers`; empty or absent for the resource itself.
    #[serde(borrow)]
    sub_resource: Option<Text<'a>>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    /// Who asks.
    #[serde(borrow, default)]
    pub user_info: UserInfo<'a>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(borrow, default)]
    pub operation: Text<'a>,
    /// Absent for deletions.
    #[serde(default = "Option::default")]
    pub object: Option<O>,
    /// The object as it is stored; absent for creations.
    #[serde(default = "Option::default")]
    pub old_object: Option<O>,
    /// How the caller wants it done.
    pub options: Option<Options>,
}

/// Who asks.
#[derive(Debug, Default, Deserialize)]
pub struct UserInfo<'a> {
    /// For example `system:serviceaccount:kube-system:aws-node`.
    #[serde(borrow, default)]
    pub username: Text<'a>,
}

/// The fields of `DeleteOptions` that a decision needs; the options of other operations have
/// none of them.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Seconds until the object is to be gone; `None` leaves it to the object.
    pub grace_period_seconds: Option<i64>,
}

/// A type, as a review names it.
#[derive(Debug, Default, Deserialize)]
pub struct Kind<'a> {
    /// Empty for the core group.
    #[serde(borrow, default)]
    pub group: Text<'a>,
    /// For example `v1`.
    #[serde(borrow, default)]
    pub version: Text<'a>,
    /// For example `Pod`.
    #[serde(borrow, default)]
    pub kind: Text<'a>,
}

/// A resource, as a review names it.
#[derive(Debug, Default, Deserialize)]
pub struct Resource<'a> {
    /// Empty for the core group.
    #[serde(borrow, default)]
    pub group: Text<'a>,
    /// For example `v1`.
    #[serde(borrow, default)]
    pub version: Text<'a>,
    /// For example `pods`.
    #[serde(borrow, default)]
    pub resource: Text<'a>,
}

impl<O> Request<'_, O> {
    /// The name of the object; empty while the API server has yet to make one.
    pub fn name(&self) -> &str {
        self.name.as_ref().map_or("", Text::as_str)
    }

    /// The namespace of the object; empty for objects that have none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_ref().map_or("", Text::as_str)
    }

    /// The part of the resource that the caller addressed; empty for all of it.
    pub fn sub_resource(&self) -> &str {
        self.sub_resource.as_ref().map_or("", Text::as_str)
    }
}

/// Why a body could not be read.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// It is no review, so that there is nothing to answer in.
    #[error("the body is not an AdmissionReview of admission.k8s.io/v1: {0}")]
    Review(String),
    /// The review is one, but its object is not what the path takes.
    #[error("the object of the AdmissionReview can't be read: {problem}")]
    Object {
        /// The review's uid, to answer with.
        uid: String,
        /// What is wrong, with the place in the body.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct Review<'a, O> {
    #[serde(borrow)]
    api_version: Text<'a>,
    #[serde(borrow)]
    kind: Text<'a>,
    #[serde(borrow, default = "Option::default")]
    request: Option<Request<'a, O>>,
}

/// Reads the request of a review.
pub fn read<'a, O: Deserialize<'a>>(body: &'a [u8]) -> Result<Request<'a, O>, Unreadable> {
    match read_review(body) {
        Err(Unreadable::Review(problem)) => {
            // Without looking at the object: is it only the object that is wrong?
            let uid = read_review::<IgnoredAny>(body)?.uid.as_str().to_owned();
            Err(Unreadable::Object { uid, problem })
        }
        read => read,
    }
}

fn read_review<'a, O: Deserialize<'a>>(body: &'a [u8]) -> Result<Request<'a, O>, Unreadable> {
    let review: Review<'a, O> =
        serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
    if review.api_version.as_str() != API_VERSION || review.kind.as_str() != KIND {
        return Err(unreadable(format!(
            "it is {:?} of {:?}",
            review.kind.as_str(),
            review.api_version.as_str()
        )));
    }
    let request = review.request;
    let request = request.ok_or_else(|| unreadable("it has no request".to_owned()))?;
    if request.uid.as_str().len() > UID_CHARACTERS {
        let problem = format!("its uid is longer than {UID_CHARACTERS} characters");
        return Err(unreadable(problem));
    }
    Ok(request)
}

/// What the beginning of a review tells of its request.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Names the call.
    pub uid: Option<String>,
    /// The type of the object, for example `Pod`.
    pub kind: Option<String>,
    /// The name of the object.
    pub name: Option<String>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: Option<String>,
}

/// Reads a review of which there is only the beginning, as far as that goes. The API server
/// writes these fields before the objects (`AdmissionRequest` in k8s.io/api).
pub fn read_beginning(bytes: &[u8]) -> Beginning {
    let mut beginning = Beginning::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // It ends in the middle of something, which is no news.
    let _ = Level::Review(&mut beginning).deserialize(&mut deserializer);
    beginning.uid = beginning.uid.filter(|uid| uid.len() <= UID_CHARACTERS);
    beginning
}

/// A part of a review that is looked into. What is found is kept whatever comes after it.
enum Level<'b> {
    Review(&'b mut Beginning),
    Request(&'b mut Beginning),
    Kind(&'b mut Beginning),
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match (&mut self, key.as_str()) {
                (Self::Review(found), "request") => map.next_value_seed(Level::Request(found))?,
                (Self::Request(found), "kind") => map.next_value_seed(Level::Kind(found))?,
                (Self::Kind(found), "kind") => found.kind = Some(map.next_value()?),
                (Self::Request(found), "uid") => found.uid = Some(map.next_value()?),
                (Self::Request(found), "name") => found.name = Some(map.next_value()?),
                (Self::Request(found), "operation") => found.operation = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

fn unreadable(problem: String) -> Unreadable {
    Unreadable::Review(at_most(PROBLEM_CHARACTERS, problem))
}

/// The text, cut off where it has more characters.
fn at_most(characters: usize, mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What the API server is told.
#[derive(Debug)]
pub struct Answer {
    verdict: Verdict,
    warnings: Vec<String>,
}

#[derive(Debug)]
enum Verdict {
    Allowed(Option<Cow<'static, str>>),
    Denied(Refusal),
}

/// What an answer counts as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Let in as it was.
    Unchanged,
    /// Let in with a patch.
    Patched,
    /// Refused for what it is.
    Denied,
    /// Refused because it could not be read, or not be decided in time.
    Failed,
}

/// Why the object is not let in.
#[derive(Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The HTTP status that the caller sees.
    pub code: StatusCode,
    /// The machine-readable reason that `kubectl` prints in brackets.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// The fields at fault, where the object is refused for these.
    pub details: Option<Box<Details>>,
}

/// Which fields of which object are at fault (`StatusDetails` in apimachinery). `kubectl`
/// prints these instead of the message.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub struct Details {
    name: String,
    group: String,
    kind: String,
    causes: Vec<Cause>,
}

#[derive(Debug, Eq, PartialEq, Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Refusal {
    /// The object is not wanted as it is.
    pub fn forbidden(message: String) -> Self {
        Self {
            code: StatusCode::FORBIDDEN,
            reason: "Forbidden",
            message,
            details: None,
        }
    }

    /// The call makes no sense on this path.
    pub fn bad_request(message: String) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            reason: "BadRequest",
            message,
            details: None,
        }
    }

    /// It can't be decided just now; controllers try again by themselves.
    pub fn unavailable(message: String) -> Self {
        let code = StatusCode::SERVICE_UNAVAILABLE;
        Self {
            code,
            reason: "ServiceUnavailable",
            message,
            details: None,
        }
    }

    /// The object is too long to be looked at.
    pub fn too_long(message: String) -> Self {
        Self {
            code: StatusCode::PAYLOAD_TOO_LARGE,
            reason: "RequestEntityTooLarge",
            message,
            details: None,
        }
    }

    /// The object has mistakes in these fields. It reads as what the API server says of its
    /// own objects (`NewInvalid` in apimachinery).
    pub fn invalid(kind: &Kind<'_>, name: &str, errors: &[FieldError]) -> Self {
        let (group, kind) = (kind.group.as_str(), kind.kind.as_str());
        let qualified = match group {
            "" => kind.to_owned(),
            group => format!("{kind}.{group}"),
        };
        let errors_in_line = field_error::aggregate(errors);
        let causes = errors.iter().map(|error| Cause {
            reason: error.kind.reason(),
            message: error.body(),
            field: error.path.clone(),
        });
        Self {
            code: StatusCode::UNPROCESSABLE_ENTITY,
            reason: "Invalid",
            message: format!("{qualified} {name:?} is invalid: {errors_in_line}"),
            details: Some(Box::new(Details {
                name: name.to_owned(),
                group: group.to_owned(),
                kind: kind.to_owned(),
                causes: causes.collect(),
            })),
        }
    }
}

impl Answer {
    /// Lets the object in with the changes of `patch`, a JSON patch in base64, if there are
    /// any.
    pub fn allowed(patch: Option<Cow<'static, str>>, warnings: Vec<String>) -> Self {
        Self {
            verdict: Verdict::Allowed(patch),
            warnings,
        }
    }

    /// Refuses the object.
    pub fn denied(mut refusal: Refusal, warnings: Vec<String>) -> Self {
        refusal.message = at_most(MESSAGE_CHARACTERS, refusal.message);
        Self {
            verdict: Verdict::Denied(refusal),
            warnings,
        }
    }

    /// What it counts as.
    pub fn outcome(&self) -> Outcome {
        match &self.verdict {
            Verdict::Allowed(None) => Outcome::Unchanged,
            Verdict::Allowed(Some(_)) => Outcome::Patched,
            Verdict::Denied(refusal) => match refusal.code {
                StatusCode::BAD_REQUEST | StatusCode::SERVICE_UNAVAILABLE => Outcome::Failed,
                _ => Outcome::Denied,
            },
        }
    }

    /// The answer as the response to the review with this uid.
    pub fn for_uid(&self, uid: &str) -> Response {
        let mut response = ReviewResponse {
            uid,
            allowed: matches!(self.verdict, Verdict::Allowed(_)),
            status: None,
            patch: None,
            patch_type: None,
            warnings: &self.warnings,
        };
        match &self.verdict {
            Verdict::Allowed(patch) => {
                response.patch = patch.as_deref();
                response.patch_type = patch.is_some().then_some("JSONPatch");
            }
            Verdict::Denied(refusal) => {
                response.status = Some(Status {
                    code: refusal.code.as_u16(),
                    reason: refusal.reason,
                    message: &refusal.message,
                    details: refusal.details.as_deref(),
                });
            }
        }
        let review = ReviewAnswer {
            api_version: API_VERSION,
            kind: KIND,
            response,
        };
        let body = serde_json::to_vec(&review).expect("an answer is made of strings");
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], Bytes::from(body)).into_response()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReviewAnswer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: ReviewResponse<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReviewResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Pod;

    #[test]
    fn beginning_tells_what_it_holds_wherever_it_ends() {
        let whole = r#"{"kind":"AdmissionReview","request":{"uid":"1","kind":{"group":"",
            "kind":"Pod"},"name":"web","operation":"UPDATE","object":{"uid":"2","kind":"x"}}}"#;
        let mut found = 0;
        for end in 0..=whole.len() {
            let beginning = read_beginning(&whole.as_bytes()[..end]);
            let fields = [
                (beginning.uid, "1"),
                (beginning.kind, "Pod"),
                (beginning.name, "web"),
                (beginning.operation, "UPDATE"),
            ];
            let before = found;
            found = fields.iter().filter(|(field, _)| field.is_some()).count();
            assert!(found >= before);
            for (field, expected) in fields {
                assert!(field.is_none_or(|field| field == expected));
            }
        }
        assert_eq!(found, 4);
        assert!(read_beginning(b"[").uid.is_none());
        let long = format!(r#"{{"request": {{"uid": "{}""#, "1".repeat(1_000));
        assert!(read_beginning(long.as_bytes()).uid.is_none());
    }

    #[test]
    fn body_that_is_no_review_is_told_from_one_with_a_strange_object() {
        let review = |rest: &str| {
            format!(r#"{{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", {rest}}}"#)
        };
        for (body, object_only) in [
            (String::new(), false),
            ("[]".to_owned(), false),
            (r#"{"kind": "AdmissionReview"}"#.to_owned(), false),
            (review(r#""request": {"uid": "1", "object": {}"#), false),
            (review(r#""request": null"#), false),
            (review(r#""request": {"object": {}}"#), false),
            (
                review(r#""request": {"uid": "1", "object": {"spec": 7}}"#),
                true,
            ),
            (
                review(r#""request": {"uid": "1", "object": {"spec": {"hostNetwork": "no"}}}"#),
                true,
            ),
            (
                r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview",
                    "request": {"uid": "1", "object": {}}}"#
                    .to_owned(),
                false,
            ),
        ] {
            match read::<Pod>(body.as_bytes()) {
                Err(Unreadable::Object { uid, .. }) => {
                    assert!(object_only, "{body}");
                    assert_eq!(uid, "1");
                }
                Err(Unreadable::Review(_)) => assert!(!object_only, "{body}"),
                Ok(request) => panic!("{body} was read as {request:?}"),
            }
        }
    }

    #[test]
    fn long_texts_of_the_caller_make_no_long_answer() {
        let review = |uid: &str, kind: &str| {
            format!(
                r#"{{"apiVersion": "admission.k8s.io/v1", "kind": "{kind}",
                    "request": {{"uid": "{uid}", "object": {{"spec": "{kind}"}}}}}}"#
            )
        };
        let long = "é".repeat(100_000);
        for body in [
            review("1", &long),
            review(&long, KIND),
            review("1", KIND).replace(r#"spec": ""#, &format!(r#"spec": "{long}"#)),
        ] {
            let problem = read::<Pod>(body.as_bytes()).unwrap_err().to_string();
            assert!(problem.chars().count() < 1_200, "{problem}");
        }
        let answer = Answer::denied(Refusal::forbidden(long), Vec::new());
        let Verdict::Denied(refusal) = answer.verdict else {
            panic!("{answer:?}");
        };
        assert_eq!(refusal.message.chars().count(), MESSAGE_CHARACTERS + 1);
        assert!(refusal.message.ends_with('…'));
    }

    #[test]
    fn request_without_an_object_is_read() {
        let body = br#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "1", "operation": "DELETE", "object": null}}"#;
        let request = read::<Pod>(body).unwrap();

        assert!(request.object.is_none());
        assert_eq!(request.namespace(), "");
    }
}
