//! Blocks of addresses, and which addresses of a subnet are taken.

use std::collections::HashSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// EC2 keeps the first four addresses and the last one of each subnet.
pub(super) const RESERVED: u32 = 5;

macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $address:ty, $bits:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name {
            base: $bits,
            length: u8,
        }

        impl $name {
            /// The block of `length` that holds `address`.
            pub fn around(address: $address, length: u8) -> Self {
                Self { base: address.to_bits() & mask::<$bits>(length), length }
            }

            /// Bits of the prefix.
            pub fn length(self) -> u8 {
                self.length
            }

            /// The first address.
            pub fn base(self) -> $address {
                self.base.into()
            }

            /// Whether an address is of this block.
            pub fn contains(self, address: $address) -> bool {
                Self::around(address, self.length) == self
            }

            /// Whether all of the other block is in this one.
            pub fn covers(self, other: Self) -> bool {
                self.length <= other.length && self.contains(other.base())
            }

            /// Whether some address is in both.
            pub fn overlaps(self, other: Self) -> bool {
                self.covers(other) || other.covers(self)
            }
        }

        impl FromStr for $name {
            type Err = NotABlock;

            /// Bits after the prefix are cleared, as EC2 does.
            fn from_str(text: &str) -> Result<Self, NotABlock> {
                let (address, length) = text.split_once('/').ok_or(NotABlock)?;
                let address: $address = address.parse().map_err(|_| NotABlock)?;
                let length: u8 = length.parse().map_err(|_| NotABlock)?;
                if u32::from(length) > <$bits>::BITS {
                    return Err(NotABlock);
                }
                Ok(Self::around(address, length))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotABlock;

            fn try_from(text: String) -> Result<Self, NotABlock> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(block: $name) -> Self {
                block.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}/{}", self.base(), self.length)
            }
        }
    };
}

block!(
    /// A block of IPv4 addresses.
    Ipv4Block, Ipv4Addr, u32
);
block!(
    /// A block of IPv6 addresses.
    Ipv6Block, Ipv6Addr, u128
);

/// The text is no CIDR block.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a CIDR block")]
pub struct NotABlock;

trait Bits: Sized {
    fn mask(length: u8) -> Self;
}

impl Bits for u32 {
    fn mask(length: u8) -> Self {
        u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn mask(length: u8) -> Self {
        u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }
}

fn mask<T: Bits>(length: u8) -> T {
    T::mask(length)
}

/// Which addresses of a subnet are taken. A view of the interfaces, never stored.
#[derive(Clone, Debug, Default)]
pub(super) struct TakenAddresses {
    v4: HashSet<Ipv4Addr>,
    v6: HashSet<Ipv6Addr>,
    /// Where the search for a free address goes on: EC2 does not give an address that was
    /// just freed to the next who asks.
    next_v4: u32,
    next_v6: u128,
}

/// The same addresses are taken, wherever the search goes on.
impl PartialEq for TakenAddresses {
    fn eq(&self, other: &Self) -> bool {
        (&self.v4, &self.v6) == (&other.v4, &other.v6)
    }
}

impl TakenAddresses {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(super) fn free_v4(&self, block: Ipv4Block) -> u32 {
        let usable = usable_v4(block);
        usable.saturating_sub(u32::try_from(self.v4.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn is_taken_v4(&self, address: Ipv4Addr) -> bool {
        self.v4.contains(&address)
    }

    pub(super) fn is_taken_v6(&self, address: Ipv6Addr) -> bool {
        self.v6.contains(&address)
    }

    /// A free address, not yet taken; `None` when all are.
    pub(super) fn find_v4(&mut self, block: Ipv4Block, besides: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let usable = usable_v4(block);
        if self.free_v4(block) == 0 {
            return None;
        }
        for _ in 0..usable {
            let candidate = Ipv4Addr::from_bits(block.base + 4 + self.next_v4 % usable);
            self.next_v4 = (self.next_v4 + 1) % usable;
            if !self.v4.contains(&candidate) && !besides.contains(&candidate) {
                return Some(candidate);
            }
        }
        None
    }

    /// A free address of a block that has more than anyone can take.
    pub(super) fn find_v6(&mut self, block: Ipv6Block, besides: &[Ipv6Addr]) -> Ipv6Addr {
        loop {
            self.next_v6 += 1;
            let candidate = Ipv6Addr::from_bits(block.base + 0xff + self.next_v6);
            if !self.v6.contains(&candidate) && !besides.contains(&candidate) {
                return candidate;
            }
        }
    }

    pub(super) fn take(&mut self, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) {
        self.v4.extend(v4);
        self.v6.extend(v6);
    }

    pub(super) fn release(&mut self, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) {
        v4.iter().for_each(|address| {
            self.v4.remove(address);
        });
        v6.iter().for_each(|address| {
            self.v6.remove(address);
        });
    }
}

/// Whether EC2 lets an interface have the address.
pub(super) fn is_usable_v4(block: Ipv4Block, address: Ipv4Addr) -> bool {
    let first = block.base + 4;
    let address = address.to_bits();
    (first..first + usable_v4(block)).contains(&address)
}

fn usable_v4(block: Ipv4Block) -> u32 {
    1u32.checked_shl(32 - u32::from(block.length))
        .unwrap_or(u32::MAX)
        .saturating_sub(RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Ipv4Block {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_cover_and_overlap() {
        for (one, other, covers, overlaps) in [
            ("10.0.0.0/16", "10.0.3.0/24", true, true),
            ("10.0.3.0/24", "10.0.0.0/16", false, true),
            ("10.0.0.0/24", "10.0.1.0/24", false, false),
            ("0.0.0.0/0", "10.0.1.0/24", true, true),
        ] {
            let (one, other) = (v4(one), v4(other));
            assert_eq!(one.covers(other), covers, "{one} {other}");
            assert_eq!(one.overlaps(other), overlaps, "{one} {other}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "ten/8"] {
            assert_eq!(bad.parse::<Ipv4Block>(), Err(NotABlock), "{bad}");
        }
        assert_eq!(v4("10.0.0.7/24").to_string(), "10.0.0.0/24");
    }

    #[test]
    fn a_subnet_runs_out_after_all_but_five_addresses() {
        let block = v4("10.0.0.0/28");
        let mut taken = TakenAddresses::default();
        let mut given = Vec::new();
        while let Some(address) = taken.find_v4(block, &[]) {
            taken.take(&[address], &[]);
            given.push(address.to_string());
        }

        assert_eq!(given.len(), 11);
        assert_eq!(given[0], "10.0.0.4");
        assert_eq!(given[10], "10.0.0.14");
        assert_eq!(taken.free_v4(block), 0);
    }

    #[test]
    fn a_freed_address_is_given_again_only_after_the_others() {
        let block = v4("10.0.0.0/28");
        let mut taken = TakenAddresses::default();
        let first = taken.find_v4(block, &[]).unwrap();
        taken.take(&[first], &[]);
        taken.release(&[first], &[]);

        assert_ne!(taken.find_v4(block, &[]), Some(first));
    }
}
