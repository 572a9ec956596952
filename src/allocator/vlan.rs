//! VLAN ids, which tie branches to their trunk.

use std::collections::BTreeSet;
use std::fmt;

/// A VLAN id on a trunk.
///
/// EC2 takes 1 to 4094; 1 to 120 are used, as the VPC CNI plugin and EKS's own controller
/// do, because no instance type has more branches.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VlanId(u16);

impl VlanId {
    const FIRST: u16 = 1;
    const LAST: u16 = 120;

    /// The lowest id that is not in use; `None` if all are.
    pub fn lowest_free(used: &BTreeSet<VlanId>) -> Option<Self> {
        (Self::FIRST..=Self::LAST)
            .map(Self)
            .find(|id| !used.contains(id))
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl From<u16> for VlanId {
    /// An id that EC2 or a tag names, even one that we would not give out.
    fn from(number: u16) -> Self {
        Self(number)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_id_is_given_out_until_all_are_used() {
        let ids = |numbers: &[u16]| numbers.iter().copied().map(VlanId::from).collect();
        for (used, free) in [
            (ids(&[]), Some(1)),
            (ids(&[1, 2, 4]), Some(3)),
            (ids(&[2, 3]), Some(1)),
            (ids(&[0, 4000]), Some(1)),
            ((1..=120).map(VlanId::from).collect(), None),
        ] {
            assert_eq!(
                VlanId::lowest_free(&used).map(VlanId::number),
                free,
                "{used:?}"
            );
        }
    }
}
