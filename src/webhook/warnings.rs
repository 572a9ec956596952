//! What the API server passes on of an answer's warnings.

/// The most characters of one warning: the API server cuts off the rest (KEP-1693).
pub const WARNING_CHARACTERS: usize = 256;

/// The most characters of all warnings of one answer: the API server drops the rest.
const WARNINGS_CHARACTERS: usize = 4096;

/// Shortens and drops warnings so that the API server passes on all that is left, and says
/// how many were dropped.
pub fn within_limits(warnings: Vec<String>) -> Vec<String> {
    /// Room for the line that counts what was dropped.
    const RESERVED: usize = 40;
    let count = warnings.len();
    let mut left = WARNINGS_CHARACTERS - RESERVED;
    let mut kept = Vec::new();
    for warning in warnings {
        let warning = shortened(&warning);
        let length = warning.chars().count();
        if length > left {
            kept.push(format!("and {} more warnings", count - kept.len()));
            break;
        }
        left -= length;
        kept.push(warning);
    }
    kept
}

/// The warning in one line of at most [`WARNING_CHARACTERS`]; the API server drops one with
/// control characters.
fn shortened(warning: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    match warning.char_indices().nth(WARNING_CHARACTERS) {
        None => warning.chars().map(printable).collect(),
        Some(_) => {
            let start = warning.chars().take(WARNING_CHARACTERS - 1);
            start.map(printable).chain(['…']).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_stay_within_the_api_servers_limits_and_count_what_is_missing() {
        let long = "é".repeat(WARNING_CHARACTERS + 1);
        let one = within_limits(vec![long.clone(), "short\nline".to_owned()]);
        assert_eq!(one[0].chars().count(), WARNING_CHARACTERS);
        assert!(one[0].ends_with('…'));
        assert_eq!(one[1], "short line");

        let many = within_limits(vec![long; 100]);
        let characters: usize = many.iter().map(|warning| warning.chars().count()).sum();
        assert!(characters <= WARNINGS_CHARACTERS, "{characters}");
        assert_eq!(
            many.last().unwrap(),
            &format!("and {} more warnings", 100 - (many.len() - 1))
        );
    }
}
