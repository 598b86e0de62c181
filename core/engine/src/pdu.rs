//! One room event in its federation format. It holds the canonical JSON and never alters it.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId,
    canonical_json::redact_in_place,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{RedactionRules, RoomIdFormatVersion, RoomVersionRules},
    signatures::{VerificationError, reference_hash},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{StateKey, json::parse_object};

/// Why bytes are not an event that may be looked at further. Such an event is dropped.
///
/// Server-server API, "Checks performed on receipt of a PDU", steps 1 and 2.
#[derive(Debug, thiserror::Error)]
pub enum PduError {
    /// Larger than an event may be.
    #[error("an event of {0} bytes is larger than allowed")]
    TooLarge(usize),
    /// Not JSON, or not JSON that can be made canonical: a float, a duplicate key.
    #[error("not canonical JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is missing, of the wrong shape or too long.
    #[error("not a well-formed event: {0}")]
    Malformed(String),
    /// The event names another room, or none, where its room is known.
    #[error("the event does not belong to room {0}")]
    WrongRoom(OwnedRoomId),
    /// A signature is missing or wrong, or the key for it is not known.
    #[error("the event's signatures do not hold: {0}")]
    Signature(#[from] VerificationError),
    /// Rooms of this version cannot be taken part in.
    #[error("room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
}

/// A room event (PDU): parsed fields beside the canonical JSON they came from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pdu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    /// Whether the JSON names the room; from room version 12 on, `m.room.create` does not.
    names_room: bool,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    kind: TimelineEventType,
    state_key: Option<String>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
    json: Box<str>,
    /// Where the content stands within `json`.
    content: Range<usize>,
    /// The content by itself, for ruma's authorisation rules, which want it as a value: made on first use, because most
    /// events are never used to authorise others.
    content_value: OnceLock<Box<RawValue>>,
}

/// The fields of an event that its checks and its keepers look at.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(rename = "type")]
    kind: TimelineEventType,
    state_key: Option<String>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
}

impl Pdu {
    /// Makes an event of its canonical JSON. The id is computed; neither signatures nor limits are looked at, which
    /// [`check_pdu`](crate::check_pdu) does.
    pub fn from_json(object: &CanonicalJsonObject, version: &RoomVersionId) -> Result<Self, PduError> {
        let rules = rules(version)?;
        let hash = reference_hash(object, &rules).map_err(|error| PduError::Malformed(error.to_string()))?;
        let event_id = EventId::parse(format!("${hash}")).map_err(|error| PduError::Malformed(error.to_string()))?;
        let json = serde_json::to_string(object)?;
        let room_id = match object.get("room_id").and_then(|id| id.as_str()) {
            Some(id) => RoomId::parse(id).map_err(|error| PduError::Malformed(error.to_string()))?,
            None if rules.room_id_format == RoomIdFormatVersion::V2 => {
                RoomId::new_v2(&hash).map_err(|error| PduError::Malformed(error.to_string()))?
            }
            None => return Err(PduError::Malformed("missing `room_id`".to_owned())),
        };
        Self::from_stored(event_id, room_id, &json)
    }

    /// Makes an event of canonical JSON whose ids were computed before. The JSON must be what [`Pdu::json`] gave.
    pub fn from_stored(event_id: OwnedEventId, room_id: OwnedRoomId, json: &str) -> Result<Self, PduError> {
        let fields: Fields<'_> = serde_json::from_str(json)?;
        let content = fields.content.get();
        // The content was borrowed from `json`, so the distance between the two is its place.
        let start = (content.as_ptr() as usize).wrapping_sub(json.as_ptr() as usize);
        let content = start..start + content.len();
        Ok(Self(Arc::new(Inner {
            event_id,
            room_id,
            names_room: fields.room_id.is_some(),
            sender: fields.sender,
            origin_server_ts: fields.origin_server_ts,
            kind: fields.kind,
            state_key: fields.state_key,
            prev_events: fields.prev_events,
            auth_events: fields.auth_events,
            depth: fields.depth,
            json: json.into(),
            content,
            content_value: OnceLock::new(),
        })))
    }

    /// The event's id: its reference hash.
    pub fn event_id(&self) -> &EventId {
        &self.0.event_id
    }

    /// The room the event belongs to; for a version 12 `m.room.create`, the room that it makes.
    pub fn room_id(&self) -> &RoomId {
        &self.0.room_id
    }

    /// Who sent it.
    pub fn sender(&self) -> &UserId {
        &self.0.sender
    }

    /// When it was made, by the clock of its author's server.
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.0.origin_server_ts
    }

    /// The event type.
    pub fn kind(&self) -> &TimelineEventType {
        &self.0.kind
    }

    /// The state key, for a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.0.state_key.as_deref()
    }

    /// The key under which the event stands in a room's state, for a state event.
    pub fn state_entry(&self) -> Option<StateKey> {
        let state_key = self.state_key()?;
        Some((StateEventType::from(self.0.kind.to_string()), state_key.to_owned()))
    }

    /// Whether it is a state event of this type with this state key.
    pub fn is_state(&self, kind: &TimelineEventType, state_key: &str) -> bool {
        self.0.kind == *kind && self.state_key() == Some(state_key)
    }

    /// The content as canonical JSON text.
    pub fn content_json(&self) -> &str {
        &self.0.json[self.0.content.clone()]
    }

    /// The content as a value.
    pub fn content(&self) -> &RawValue {
        self.0.content_value.get_or_init(|| {
            RawValue::from_string(self.content_json().to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
        })
    }

    /// The content as some type: ruma's, or one that reads the few fields of interest.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content_json())
    }

    /// The events before this one.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.0.prev_events
    }

    /// The events that authorise this one. From room version 12 on, `m.room.create` is not among them.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.0.auth_events
    }

    /// One more than the deepest of the events before it, as its author said.
    pub fn depth(&self) -> u64 {
        self.0.depth
    }

    /// The event that an `m.room.redaction` names; none for other events and for malformed ones.
    pub fn redacts(&self, rules: &RedactionRules) -> Option<OwnedEventId> {
        #[derive(Deserialize)]
        struct Redacts {
            redacts: OwnedEventId,
        }
        if self.0.kind != TimelineEventType::RoomRedaction {
            return None;
        }
        let json = if rules.content_field_redacts {
            self.content_json()
        } else {
            self.json()
        };
        serde_json::from_str::<Redacts>(json).ok().map(|r| r.redacts)
    }

    /// The event without what redaction takes away, under the same id.
    ///
    /// Client-server API, "Redactions"; what stays differs by room version.
    pub fn redacted(&self, rules: &RedactionRules) -> Result<Self, PduError> {
        let mut object = self.to_object()?;
        redact_in_place(&mut object, rules, None).map_err(|error| PduError::Malformed(error.to_string()))?;
        Self::from_stored(
            self.0.event_id.clone(),
            self.0.room_id.clone(),
            &serde_json::to_string(&object)?,
        )
    }

    /// The whole event as canonical JSON: what other servers are sent and what the store keeps.
    pub fn json(&self) -> &str {
        &self.0.json
    }

    /// The whole event as a value for ruma's federation requests.
    pub fn to_raw(&self) -> Box<RawValue> {
        RawValue::from_string(self.json().to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }

    /// The whole event as an object.
    pub fn to_object(&self) -> Result<CanonicalJsonObject, PduError> {
        Ok(parse_object(self.json())?)
    }
}

impl PartialEq for Pdu {
    fn eq(&self, other: &Self) -> bool {
        self.0.event_id == other.0.event_id
    }
}

impl Eq for Pdu {}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.0.event_id
    }

    /// None where the JSON has none, since the rules refuse a version 12 `m.room.create` that names a room.
    fn room_id(&self) -> Option<&RoomId> {
        self.0.names_room.then_some(&*self.0.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.0.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.0.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.0.kind
    }

    fn content(&self) -> &RawValue {
        Pdu::content(self)
    }

    fn state_key(&self) -> Option<&str> {
        self.0.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.0.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.0.auth_events.iter())
    }

    /// None: ruma asks for it only under room versions 1 and 2, which are not supported.
    fn redacts(&self) -> Option<&Self::Id> {
        None
    }

    /// False: an event by itself does not know; [`StoredPdu`](crate::StoredPdu) does.
    fn rejected(&self) -> bool {
        false
    }
}

/// The room versions that can be taken part in, oldest first.
pub const SUPPORTED_VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// The version of new rooms.
pub const DEFAULT_VERSION: RoomVersionId = RoomVersionId::V12;

/// All that differs for this room version.
pub fn rules(version: &RoomVersionId) -> Result<RoomVersionRules, PduError> {
    if SUPPORTED_VERSIONS.contains(version)
        && let Some(rules) = version.rules()
    {
        return Ok(rules);
    }
    Err(PduError::UnsupportedVersion(version.clone()))
}
