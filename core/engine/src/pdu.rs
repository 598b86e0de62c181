//! One room event in its federation format. It holds the canonical JSON as received and never alters it.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId, events::TimelineEventType,
};
use serde_json::value::RawValue;

/// Why bytes are not an event.
#[derive(Debug, thiserror::Error)]
pub enum PduError {
    /// Not JSON, not canonicalisable, or a field has the wrong shape.
    #[error("not a well-formed event: {0}")]
    Malformed(String),
}

/// A room event (PDU): parsed fields beside the canonical JSON they came from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pdu(#[allow(dead_code)] Arc<Inner>);

#[derive(Debug)]
#[allow(dead_code)]
struct Inner {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    kind: TimelineEventType,
    state_key: Option<String>,
    content: Box<RawValue>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
    redacts: Option<OwnedEventId>,
    json: Box<RawValue>,
}
