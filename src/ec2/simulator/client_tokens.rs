//! Idempotency by `ClientToken`: the same call with the same token has one effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::errors::Ec2Error;
use super::ids::{InterfaceId, ReservationId};
use super::interfaces::Interface;
use super::timestamp::Timestamp;
use super::trunks::Association;

/// How long a token is remembered after its call.
const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1_000;

/// The tokens that calls came with, and what came of them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct ClientTokens {
    /// By action, then by token.
    calls: BTreeMap<String, BTreeMap<String, Call>>,
    forgotten_until: Timestamp,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Call {
    at: Timestamp,
    parameters: String,
    made: Made,
}

/// What a call with a token made.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Made {
    Interface(InterfaceId),
    /// The interface is gone, but a retry still gets the same answer.
    DeletedInterface(Box<Interface>),
    Reservation(ReservationId),
    Association(Association),
    Disassociation,
}

impl ClientTokens {
    /// What an earlier call with this token made; `None` when there was none.
    pub(super) fn earlier(
        &self,
        action: &str,
        token: &str,
        parameters: &str,
    ) -> Result<Option<&Made>, Ec2Error> {
        let call = self.calls.get(action).and_then(|calls| calls.get(token));
        match call {
            None => Ok(None),
            Some(call) if call.parameters == parameters => Ok(Some(&call.made)),
            Some(_) => Err(Ec2Error::other_parameters()),
        }
    }

    pub(super) fn remember(
        &mut self,
        action: &str,
        token: &str,
        parameters: &str,
        made: Made,
        at: Timestamp,
    ) {
        let call = Call {
            at,
            parameters: parameters.to_owned(),
            made,
        };
        let calls = self.calls.entry(action.to_owned()).or_default();
        calls.insert(token.to_owned(), call);
    }

    /// Keeps what a retry would be answered after the interface is gone.
    pub(super) fn interface_deleted(&mut self, interface: &Interface) {
        let Some(token) = &interface.client_token else {
            return;
        };
        let calls = self.calls.get_mut("CreateNetworkInterface");
        if let Some(call) = calls.and_then(|calls| calls.get_mut(token)) {
            call.made = Made::DeletedInterface(Box::new(interface.clone()));
        }
    }

    pub(super) fn forget_old(&mut self, now: Timestamp) {
        // Looking at all of them is done once a minute at most.
        if now < self.forgotten_until.plus_ms(60_000) {
            return;
        }
        self.forgotten_until = now;
        for calls in self.calls.values_mut() {
            calls.retain(|_, call| now <= call.at.plus_ms(REMEMBERED_MS));
        }
    }
}
