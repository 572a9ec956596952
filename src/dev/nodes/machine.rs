//! What an instance type offers besides interfaces, read from its name.
//!
//! EC2's names follow a pattern: a family, a generation, letters for variants, a size. That
//! gives exact figures for the common general, compute and memory types, and near ones for
//! the rest. A simulated node has no use for more, since nothing runs on it.

/// Processors and memory of a machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Machine {
    pub(super) cpus: u32,
    pub(super) memory_gib: u32,
    /// Whether the processors are Graviton, EC2's own ARM ones.
    pub(super) arm: bool,
}

/// The machine behind a type's name.
pub(super) fn machine(instance_type: &str) -> Machine {
    let (series, size) = instance_type.split_once('.').unwrap_or((instance_type, ""));
    let cpus = cpus(size);
    let family = series.trim_start_matches(|c: char| !c.is_ascii_digit());
    let family = &series[..series.len() - family.len()];
    let gib_a_cpu = match family {
        "c" | "hpc" | "inf" => 2,
        "r" | "i" | "im" | "is" => 8,
        "x" | "z" | "u" => 16,
        _ => 4,
    };
    let variant = series[family.len()..].trim_start_matches(|c: char| c.is_ascii_digit());
    Machine {
        cpus,
        memory_gib: cpus * gib_a_cpu,
        arm: variant.starts_with('g') || family == "a",
    }
}

/// `large` are 2 processors and `xlarge` are 4; a number before it multiplies.
fn cpus(size: &str) -> u32 {
    const A_XLARGE: u32 = 4;
    const BARE_METAL: u32 = 96;
    let size = size.strip_prefix("metal-").unwrap_or(size);
    match size {
        "metal" => BARE_METAL,
        "xlarge" => A_XLARGE,
        _ => match size
            .trim_end_matches("xlarge")
            .trim_end_matches("xl")
            .parse::<u32>()
        {
            Ok(times) => times * A_XLARGE,
            Err(_) => 2,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_types_have_the_figures_that_ec2_lists() {
        for (name, cpus, memory_gib, arm) in [
            ("m5.large", 2, 8, false),
            ("c5.xlarge", 4, 8, false),
            ("r6g.4xlarge", 16, 128, true),
            ("m7gd.16xlarge", 64, 256, true),
            ("c6gn.2xlarge", 8, 16, true),
            ("m5.metal", 96, 384, false),
            ("m7i.metal-24xl", 96, 384, false),
            ("g4dn.xlarge", 4, 16, false),
            ("t3.large", 2, 8, false),
        ] {
            let expected = Machine {
                cpus,
                memory_gib,
                arm,
            };
            assert_eq!(machine(name), expected, "{name}");
        }
    }
}
