//! How many security groups an interface can have.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The most security groups that EC2 takes for one interface: 5, up to 16 where the account's
/// quota was raised (Amazon VPC User Guide, "Amazon VPC quotas").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GroupsPerInterface(u8);

/// The number is not one that EC2 grants.
#[derive(Debug, Error, Eq, PartialEq)]
#[error(
    "give a number from 1 to {}; EC2 raises no quota beyond that",
    GroupsPerInterface::MOST
)]
pub struct NoSuchQuota;

impl GroupsPerInterface {
    const MOST: u8 = 16;

    /// The number.
    pub fn get(self) -> usize {
        self.0.into()
    }
}

impl Default for GroupsPerInterface {
    fn default() -> Self {
        Self(5)
    }
}

impl FromStr for GroupsPerInterface {
    type Err = NoSuchQuota;

    fn from_str(text: &str) -> Result<Self, NoSuchQuota> {
        let number = text.parse().map_err(|_| NoSuchQuota)?;
        match number {
            1..=Self::MOST => Ok(Self(number)),
            _ => Err(NoSuchQuota),
        }
    }
}

impl fmt::Display for GroupsPerInterface {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_5_or_what_ec2_raises_it_to() {
        assert_eq!(GroupsPerInterface::default().get(), 5);
        for (text, number) in [
            ("1", Some(1)),
            ("16", Some(16)),
            ("0", None),
            ("17", None),
            ("-1", None),
            ("five", None),
            ("", None),
        ] {
            let quota = text.parse::<GroupsPerInterface>().ok();
            assert_eq!(quota.map(GroupsPerInterface::get), number, "{text:?}");
        }
    }
}
