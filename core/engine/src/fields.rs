//! Picks the fields of an event that a client asked for. It never adds one.
//!
//! Client-server API, "Filtering", `event_fields`.

use serde_json::{Map, Value, value::RawValue};

/// Which fields of events a client wants: all, or those at some paths.
#[derive(Debug, Clone, Default)]
pub struct FieldSelection(Option<Vec<Vec<String>>>);

impl FieldSelection {
    /// From dot-separated paths, in which `\.` is a dot and `\\` a backslash; none means everything.
    pub fn new(paths: Option<&[String]>) -> Self {
        Self(paths.map(|paths| paths.iter().map(|path| split(path)).collect()))
    }

    /// Whether events are told whole.
    pub fn is_everything(&self) -> bool {
        self.0.is_none()
    }

    /// The chosen fields of an event. JSON that is no object is told whole: there is nothing to choose from.
    pub fn apply(&self, event: Box<RawValue>) -> Box<RawValue> {
        let Some(paths) = &self.0 else {
            return event;
        };
        let Ok(Value::Object(from)) = serde_json::from_str(event.get()) else {
            return event;
        };
        let mut chosen = Map::new();
        for path in paths {
            copy(&from, &mut chosen, path);
        }
        serde_json::value::to_raw_value(&chosen).unwrap_or(event)
    }
}

fn split(path: &str) -> Vec<String> {
    let mut parts = vec![];
    let mut part = String::new();
    let mut chars = path.chars().peekable();
    while let Some(char) = chars.next() {
        match (char, chars.peek()) {
            ('\\', Some(&escaped @ ('.' | '\\'))) => {
                part.push(escaped);
                chars.next();
            }
            ('.', _) => parts.push(std::mem::take(&mut part)),
            _ => part.push(char),
        }
    }
    parts.push(part);
    parts
}

fn copy(from: &Map<String, Value>, to: &mut Map<String, Value>, path: &[String]) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    let Some(value) = from.get(name) else {
        return;
    };
    if rest.is_empty() {
        to.insert(name.clone(), value.clone());
        return;
    }
    let Value::Object(inner) = value else {
        return;
    };
    let mut copied = match to.remove(name) {
        Some(Value::Object(copied)) => copied,
        _ => Map::new(),
    };
    copy(inner, &mut copied, rest);
    // A path that leads nowhere leaves no trace.
    if !copied.is_empty() {
        to.insert(name.clone(), Value::Object(copied));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(paths: &[&str], expected: Value) {
        let event = json!({
            "type": "m.room.message",
            "content": { "body": "hi", "a.b": 1, "c\\d": 2, "m.relates_to": { "rel_type": "m.thread", "event_id": "$x" } },
            "sender": "@a:x",
        });
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let event = serde_json::value::to_raw_value(&event).unwrap();
        let chosen = FieldSelection::new(Some(&paths)).apply(event);
        assert_eq!(
            serde_json::from_str::<Value>(chosen.get()).unwrap(),
            expected,
            "{paths:?}"
        );
    }

    #[test]
    fn chooses() {
        check(&[], json!({}));
        check(&["type"], json!({ "type": "m.room.message" }));
        check(&["content.body"], json!({ "content": { "body": "hi" } }));
        check(
            &["content.body", "content.a\\.b"],
            json!({ "content": { "body": "hi", "a.b": 1 } }),
        );
        check(&["content.c\\\\d"], json!({ "content": { "c\\d": 2 } }));
        check(
            &["content.m\\.relates_to.event_id"],
            json!({ "content": { "m.relates_to": { "event_id": "$x" } } }),
        );
        check(&["content.none.such", "sender.x", "", "."], json!({}));
    }

    #[test]
    fn everything_by_default() {
        let event = serde_json::value::to_raw_value(&json!({ "type": "x" })).unwrap();
        assert_eq!(FieldSelection::default().apply(event).get(), r#"{"type":"x"}"#);
    }
}
