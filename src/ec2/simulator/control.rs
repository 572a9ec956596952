//! The simulator's own API, in JSON, under `/simulator/`.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::Fault;
use super::settings::Settings;
use super::{Refused, Simulator};

type Answer = Response<Body>;

pub(super) async fn overview() -> Answer {
    json_answer(&json!({
        "/simulator/settings": "GET, PUT (all of them), PATCH (a JSON merge patch)",
        "/simulator/faults": "GET, POST (one more), DELETE (all)",
        "/simulator/calls": "GET (counts), DELETE (start again)",
        "/simulator/calls/log": "GET (the last 10,000 calls)",
        "/simulator/state": "GET, PUT (all of the cloud)",
    }))
}

pub(super) async fn get_settings(State(simulator): State<Simulator>) -> Answer {
    json_answer(&simulator.settings())
}

pub(super) async fn put_settings(State(simulator): State<Simulator>, body: Bytes) -> Answer {
    let set = read::<Settings>(&body).and_then(|settings| simulator.set(settings));
    answer(set.map(|()| simulator.settings()))
}

pub(super) async fn patch_settings(State(simulator): State<Simulator>, body: Bytes) -> Answer {
    let patch = || {
        let patch: Value = read(&body)?;
        let mut settings = serde_json::to_value(simulator.settings())?;
        json_patch::merge(&mut settings, &patch);
        simulator.set(serde_json::from_value(settings)?)
    };
    answer(patch().map(|()| simulator.settings()))
}

pub(super) async fn get_faults(State(simulator): State<Simulator>) -> Answer {
    json_answer(&simulator.faults())
}

pub(super) async fn post_fault(State(simulator): State<Simulator>, body: Bytes) -> Answer {
    let added = read::<Fault>(&body).and_then(|fault| simulator.add_fault(fault));
    answer(added.map(|()| simulator.faults()))
}

pub(super) async fn delete_faults(State(simulator): State<Simulator>) -> Answer {
    simulator.clear_faults();
    json_answer(&simulator.faults())
}

pub(super) async fn get_counts(State(simulator): State<Simulator>) -> Answer {
    json_answer(&simulator.call_counts())
}

pub(super) async fn get_log(State(simulator): State<Simulator>) -> Answer {
    json_answer(&simulator.calls())
}

pub(super) async fn delete_calls(State(simulator): State<Simulator>) -> Answer {
    simulator.reset_calls();
    json_answer(&simulator.call_counts())
}

pub(super) async fn get_state(State(simulator): State<Simulator>) -> Answer {
    match tokio::task::spawn_blocking(move || simulator.save()).await {
        Ok(Ok(json)) => with_status(StatusCode::OK, json),
        Ok(Err(error)) => refusal(&error),
        Err(error) => refusal(&Refused::Nonsense(error.to_string())),
    }
}

pub(super) async fn put_state(State(simulator): State<Simulator>, body: Bytes) -> Answer {
    // A big state takes a while to read; other tasks go on meanwhile.
    let loaded = tokio::task::spawn_blocking(move || simulator.load(&body)).await;
    let loaded = loaded.map_err(|error| Refused::Nonsense(error.to_string()));
    answer(loaded.flatten().map(|()| json!({})))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    Ok(serde_json::from_slice(body)?)
}

fn answer<T: Serialize>(result: Result<T, Refused>) -> Answer {
    match result {
        Ok(value) => json_answer(&value),
        Err(error) => refusal(&error),
    }
}

fn json_answer(value: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(mut json) => {
            json.push(b'\n');
            with_status(StatusCode::OK, json)
        }
        Err(error) => refusal(&error.into()),
    }
}

fn refusal(error: &Refused) -> Answer {
    let source = std::error::Error::source(error);
    let reason = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    let json = json!({ "error": reason }).to_string();
    with_status(StatusCode::BAD_REQUEST, json.into_bytes())
}

fn with_status(status: StatusCode, json: Vec<u8>) -> Answer {
    let mut answer = Response::new(Body::from(json));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    answer
}
