//! Writes events in the formats that clients read. It never decides whether a client may read them.
//!
//! Client-server API, "Room event format", "Stripped state" and "Aggregations of child events".

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedTransactionId, RoomId, UserId,
    events::room::member::MembershipState, room_version_rules::RedactionRules,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, value::RawValue};

use crate::Pdu;

/// Which of a client's formats to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFormat {
    /// With the room's id, for answers that stand alone.
    Full,
    /// Without the room's id, as `/sync` sorts events by room.
    Sync,
    /// As servers exchange it, with this server's `unsigned`: the filter's `event_format: federation`.
    Federation,
}

/// What this server tells beside the event itself. None of it is part of the event's hash.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Unsigned {
    /// Milliseconds since the event was made, by both servers' clocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<i64>,
    /// The reader's own membership at the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<MembershipState>,
    /// The content that this state event replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_content: Option<Box<RawValue>>,
    /// The event that this state event replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces_state: Option<OwnedEventId>,
    /// The redaction that stripped the event, in client format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redacted_because: Option<Box<RawValue>>,
    /// The name that the reader's device gave the event when it sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<OwnedTransactionId>,
    /// What other events say about this one.
    #[serde(rename = "m.relations", skip_serializing_if = "Aggregations::is_empty")]
    pub relations: Aggregations,
}

impl Unsigned {
    /// Only how old the event is.
    pub fn aged(pdu: &Pdu, now: MilliSecondsSinceUnixEpoch) -> Self {
        let (now, made) = (i64::from(now.get()), i64::from(pdu.origin_server_ts().get()));
        Self {
            age: Some(now.saturating_sub(made)),
            ..Self::default()
        }
    }
}

/// Bundled aggregations of child events.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Aggregations {
    /// The newest valid edit, in client format.
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    pub replace: Option<Box<RawValue>>,
    /// The thread that starts here.
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    pub thread: Option<ThreadSummary>,
    /// Events that refer to this one.
    #[serde(
        rename = "m.reference",
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "reference_chunk"
    )]
    pub references: Vec<OwnedEventId>,
}

impl Aggregations {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.replace.is_none() && self.thread.is_none() && self.references.is_empty()
    }
}

/// What a thread's root tells of its thread.
#[derive(Debug, Clone, Serialize)]
pub struct ThreadSummary {
    /// The newest event of the thread, in client format.
    pub latest_event: Box<RawValue>,
    /// Events in the thread, its root not counted.
    pub count: u64,
    /// Whether the reader wrote the root or any event of the thread.
    pub current_user_participated: bool,
}

fn reference_chunk<S: Serializer>(references: &[OwnedEventId], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Reference<'a> {
        event_id: &'a OwnedEventId,
    }
    let chunk: Vec<_> = references.iter().map(|event_id| Reference { event_id }).collect();
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("chunk", &chunk)?;
    map.end()
}

#[derive(Serialize)]
struct ClientEvent<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<OwnedEventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a str,
    unsigned: &'a Unsigned,
}

/// An event as a client reads it.
pub fn client_event(pdu: &Pdu, unsigned: &Unsigned, format: ClientFormat, rules: &RedactionRules) -> Box<RawValue> {
    if format == ClientFormat::Federation {
        return federation_event(pdu, unsigned);
    }
    let kind = pdu.kind().to_string();
    let redacts = pdu.redacts(rules);
    let completed = redacts.as_deref().and_then(|target| with_redacts(pdu, target));
    write(&ClientEvent {
        content: completed.as_deref().unwrap_or(parsed(pdu.content_json())),
        event_id: pdu.event_id(),
        origin_server_ts: pdu.origin_server_ts(),
        redacts,
        room_id: (format == ClientFormat::Full).then(|| pdu.room_id()),
        sender: pdu.sender(),
        state_key: pdu.state_key(),
        kind: &kind,
        unsigned,
    })
}

/// A state event as people outside the room read it: in invites, knocks and summaries.
pub fn stripped_event(pdu: &Pdu) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Stripped<'a> {
        content: &'a RawValue,
        sender: &'a UserId,
        state_key: &'a str,
        #[serde(rename = "type")]
        kind: &'a str,
    }
    write(&Stripped {
        content: parsed(pdu.content_json()),
        sender: pdu.sender(),
        state_key: pdu.state_key().unwrap_or_default(),
        kind: &pdu.kind().to_string(),
    })
}

/// The content of a redaction, with its target in it.
///
/// Since room version 11 a redaction names its target in its content, before that at the top. Clients of either age find
/// it where they look: "servers SHOULD add a `redacts` property to the `content`", and at the top level as well
/// (client-server API, `m.room.redaction`).
fn with_redacts(pdu: &Pdu, target: &EventId) -> Option<Box<RawValue>> {
    let mut content: Map<String, Value> = pdu.content_as().ok()?;
    content.insert("redacts".to_owned(), Value::String(target.to_string()));
    serde_json::value::to_raw_value(&content).ok()
}

fn federation_event(pdu: &Pdu, unsigned: &Unsigned) -> Box<RawValue> {
    let told = match (serde_json::from_str(pdu.json()), serde_json::to_value(unsigned)) {
        (Ok(Value::Object(mut event)), Ok(unsigned)) => {
            event.insert("unsigned".to_owned(), unsigned);
            Value::Object(event)
        }
        _ => Value::Null,
    };
    write(&told)
}

/// JSON text that is known to be JSON, as it is part of an event that was parsed.
fn parsed(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

/// Writes what cannot fail to be written: strings, numbers and JSON that was parsed before.
fn write(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use ruma::{event_id, room_id};
    use serde_json::json;

    use super::*;
    use crate::{DEFAULT_VERSION, rules};

    fn pdu(kind: &str, fields: Value) -> Pdu {
        let mut event = json!({
            "type": kind, "content": {}, "sender": "@a:x", "room_id": "!r:x", "origin_server_ts": 1000,
            "prev_events": [], "auth_events": [], "depth": 1, "hashes": {}, "signatures": {},
        });
        event
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        Pdu::from_stored(
            event_id!("$e").to_owned(),
            room_id!("!r:x").to_owned(),
            &event.to_string(),
        )
        .unwrap()
    }

    fn check(pdu: &Pdu, format: ClientFormat, unsigned: &Unsigned, version: &str, expected: Value) {
        let rules = rules(&version.try_into().unwrap()).unwrap();
        let event = client_event(pdu, unsigned, format, &rules.redaction);
        assert_eq!(serde_json::from_str::<Value>(event.get()).unwrap(), expected);
    }

    #[test]
    fn message_in_each_format() {
        let message = pdu("m.room.message", json!({ "content": { "body": "hi" } }));
        let unsigned = Unsigned::aged(&message, MilliSecondsSinceUnixEpoch(1234u32.into()));
        let mut expected = json!({
            "type": "m.room.message", "content": { "body": "hi" }, "sender": "@a:x", "event_id": "$e",
            "origin_server_ts": 1000, "unsigned": { "age": 234 },
        });
        let version = DEFAULT_VERSION.to_string();
        check(&message, ClientFormat::Sync, &unsigned, &version, expected.clone());
        expected["room_id"] = json!("!r:x");
        check(&message, ClientFormat::Full, &unsigned, &version, expected);
        let mut expected: Value = serde_json::from_str(message.json()).unwrap();
        expected["unsigned"] = json!({ "age": 234 });
        check(&message, ClientFormat::Federation, &unsigned, &version, expected);
    }

    #[test]
    fn everything_unsigned() {
        let state = pdu(
            "m.room.topic",
            json!({ "state_key": "", "content": { "topic": "new" } }),
        );
        let raw = |value: Value| serde_json::value::to_raw_value(&value).unwrap();
        let unsigned = Unsigned {
            age: Some(-5),
            membership: Some(MembershipState::Join),
            prev_content: Some(raw(json!({ "topic": "old" }))),
            replaces_state: Some(event_id!("$old").to_owned()),
            redacted_because: Some(raw(json!({ "type": "m.room.redaction" }))),
            transaction_id: Some("t1".into()),
            relations: Aggregations {
                replace: Some(raw(json!({ "event_id": "$edit" }))),
                thread: Some(ThreadSummary {
                    latest_event: raw(json!({ "event_id": "$last" })),
                    count: 7,
                    current_user_participated: true,
                }),
                references: vec![event_id!("$one").to_owned(), event_id!("$two").to_owned()],
            },
        };
        let expected = json!({
            "type": "m.room.topic", "state_key": "", "content": { "topic": "new" }, "sender": "@a:x", "event_id": "$e",
            "origin_server_ts": 1000,
            "unsigned": {
                "age": -5, "membership": "join", "prev_content": { "topic": "old" }, "replaces_state": "$old",
                "redacted_because": { "type": "m.room.redaction" }, "transaction_id": "t1",
                "m.relations": {
                    "m.replace": { "event_id": "$edit" },
                    "m.thread": {
                        "latest_event": { "event_id": "$last" }, "count": 7, "current_user_participated": true,
                    },
                    "m.reference": { "chunk": [{ "event_id": "$one" }, { "event_id": "$two" }] },
                },
            },
        });
        check(&state, ClientFormat::Sync, &unsigned, "12", expected);
    }

    /// Whatever the version and wherever a stranger put other targets, clients find the one that counts, twice.
    #[test]
    fn redactions_name_their_target_for_clients_of_either_age() {
        for (version, redacts, inner) in [("10", "$target", "$lie"), ("11", "$lie", "$target")] {
            let redaction = pdu(
                "m.room.redaction",
                json!({ "redacts": redacts, "content": { "redacts": inner, "reason": "spam" } }),
            );
            let expected = json!({
                "type": "m.room.redaction", "content": { "redacts": "$target", "reason": "spam" }, "sender": "@a:x",
                "event_id": "$e", "origin_server_ts": 1000, "redacts": "$target", "unsigned": {},
            });
            check(&redaction, ClientFormat::Sync, &Unsigned::default(), version, expected);
        }
    }

    #[test]
    fn stripped_events_hold_four_fields() {
        let name = pdu("m.room.name", json!({ "state_key": "", "content": { "name": "n" } }));
        assert_eq!(
            serde_json::from_str::<Value>(stripped_event(&name).get()).unwrap(),
            json!({ "type": "m.room.name", "state_key": "", "content": { "name": "n" }, "sender": "@a:x" })
        );
    }
}
