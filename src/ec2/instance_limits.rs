//! How many interfaces each EC2 instance type carries.
//!
//! The table is part of the program, so that a node is understood without a call to EC2.
//! Rows can be added or replaced from text with the same columns.

use std::collections::BTreeMap;
use std::io;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

const BUILT_IN: &str = include_str!("instance-types.csv");

/// What one instance type carries.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InstanceLimits {
    /// Such as `m5.large`.
    pub instance_type: String,
    /// Interfaces that can be attached; the primary and the trunk count.
    pub max_interfaces: u32,
    /// IPv4 addresses of one interface.
    pub ipv4_per_interface: u32,
    /// Whether a trunk interface can be attached.
    pub trunking: bool,
    /// Branch interfaces on the trunk.
    pub branch_interfaces: u32,
    /// Interfaces of the network card that is used where none is named.
    pub default_card_interfaces: u32,
    /// `nitro` or `xen`; empty for bare metal.
    pub hypervisor: String,
    /// Whether there is no hypervisor at all.
    pub bare_metal: bool,
}

/// The limits of all known instance types.
#[derive(Clone, Debug)]
pub struct LimitsTable {
    rows: BTreeMap<String, InstanceLimits>,
}

/// Why a table can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LimitsTableError {
    /// The text is no table with the columns that are needed.
    #[error("the table of instance types can't be read")]
    Unreadable(#[from] csv::Error),
    /// A row contradicts itself.
    #[error("instance type {0}: branch interfaces need trunking")]
    BranchesWithoutTrunk(String),
}

impl LimitsTable {
    /// The table that is part of the program.
    pub fn built_in() -> &'static Self {
        static TABLE: LazyLock<LimitsTable> = LazyLock::new(|| {
            let mut table = LimitsTable {
                rows: BTreeMap::new(),
            };
            table
                .add(BUILT_IN.as_bytes())
                .expect("the built-in table is read by a test");
            table
        });
        &TABLE
    }

    /// Adds rows, or replaces those that are there, from CSV with the columns of
    /// [`InstanceLimits`] in any order.
    ///
    /// # Errors
    ///
    /// When a row can't be read; the table is as it was then.
    pub fn add(&mut self, csv: impl io::Read) -> Result<(), LimitsTableError> {
        let mut rows = BTreeMap::new();
        for row in csv::Reader::from_reader(csv).deserialize() {
            let row: InstanceLimits = row?;
            if row.branch_interfaces > 0 && !row.trunking {
                return Err(LimitsTableError::BranchesWithoutTrunk(row.instance_type));
            }
            rows.insert(row.instance_type.clone(), row);
        }
        self.rows.append(&mut rows);
        Ok(())
    }

    /// The limits of one type; `None` for a type that is not in the table.
    pub fn get(&self, instance_type: &str) -> Option<&InstanceLimits> {
        self.rows.get(instance_type)
    }

    /// All rows, by name of the type.
    pub fn iter(&self) -> impl Iterator<Item = &InstanceLimits> {
        self.rows.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_people_ask_about_have_the_limits_of_the_table() {
        let table = LimitsTable::built_in();
        for (name, interfaces, trunking, branches) in [
            ("m5.large", 3, true, 9),
            ("m5.metal", 15, true, 120),
            ("i3en.12xlarge", 8, true, 54),
            ("t3.medium", 3, false, 0),
            ("p3.2xlarge", 4, false, 0),
        ] {
            let row = table.get(name).unwrap();
            let found = (row.max_interfaces, row.trunking, row.branch_interfaces);
            assert_eq!(found, (interfaces, trunking, branches), "{name}");
        }
        assert_eq!(table.get("m5.gigantic"), None);
        assert_eq!(table.iter().count(), 1_164);
    }

    #[test]
    fn rows_from_text_replace_and_add() {
        let mut table = LimitsTable::built_in().clone();
        let header = BUILT_IN.lines().next().unwrap();
        let rows = format!(
            "{header}\nm5.large,3,10,true,5,3,nitro,false\nz9.large,2,4,false,0,2,nitro,false\n"
        );

        table.add(rows.as_bytes()).unwrap();

        assert_eq!(table.get("m5.large").unwrap().branch_interfaces, 5);
        assert_eq!(table.get("z9.large").unwrap().max_interfaces, 2);
        assert_eq!(table.iter().count(), 1_165);
    }

    #[test]
    fn a_table_with_a_bad_row_changes_nothing() {
        let header = BUILT_IN.lines().next().unwrap();
        for bad in [
            "m5.large,three,10,true,5,3,nitro,false",
            "m5.large,3,10,false,5,3,nitro,false",
            "m5.large,3",
        ] {
            let mut table = LimitsTable::built_in().clone();
            let text = format!("{header}\nz9.large,2,4,false,0,2,nitro,false\n{bad}\n");

            assert!(table.add(text.as_bytes()).is_err(), "{bad}");
            assert_eq!(table.get("z9.large"), None, "{bad}");
        }
    }
}
