//! Pages of the Describe actions.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::errors::Ec2Error;
use super::query::Parameters;

/// What EC2 sends at most where a caller sets no bound.
const USUAL_PAGE: usize = 1_000;

/// Which part of a list a caller wants.
#[derive(Debug)]
pub(super) struct Page {
    action: String,
    most: usize,
    after: Option<String>,
}

impl Page {
    /// Reads `MaxResults` and `NextToken`. `ids` is the list of ids that can't be combined
    /// with them.
    pub(super) fn read(
        parameters: &Parameters<'_>,
        action: &str,
        ids: &str,
        largest: usize,
    ) -> Result<Self, Ec2Error> {
        let most: Option<i64> = parameters.number("MaxResults")?;
        let most = match most {
            None => USUAL_PAGE.min(largest),
            Some(_) if !parameters.list(ids).is_empty() => {
                return Err(Ec2Error::invalid_combination(format!(
                    "The parameter {ids} cannot be used with the parameter MaxResults"
                )));
            }
            Some(number) => usize::try_from(number)
                .ok()
                .filter(|number| (5..=largest).contains(number))
                .ok_or_else(|| {
                    let expected = format!("Expecting a value between 5 and {largest}.");
                    Ec2Error::bad_value(format!(" {number} "), "maxResults", &expected)
                })?,
        };
        let after = match parameters
            .text("NextToken")
            .filter(|token| !token.is_empty())
        {
            None => None,
            Some(token) => Some(read_token(token, action)?),
        };
        Ok(Self {
            action: action.to_owned(),
            most,
            after,
        })
    }

    /// The key that the last page ended with.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Takes a page off a list that is sorted by `key`, and says how to get the next one.
    pub(super) fn take<T>(
        &self,
        sorted: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        let mut page: Vec<T> = Vec::new();
        for item in sorted {
            if self
                .after()
                .is_some_and(|after| key(&item).as_str() <= after)
            {
                continue;
            }
            if page.len() == self.most {
                let token = page.last().map(|last| self.token(&key(last)));
                return (page, token);
            }
            page.push(item);
        }
        (page, None)
    }

    fn token(&self, after: &str) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}\n{after}", self.action))
    }
}

fn read_token(token: &str, action: &str) -> Result<String, Ec2Error> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let after = text.as_deref().and_then(|text| {
        let (of, after) = text.split_once('\n')?;
        (of == action).then(|| after.to_owned())
    });
    after.ok_or_else(|| Ec2Error::invalid_value(format!("The token '{token}' is invalid")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::simulator::query::Query;

    fn page(query: &str) -> Result<Page, Ec2Error> {
        let query = Query::parse(query.as_bytes()).unwrap();
        Page::read(&query.parameters(), "DescribeVpcs", "VpcId", 1_000)
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (query, code) in [
            ("MaxResults=5", None),
            ("MaxResults=1000", None),
            ("MaxResults=4", Some("InvalidParameterValue")),
            ("MaxResults=1001", Some("InvalidParameterValue")),
            ("MaxResults=-1", Some("InvalidParameterValue")),
            ("MaxResults=many", Some("InvalidParameterValue")),
            ("NextToken=nonsense", Some("InvalidParameterValue")),
            (
                "MaxResults=5&VpcId.1=vpc-1",
                Some("InvalidParameterCombination"),
            ),
        ] {
            let found = page(query).err().map(|error| error.code.into_owned());
            assert_eq!(found.as_deref(), code, "{query}");
        }
    }

    #[test]
    fn pages_cover_a_list_once_although_items_come_and_go() {
        let mut items: Vec<String> = (10..30).map(|number| number.to_string()).collect();
        let mut seen = Vec::new();
        let mut token = None;
        loop {
            let query = match &token {
                None => "MaxResults=5".to_owned(),
                Some(token) => format!("MaxResults=5&NextToken={token}"),
            };
            let (taken, next) = page(&query).unwrap().take(&items, |item| item.to_string());
            seen.extend(taken.into_iter().cloned());
            // The item that the next page starts after is gone.
            items.retain(|item| Some(item) != seen.last());
            match next {
                None => break,
                next => token = next,
            }
        }
        assert_eq!(seen.len(), 20);
        assert!(seen.is_sorted());
    }
}
