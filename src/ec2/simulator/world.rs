//! The simulator without a socket: a call comes in as a form, and what the caller shall meet
//! comes out. No clock: every instant is an argument.

use super::actions::{self, Call};
use super::call_log::{CallLog, LoggedCall};
use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::faults::{FaultOutcome, Faults, Moment};
use super::query::Query;
use super::settings::Settings;
use super::throttling::Throttling;
use super::timestamp::Timestamp;
use super::xml::{self, Xml};

/// The cloud, and what stands between it and its callers.
#[derive(Debug)]
pub(super) struct World {
    pub(super) cloud: Cloud,
    pub(super) settings: Settings,
    pub(super) faults: Faults,
    pub(super) throttling: Throttling,
    pub(super) calls: CallLog,
    requests: u64,
}

/// What a caller meets.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) delay_ms: u64,
    pub(super) kind: ReplyKind,
}

#[derive(Debug)]
pub(super) enum ReplyKind {
    Answer {
        status: u16,
        request_id: String,
        body: Vec<u8>,
    },
    Drop,
    Hang,
}

/// How a call went, before it is put into words.
enum Outcome {
    Done(Xml),
    Failed(Ec2Error),
    Dropped,
    Hung,
}

impl World {
    pub(super) fn new(cloud: Cloud, settings: Settings) -> Self {
        let mut world = Self {
            cloud,
            settings: Settings::default(),
            faults: Faults::default(),
            throttling: Throttling::default(),
            calls: CallLog::default(),
            requests: 0,
        };
        world.set(settings);
        world
    }

    /// Buckets are full again after a change.
    pub(super) fn set(&mut self, settings: Settings) {
        self.cloud.behaviour = settings.cloud.clone();
        if settings.throttling != self.settings.throttling {
            self.throttling.reset();
        }
        self.settings = settings;
    }

    pub(super) fn replace_cloud(&mut self, cloud: Cloud) {
        self.cloud = cloud;
        self.cloud.behaviour = self.settings.cloud.clone();
    }

    /// Carries out a call that was signed with this access key.
    pub(super) fn call(&mut self, form: &[u8], access_key_id: &str, now: Timestamp) -> Reply {
        self.requests += 1;
        let request_id = request_id(self.requests);
        let parsed = Query::parse(form);
        let query = parsed.as_ref().cloned().unwrap_or_default();
        let action = query.action().unwrap_or_default();
        let (outcome, injected) = match parsed {
            Err(error) => (Outcome::Failed(error), false),
            Ok(_) => self.outcome(&query, action, now),
        };
        let outcome_name = match &outcome {
            Outcome::Done(_) => "ok".to_owned(),
            Outcome::Failed(error) => error.code.clone().into_owned(),
            Outcome::Dropped => "dropped".to_owned(),
            Outcome::Hung => "hung".to_owned(),
        };
        self.calls.add(LoggedCall {
            number: 0,
            at: now,
            action: action.to_owned(),
            outcome: outcome_name,
            injected,
            request_id: request_id.clone(),
            access_key_id: access_key_id.to_owned(),
            parameters: query.asked(),
        });
        let kind = match outcome {
            Outcome::Done(inside) => ReplyKind::Answer {
                status: 200,
                body: xml::answer(action, &request_id, inside),
                request_id,
            },
            Outcome::Failed(error) => ReplyKind::Answer {
                status: error.http_status(),
                body: xml::error(&error, &request_id),
                request_id,
            },
            Outcome::Dropped => ReplyKind::Drop,
            Outcome::Hung => ReplyKind::Hang,
        };
        Reply {
            delay_ms: self.settings.latency_ms(action),
            kind,
        }
    }

    /// What comes of a call, and whether a fault made that.
    fn outcome(&mut self, query: &Query, name: &str, now: Timestamp) -> (Outcome, bool) {
        if name.is_empty() {
            let message = "The request must contain the parameter Action";
            let error = Ec2Error::new("MissingAction", message);
            return (Outcome::Failed(error), false);
        }
        let Some(action) = actions::find(name) else {
            return (Outcome::Failed(Ec2Error::invalid_action(name)), false);
        };
        if let Some(bucket) = self.settings.bucket(name)
            && !self.throttling.admit(name, bucket, now)
        {
            return (Outcome::Failed(Ec2Error::throttled()), false);
        }
        if !self.settings.allows(name) {
            let (account, region) = (&self.cloud.account, &self.cloud.region);
            let error = Ec2Error::unauthorized(name, account, region);
            return (Outcome::Failed(error), false);
        }
        match self.faults.meet(name) {
            None => (self.carry_out(action, query, now), false),
            Some((moment, fault)) => {
                if moment == Moment::After {
                    // The caller must not learn how it went.
                    self.carry_out(action, query, now);
                }
                (fault.into(), true)
            }
        }
    }

    fn carry_out(&mut self, action: &actions::Action, query: &Query, now: Timestamp) -> Outcome {
        self.cloud.settle(now);
        let done = query.check_names(action.parameters).and_then(|()| {
            if query.is_dry_run()? {
                return Err(Ec2Error::dry_run());
            }
            (action.run)(&mut Call {
                cloud: &mut self.cloud,
                query,
                now,
            })
        });
        match done {
            Ok(xml) => Outcome::Done(xml),
            Err(error) => Outcome::Failed(error),
        }
    }
}

impl From<FaultOutcome> for Outcome {
    fn from(fault: FaultOutcome) -> Self {
        match fault {
            FaultOutcome::Drop => Self::Dropped,
            FaultOutcome::Hang => Self::Hung,
            FaultOutcome::Error { code, message } => {
                let message = message.unwrap_or_else(|| Ec2Error::usual_message(&code).to_owned());
                Self::Failed(Ec2Error::new(code, message))
            }
        }
    }
}

/// In the shape of a UUID.
fn request_id(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}
