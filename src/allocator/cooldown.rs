//! How long a branch interface rests after its pod is gone.
//!
//! kube-proxy on the other nodes may still send to the pod's address for a while, and what
//! it sends must not reach the next pod.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::api::names::{CNI_CONFIG_MAP, CNI_NAMESPACE, COOLDOWN_KEY};

/// What is used when nobody says otherwise.
pub const DEFAULT: Duration = Duration::from_secs(DEFAULT_SECONDS);
/// What is used at least.
pub const MINIMUM: Duration = Duration::from_secs(MINIMUM_SECONDS);

const DEFAULT_SECONDS: u64 = 60;
const MINIMUM_SECONDS: u64 = 30;

/// The time that a branch interface rests before it is used again or deleted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cooldown {
    /// At least [`MINIMUM`].
    pub period: Duration,
    /// Why the period is not the one that was asked for; to be told as a warning.
    pub refused: Option<Refused>,
}

/// What was asked for and is not used.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum Refused {
    /// Less than [`MINIMUM`].
    #[error(
        "{COOLDOWN_KEY} in ConfigMap {CNI_NAMESPACE}/{CNI_CONFIG_MAP} is {given}, which is \
         less than {MINIMUM_SECONDS} s; {MINIMUM_SECONDS} s is used, write {MINIMUM_SECONDS} \
         or more"
    )]
    TooShort {
        /// Seconds.
        given: i32,
    },
    /// Not a whole number, or one of more than 68 years.
    #[error(
        "{COOLDOWN_KEY} in ConfigMap {CNI_NAMESPACE}/{CNI_CONFIG_MAP} is {given:?}, which is \
         not a number of seconds; the default of {DEFAULT_SECONDS} s is used, write a whole \
         number such as \"{DEFAULT_SECONDS}\""
    )]
    NotSeconds {
        /// As it stands in the ConfigMap.
        given: String,
    },
}

impl Refused {
    /// What was asked for, as it stands in the ConfigMap.
    pub fn given(&self) -> String {
        match self {
            Self::TooShort { given } => given.to_string(),
            Self::NotSeconds { given } => given.clone(),
        }
    }
}

impl Default for Cooldown {
    fn default() -> Self {
        Self {
            period: DEFAULT,
            refused: None,
        }
    }
}

impl Cooldown {
    /// Reads the data of ConfigMap [`CNI_CONFIG_MAP`]; `None` when there is no such
    /// ConfigMap or it is empty.
    pub fn from_config_map(data: Option<&BTreeMap<String, String>>) -> Self {
        let Some(given) = data.and_then(|data| data.get(COOLDOWN_KEY)) else {
            return Self::default();
        };
        // A block scalar in YAML ends with a line feed.
        match given.trim().parse::<i32>() {
            Ok(seconds) => match u64::try_from(seconds) {
                Ok(seconds @ MINIMUM_SECONDS..) => Self {
                    period: Duration::from_secs(seconds),
                    refused: None,
                },
                _ => Self {
                    period: MINIMUM,
                    refused: Some(Refused::TooShort { given: seconds }),
                },
            },
            Err(_) => Self {
                period: DEFAULT,
                refused: Some(Refused::NotSeconds {
                    given: given.clone(),
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Cooldown {
        let data = BTreeMap::from([(COOLDOWN_KEY.to_owned(), value.to_owned())]);
        Cooldown::from_config_map(Some(&data))
    }

    #[test]
    fn nothing_said_is_the_default() {
        let other_key = BTreeMap::from([("enable-windows-ipam".to_owned(), "true".to_owned())]);

        for data in [None, Some(&BTreeMap::new()), Some(&other_key)] {
            let cooldown = Cooldown::from_config_map(data);

            assert_eq!(cooldown.period.as_secs(), 60, "{data:?}");
            assert_eq!(cooldown.refused, None, "{data:?}");
        }
    }

    #[test]
    fn a_number_of_seconds_is_used_from_30_on() {
        for (value, seconds) in [
            ("30", 30),
            ("31", 31),
            ("60", 60),
            ("90\n", 90),
            (" 120 ", 120),
            ("0045", 45),
            ("2147483647", 2_147_483_647),
        ] {
            let cooldown = of(value);

            assert_eq!(cooldown.period.as_secs(), seconds, "{value:?}");
            assert_eq!(cooldown.refused, None, "{value:?}");
        }
    }

    #[test]
    fn less_than_30_becomes_30_and_is_told() {
        for given in [29, 1, 0, -1, -60, i32::MIN] {
            let cooldown = of(&given.to_string());

            assert_eq!(cooldown.period.as_secs(), 30, "{given}");
            assert_eq!(cooldown.refused, Some(Refused::TooShort { given }));
        }
    }

    #[test]
    fn what_is_no_number_of_seconds_becomes_the_default_and_is_told() {
        for value in [
            "",
            " ",
            "soon",
            "60s",
            "1m",
            "60.0",
            "6e1",
            "0x3c",
            "6 0",
            "2147483648",
            "99999999999999999999",
        ] {
            let cooldown = of(value);

            assert_eq!(cooldown.period.as_secs(), 60, "{value:?}");
            let given = value.to_owned();
            assert_eq!(cooldown.refused, Some(Refused::NotSeconds { given }));
        }
    }

    #[test]
    fn warnings_name_the_place_the_reason_and_the_way_out() {
        assert_eq!(
            of("10").refused.unwrap().to_string(),
            "branch-eni-cooldown in ConfigMap kube-system/amazon-vpc-cni is 10, which is less \
             than 30 s; 30 s is used, write 30 or more"
        );
        assert_eq!(
            of("1m").refused.unwrap().to_string(),
            "branch-eni-cooldown in ConfigMap kube-system/amazon-vpc-cni is \"1m\", which is \
             not a number of seconds; the default of 60 s is used, write a whole number such \
             as \"60\""
        );
    }
}
