//! The Secret that all replicas share.
//!
//! Its current pair is in `ca.crt`, `tls.crt` and `tls.key`; the next one, while there is one,
//! in the same names after `next-`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

use super::pair::{Pair, PairError};

/// What the names of the next pair's parts begin with.
const NEXT: &str = "next-";

/// The pairs of the Secret.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pub(super) current: Option<Pair>,
    pub(super) next: Option<Pair>,
}

/// Reads the pairs, and says what of them can't be read.
pub(super) fn read(secret: &Secret) -> (Pairs, Vec<PairError>) {
    let mut problems = Vec::new();
    let mut pair = |prefix| match read_pair(secret, prefix) {
        Ok(pair) => pair,
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let pairs = Pairs {
        current: pair(""),
        next: pair(NEXT),
    };
    (pairs, problems)
}

fn read_pair(secret: &Secret, prefix: &str) -> Result<Option<Pair>, PairError> {
    let part = |name: &str| {
        let value = secret.data.as_ref()?.get(&format!("{prefix}{name}"))?;
        // What is no text is no PEM either.
        Some(str::from_utf8(&value.0).unwrap_or_default())
    };
    let (ca, certificate, key) = (part("ca.crt"), part("tls.crt"), part("tls.key"));
    if ca.is_none() && certificate.is_none() && key.is_none() {
        return Ok(None);
    }
    Pair::read(prefix, ca, certificate, key).map(Some)
}

/// The Secret with these pairs, to be put in the place of `seen`, or to be created.
pub(super) fn written(name: &str, pairs: &Pairs, seen: Option<&Secret>) -> Secret {
    let mut data = BTreeMap::new();
    for (prefix, pair) in [("", &pairs.current), (NEXT, &pairs.next)] {
        let Some(pair) = pair else { continue };
        for (part, value) in [
            ("ca.crt", &pair.ca),
            ("tls.crt", &pair.certificate),
            ("tls.key", &pair.key),
        ] {
            let value = ByteString(value.clone().into_bytes());
            data.insert(format!("{prefix}{part}"), value);
        }
    }
    let label = ("app.kubernetes.io/name".to_owned(), "sgp".to_owned());
    let mut secret = seen.cloned().unwrap_or_else(|| Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([label])),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    });
    secret.data = Some(data);
    secret
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn made() -> Pair {
        let lifetime = Duration::from_secs(60);
        Pair::make(&["localhost".to_owned()], lifetime, SystemTime::now()).unwrap()
    }

    fn pairs(current: &Pair, next: Option<&Pair>) -> Pairs {
        Pairs {
            current: Some(current.clone()),
            next: next.cloned(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (one, other) = (made(), made());
        let secret = written("name", &pairs(&one, Some(&other)), None);
        let (read, problems) = read(&secret);
        assert!(problems.is_empty(), "{problems:?}");
        assert!(read.current.unwrap().serving().is(one.serving()));
        assert!(read.next.unwrap().serving().is(other.serving()));
    }

    #[test]
    fn writing_keeps_the_secret_and_drops_what_is_over() {
        let (one, other) = (made(), made());
        let mut seen = written("name", &pairs(&one, Some(&other)), None);
        seen.metadata.resource_version = Some("7".into());
        seen.metadata.annotations = Some(BTreeMap::from([("a".into(), "b".into())]));
        let secret = written("name", &pairs(&other, None), Some(&seen));
        assert_eq!(secret.metadata, seen.metadata);
        let names: Vec<_> = secret.data.as_ref().unwrap().keys().collect();
        assert_eq!(names, ["ca.crt", "tls.crt", "tls.key"]);
        assert!(
            read(&secret)
                .0
                .current
                .unwrap()
                .serving()
                .is(other.serving())
        );
    }

    #[test]
    fn garbage_hides_neither_itself_nor_the_other_pair() {
        let (one, other) = (made(), made());
        let mut secret = written("name", &pairs(&one, Some(&other)), None);
        let data = secret.data.as_mut().unwrap();
        data.insert("tls.crt".into(), ByteString(vec![0xff, 0xfe]));
        data.remove("next-tls.key");
        let (found, problems) = read(&secret);
        assert!(found.current.is_none() && found.next.is_none());
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("tls.crt can't be read"), "{said:?}");
        assert!(said[1].contains("next-tls.key is missing"), "{said:?}");

        data_of(&mut secret).retain(|name, _| name.starts_with("next-"));
        data_of(&mut secret).insert("next-tls.key".into(), ByteString(other.key.clone().into()));
        let (found, problems) = read(&secret);
        assert!(found.next.is_some() && problems.is_empty(), "{problems:?}");
    }

    fn data_of(secret: &mut Secret) -> &mut BTreeMap<String, ByteString> {
        secret.data.as_mut().unwrap()
    }
}
