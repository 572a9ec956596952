//! Ids of resources, as EC2 writes them, and where new ones come from.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::errors::Ec2Error;

/// An id with the prefix of its kind.
pub(super) trait ResourceId: Sized {
    const PREFIX: &'static str;
    /// The start of the code of EC2's error about a malformed id.
    const MALFORMED: &'static str;

    fn from_text(text: &str) -> Self;

    /// Reads an id that a caller sent.
    fn parse(text: &str) -> Result<Self, Ec2Error> {
        let digits = text.strip_prefix(Self::PREFIX).unwrap_or_default();
        let well_formed = matches!(digits.len(), 1..=17)
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if well_formed {
            return Ok(Self::from_text(text));
        }
        let code = format!("{}.Malformed", Self::MALFORMED);
        let message = format!("Invalid id: \"{text}\" (expecting \"{}...\")", Self::PREFIX);
        Err(Ec2Error::new(code, message))
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident: $prefix:literal, $malformed:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl ResourceId for $name {
            const PREFIX: &'static str = $prefix;
            const MALFORMED: &'static str = $malformed;

            fn from_text(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// A VPC.
    VpcId: "vpc-", "InvalidVpcId";
    /// A subnet.
    SubnetId: "subnet-", "InvalidSubnetId";
    /// A route table.
    RouteTableId: "rtb-", "InvalidRouteTableId";
    /// A CIDR block of a VPC or a subnet.
    CidrAssociationId: "vpc-cidr-assoc-", "InvalidVpcCidrBlockAssociationID";
    /// A security group.
    GroupId: "sg-", "InvalidGroupId";
    /// A rule of a security group.
    RuleId: "sgr-", "InvalidSecurityGroupRuleId";
    /// An instance.
    InstanceId: "i-", "InvalidInstanceID";
    /// What one RunInstances made.
    ReservationId: "r-", "InvalidReservationID";
    /// A network interface.
    InterfaceId: "eni-", "InvalidNetworkInterfaceId";
    /// An interface's place on an instance.
    AttachmentId: "eni-attach-", "InvalidAttachmentID";
    /// A branch's place on a trunk.
    AssociationId: "trunk-assoc-", "InvalidAssociationID";
    /// What another account may do with an interface.
    PermissionId: "eni-perm-", "InvalidPermissionID";
}

impl VpcId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidVpcID.NotFound", "vpc ID", self)
    }
}

impl SubnetId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidSubnetID.NotFound", "subnet ID", self)
    }
}

impl RouteTableId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidRouteTableID.NotFound", "routeTable ID", self)
    }
}

impl RuleId {
    pub(super) fn not_found(&self) -> Ec2Error {
        let code = "InvalidSecurityGroupRuleId.NotFound";
        not_found(code, "security group rule ID", self)
    }
}

impl InstanceId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidInstanceID.NotFound", "instance ID", self)
    }
}

impl InterfaceId {
    pub(super) fn not_found(&self) -> Ec2Error {
        let code = "InvalidNetworkInterfaceID.NotFound";
        not_found(code, "networkInterface ID", self)
    }
}

impl AttachmentId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidAttachmentID.NotFound", "attachment ID", self)
    }
}

impl AssociationId {
    pub(super) fn not_found(&self) -> Ec2Error {
        not_found("InvalidAssociationID.NotFound", "association ID", self)
    }
}

fn not_found(code: &'static str, noun: &str, id: &impl fmt::Display) -> Ec2Error {
    Ec2Error::new(code, format!("The {noun} '{id}' does not exist"))
}

/// Gives out numbers that look random and never repeat; the same seed gives the same ones.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct IdSource {
    state: u64,
}

impl IdSource {
    pub(super) fn new(seed: u64) -> Self {
        // Far apart, so that simulators with neighbouring seeds share no ids.
        Self { state: seed << 40 }
    }

    pub(super) fn id<T: ResourceId>(&mut self) -> T {
        // EC2's ids have 17 digits and begin with 0 in most regions.
        T::from_text(&format!("{}0{:016x}", T::PREFIX, self.number()))
    }

    /// Counts, then mixes with a bijection (the finaliser of SplitMix64), so that no number
    /// comes twice.
    pub(super) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        let mut mixed = self.state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_look_like_ec2s_and_follow_from_the_seed() {
        let mut source = IdSource::new(7);
        let first: InterfaceId = source.id();

        assert_eq!(first.as_str().len(), "eni-".len() + 17);
        assert_eq!(InterfaceId::parse(first.as_str()), Ok(first.clone()));
        assert_ne!(first, source.id());
        assert_eq!(first, IdSource::new(7).id());
        assert_ne!(first, IdSource::new(8).id());
    }

    #[test]
    fn malformed_ids_are_told_apart_from_missing_ones() {
        for text in [
            "",
            "eni-",
            "sg-0123",
            "eni-xyz",
            "eni-0123456789abcdef01",
            "eni-0A",
        ] {
            let error = InterfaceId::parse(text).unwrap_err();
            assert_eq!(error.code, "InvalidNetworkInterfaceId.Malformed", "{text}");
        }
        assert!(InterfaceId::parse("eni-1a2b3c4d").is_ok());
    }
}
