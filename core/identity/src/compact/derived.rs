//! What whoever reads a transaction works out without being told: the content hash of each event in it, and the ids that later
//! events will name these by. Splices text, so that whatever is put back stands where it was, byte for byte; an event that is
//! not what it should be stays as it is.

use ruma::{
    canonical_json::CanonicalJsonObject,
    room_version_rules::RoomVersionRules,
    signatures::{content_hash, reference_hash},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What stands where a hash was left out.
const LEFT_OUT: &str = "{}";

#[derive(Deserialize)]
struct Transaction<'a> {
    #[serde(borrow)]
    pdus: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    hashes: &'a RawValue,
}

/// The texts of a transaction's events; none of any other body.
fn events(body: &str) -> Vec<&str> {
    let transaction: Option<Transaction<'_>> = serde_json::from_str(body).ok();
    let events = transaction.map(|transaction| transaction.pdus).unwrap_or_default();
    events.into_iter().map(RawValue::get).collect()
}

/// What an event has under `hashes` if it is as it should be.
fn hashes(event: &str) -> Option<String> {
    let event: CanonicalJsonObject = serde_json::from_str(event).ok()?;
    let hash = content_hash(&event).ok()?;
    Some(format!(r#"{{"sha256":"{hash}"}}"#))
}

/// Puts `put` in the place of what each event of a transaction has under `hashes`, where it gives something.
fn splice(body: &[u8], put: impl Fn(&str, &str) -> Option<String>) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(body) else {
        return body.to_vec();
    };
    let (mut spliced, mut done) = (Vec::with_capacity(body.len()), 0);
    for event in events(text) {
        let Ok(Event { hashes: old }) = serde_json::from_str(event) else {
            continue;
        };
        let Some(new) = put(event, old.get()) else { continue };
        // Borrowed from `text`, so that the distance between the two is its place.
        let start = (old.get().as_ptr() as usize).wrapping_sub(text.as_ptr() as usize);
        let Some(between) = body.get(done..start) else { continue };
        spliced.extend_from_slice(between);
        spliced.extend_from_slice(new.as_bytes());
        done = start + old.get().len();
    }
    spliced.extend_from_slice(body.get(done..).unwrap_or_default());
    spliced
}

/// A body without the hashes that [`with_hashes`] finds again. None if that would not give the same body.
pub(super) fn without_hashes(body: &[u8]) -> Option<Vec<u8>> {
    let shorter = splice(body, |event, old| (hashes(event)? == old).then(|| LEFT_OUT.to_owned()));
    (with_hashes(&shorter) == body).then_some(shorter)
}

/// A body with the hashes that were left out.
pub(super) fn with_hashes(body: &[u8]) -> Vec<u8> {
    splice(body, |event, old| (old == LEFT_OUT).then(|| hashes(event)).flatten())
}

/// The ids of a transaction's events, as rooms of version 12 have them; of other versions' they may not be the true ones.
pub(super) fn event_ids(body: &[u8]) -> String {
    let id = |event: &str| {
        let event: CanonicalJsonObject = serde_json::from_str(event).ok()?;
        let hash = reference_hash(&event, &RoomVersionRules::V12).ok()?;
        Some(format!("${hash}"))
    };
    let text = std::str::from_utf8(body).unwrap_or_default();
    events(text).into_iter().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASHED: &str = r#"{"content":{"body":"hashes","file":{"hashes":{"sha256":"x"}}},"hashes":{"sha256":"JTR2XlNyX9qj1tQ6nFYsK1WUVMBq8JqSgWqoZ45H3xg"},"type":"m.room.message"}"#;

    fn event(body: &str) -> String {
        let text = format!(r#"{{"content":{{"body":"{body}"}},"hashes":{{}},"type":"m.room.message"}}"#);
        let hashes = hashes(&text).unwrap();
        text.replace(r#""hashes":{}"#, &format!(r#""hashes":{hashes}"#))
    }

    #[test]
    fn hashes_that_are_right_are_left_out_and_found_again() {
        let (one, other) = (event("one"), event("\\\"hashes\\\":{} é"));
        let wrong = one.replace("one", "two");
        let body = format!(r#"{{"origin":"a", "pdus":[{one}, {wrong},{other},{HASHED},{{}},7],"edus":[]}}"#);
        let shorter = without_hashes(body.as_bytes()).unwrap();
        let saved = 2 * (r#"{"sha256":"JTR2XlNyX9qj1tQ6nFYsK1WUVMBq8JqSgWqoZ45H3xg"}"#.len() - 2);
        assert_eq!(
            body.len() - shorter.len(),
            saved,
            "{}",
            String::from_utf8_lossy(&shorter)
        );
        assert_eq!(with_hashes(&shorter), body.as_bytes());
    }

    #[test]
    fn what_would_not_come_back_is_said() {
        // A hash that is left out already would be put there.
        let bare = r#"{"pdus":[{"hashes":{},"type":"m.room.message"}]}"#;
        assert_eq!(without_hashes(bare.as_bytes()), None);
        for other in [
            r#"{"pdus":[]}"#,
            r#"{"hashes":{}}"#,
            "[]",
            "",
            "no JSON",
            r#"{"pdus":{}}"#,
        ] {
            assert_eq!(without_hashes(other.as_bytes()).unwrap(), other.as_bytes());
            assert_eq!(event_ids(other.as_bytes()), "");
        }
        assert_eq!(without_hashes(b"\xff").unwrap(), b"\xff");
    }

    #[test]
    fn ids_are_those_that_rooms_know() {
        let body = format!(r#"{{"pdus":[{},{}]}}"#, event("one"), event("two"));
        let ids = event_ids(body.as_bytes());
        let known = [event("one"), event("two")].map(|event| {
            let event: CanonicalJsonObject = serde_json::from_str(&event).unwrap();
            format!("${}", reference_hash(&event, &RoomVersionRules::V12).unwrap())
        });
        assert_eq!(ids, known.concat());
    }

    proptest! {
        #[test]
        fn any_body_comes_back(bodies in prop::collection::vec("[ -!#-\\[\\]-~]{0,40}", 0..5), noise: Vec<u8>) {
            let events: Vec<_> = bodies.iter().map(|body| event(body)).collect();
            let body = format!(r#"{{"pdus":[{}]}}"#, events.join(","));
            let shorter = without_hashes(body.as_bytes()).unwrap();
            prop_assert_eq!(with_hashes(&shorter), body.as_bytes());
            if let Some(shorter) = without_hashes(&noise) {
                prop_assert_eq!(with_hashes(&shorter), noise);
            }
        }
    }
}
