//! The few state events that tell somebody outside a room what room it is. It tells nothing of who is in the room but
//! whoever invites.
//!
//! Client-server API, "Stripped state".

use ruma::{RoomId, RoomVersionId, UserId, events::StateEventType, room_version_rules::RoomIdFormatVersion};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    Pdu, PduError, RoomError, RoomReader, RoomView, json::parse_object, limits::MAX_STRIPPED_STATE, pdu::rules,
};

/// The types of event, all with an empty state key, that invitations and knocks show of a room.
pub const STRIPPED_TYPES: [StateEventType; 7] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
];

/// The events to show of a room, and the member event of `inviter`. Other servers are sent them whole; clients, by
/// [`stripped_event`](crate::stripped_event).
pub fn stripped_state<R: RoomReader>(
    view: &RoomView<'_, R>,
    inviter: Option<&UserId>,
) -> Result<Vec<Pdu>, RoomError<R::Error>> {
    let mut events = Vec::new();
    for kind in STRIPPED_TYPES {
        events.extend(view.event(kind, "")?);
    }
    if let Some(inviter) = inviter {
        events.extend(view.event(StateEventType::RoomMember, inviter.as_str())?);
    }
    Ok(events)
}

/// Prunes what another server sent with an invitation or a knock to what clients may be shown.
///
/// From room version 12 on the room's `m.room.create` must be among it and be the one that the room's id names: what
/// it says of the room is proven then. The rest is hearsay.
pub fn prune_stripped_state(
    events: &[Box<RawValue>],
    room: &RoomId,
    version: &RoomVersionId,
) -> Result<Vec<Box<RawValue>>, PduError> {
    #[derive(Deserialize, Serialize)]
    struct Stripped<'a> {
        #[serde(borrow)]
        content: &'a RawValue,
        sender: ruma::OwnedUserId,
        state_key: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let hashed_id = rules(version)?.room_id_format == RoomIdFormatVersion::V2;
    let mut pruned = Vec::new();
    let mut proven = !hashed_id;
    for event in events.iter().take(MAX_STRIPPED_STATE) {
        let object = parse_object(event.get())?;
        let stripped: Stripped<'_> = serde_json::from_str(event.get())?;
        if hashed_id && stripped.kind == StateEventType::RoomCreate.to_string() {
            if Pdu::from_json(&object, version)?.room_id() != room {
                return Err(PduError::WrongRoom(room.to_owned()));
            }
            proven = true;
        }
        pruned.push(to_raw_value(&stripped)?);
    }
    if !proven {
        return Err(PduError::Malformed(
            "the room's m.room.create is not among its stripped state".to_owned(),
        ));
    }
    Ok(pruned)
}
