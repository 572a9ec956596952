//! So many nodes of one instance type, as `--nodes` names them.

use std::cmp::Reverse;
use std::str::FromStr;

use crate::ec2::instance_limits::LimitsTable;

/// Nodes of one instance type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeGroup {
    /// A type of the built-in table.
    pub instance_type: String,
    /// How many.
    pub count: usize,
}

/// Why a text is no group of nodes.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeGroupError {
    /// It has not the form.
    #[error("write an instance type, `=` and a number, such as m5.large=3, or `none`")]
    Form,
    /// The type is not in the table.
    #[error("there is no instance type {named}; near it are {}", .near.join(", "))]
    UnknownType {
        /// The type that was asked for.
        named: String,
        /// Types that may have been meant.
        near: Vec<&'static str>,
    },
}

impl NodeGroup {
    /// A group without a look at the table.
    pub fn new(instance_type: &str, count: usize) -> Self {
        Self {
            instance_type: instance_type.to_owned(),
            count,
        }
    }
}

impl FromStr for NodeGroup {
    type Err = NodeGroupError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (instance_type, count) = text.split_once('=').ok_or(NodeGroupError::Form)?;
        let count = count.parse().map_err(|_| NodeGroupError::Form)?;
        if LimitsTable::built_in().get(instance_type).is_none() {
            return Err(NodeGroupError::UnknownType {
                named: instance_type.to_owned(),
                near: near(instance_type),
            });
        }
        Ok(Self::new(instance_type, count))
    }
}

/// The types that share the longest beginning with this text; of these the shortest names.
fn near(text: &str) -> Vec<&'static str> {
    const SHOWN: usize = 5;
    let common = |name: &str| {
        let pairs = name.bytes().zip(text.bytes());
        pairs.take_while(|(one, other)| one == other).count()
    };
    let types = LimitsTable::built_in().iter();
    let mut names: Vec<_> = types.map(|row| row.instance_type.as_str()).collect();
    names.sort_by_key(|name| (Reverse(common(name)), name.len()));
    names.truncate(SHOWN);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_and_a_number_make_a_group() {
        let group: NodeGroup = "c5.xlarge=2".parse().unwrap();

        assert_eq!(
            (group.instance_type.as_str(), group.count),
            ("c5.xlarge", 2)
        );
    }

    #[test]
    fn what_has_not_the_form_is_told_apart_from_unknown_types() {
        for text in ["", "m5.large", "m5.large=", "m5.large=-1", "m5.large=many"] {
            assert_eq!(
                text.parse::<NodeGroup>(),
                Err(NodeGroupError::Form),
                "{text}"
            );
        }
        let error = "m5.lagre=1".parse::<NodeGroup>().unwrap_err().to_string();
        assert!(
            error.starts_with("there is no instance type m5.lagre; "),
            "{error}"
        );
        assert!(error.contains("m5.large,"), "{error}");
    }
}
