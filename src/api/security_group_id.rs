//! The id of an EC2 security group.

use std::fmt;

/// The id of an EC2 security group, as a policy's author wrote it.
///
/// It may be malformed: a policy with a wrong id still selects its pods, so that they wait
/// with a reason instead of starting without their groups.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SecurityGroupId(Box<str>);

impl SecurityGroupId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether EC2 could have given out this id: `sg-` and 8 or 17 lower-case hexadecimal
    /// digits (EC2 User Guide, "Resource IDs").
    pub fn is_well_formed(&self) -> bool {
        self.0.strip_prefix("sg-").is_some_and(|digits| {
            matches!(digits.len(), 8 | 17)
                && digits
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
}

impl From<&str> for SecurityGroupId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for SecurityGroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_sg_and_8_or_17_hexadecimal_digits() {
        for (id, well_formed) in [
            ("sg-0123abcd", true),
            ("sg-0123456789abcdef0", true),
            ("sg-", false),
            ("sg-0123abc", false),
            ("sg-0123abcde", false),
            ("sg-0123ABCD", false),
            ("sg-0123abcg", false),
            ("SG-0123abcd", false),
            ("eni-0123abcd", false),
            ("", false),
        ] {
            assert_eq!(
                SecurityGroupId::from(id).is_well_formed(),
                well_formed,
                "{id}"
            );
        }
    }
}
