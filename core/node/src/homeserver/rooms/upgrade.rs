//! Room upgrades: a new room of another version that takes the old one's place, in one commit.
//!
//! Client-server API, "Room upgrades".

use kith_engine::{CreateRoom, Draft, RoomReader, rules};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
};

use super::{
    Rooms,
    commit::{Commit, unsupported_version},
    create::NewRoom,
    send::parse_content_of,
    state::{CurrentRoom, may_send_state, room_of_member},
};
use crate::Error;

/// State that the new room takes over; power levels, which need care, apart.
const TAKEN_OVER: [StateEventType; 9] = [
    StateEventType::RoomServerAcl,
    StateEventType::RoomEncryption,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
];

/// The power that writing in a replaced room takes, at the least.
const CLOSED_LEVEL: i64 = 50;

impl Rooms {
    /// Replaces a room by a new one of another version.
    pub async fn upgrade_room(
        &self,
        user: &UserId,
        room: &RoomId,
        version: RoomVersionId,
        additional_creators: Vec<OwnedUserId>,
    ) -> Result<OwnedRoomId, Error> {
        if rules(&version).is_err() {
            return Err(unsupported_version(&format!("room version {version} is not supported")));
        }
        let mut new = {
            let (user, room) = (user.to_owned(), room.to_owned());
            let read = self
                .ctx
                .store
                .read(move |txn| successor(txn, &user, &room, version, &additional_creators));
            read.await?
        };
        new.room.creator_profile = self.member_profile(user).await?;
        let (user, old) = (user.to_owned(), room.to_owned());
        self.make_room(new, move |commit, new| commit.close_room(&user, &old, new))
            .await
    }
}

impl Commit<'_, '_> {
    /// Ends a room that another one replaces.
    fn close_room(&mut self, user: &UserId, old: &RoomId, new: &RoomId) -> Result<(), Error> {
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
        let tombstone = CanonicalJsonObject::from([
            ("body".to_owned(), text("This room has been replaced")),
            ("replacement_room".to_owned(), text(new.as_str())),
        ]);
        self.make(old, &state(user, StateEventType::RoomTombstone, tombstone))?;
        let current = room_of_member(self.txn, old, user)?;
        let has_alias = current.event(StateEventType::RoomCanonicalAlias, "")?.is_some();
        if has_alias && may_send_state(&current, user, StateEventType::RoomCanonicalAlias)? {
            self.make(
                old,
                &state(user, StateEventType::RoomCanonicalAlias, CanonicalJsonObject::new()),
            )?;
        }
        let published = self.txn.is_published(old)?;
        self.txn.move_aliases(old, new)?;
        self.txn.set_published(old, false)?;
        self.txn.set_published(new, published)?;
        // A courtesy to those who do not know tombstones: whoever may not silence the room leaves it open.
        if may_send_state(&current, user, StateEventType::RoomPowerLevels)? {
            let mut levels = parse_content_of(&current, StateEventType::RoomPowerLevels)?.unwrap_or_default();
            let default = levels.get("users_default").and_then(|level| level.as_integer());
            let closed = default.map_or(0, i64::from).saturating_add(1).max(CLOSED_LEVEL);
            for field in ["events_default", "invite"] {
                let stands = levels
                    .get(field)
                    .and_then(|level| level.as_integer())
                    .map_or(0, i64::from);
                let level = Int::new_saturating(stands.max(closed));
                levels.insert(field.to_owned(), CanonicalJsonValue::Integer(level));
            }
            if let Err(error) = self.make(old, &state(user, StateEventType::RoomPowerLevels, levels)) {
                tracing::info!(%error, room = %old, "a replaced room stays open");
            }
        }
        Ok(())
    }
}

fn state(user: &UserId, kind: StateEventType, content: CanonicalJsonObject) -> Draft {
    Draft {
        kind: TimelineEventType::from(kind),
        state_key: Some(String::new()),
        content,
        sender: user.to_owned(),
        redacts: None,
    }
}

/// The room that is to replace another one.
fn successor(
    txn: &kith_store::ReadTxn<'_>,
    user: &UserId,
    old: &RoomId,
    version: RoomVersionId,
    additional_creators: &[OwnedUserId],
) -> Result<NewRoom, Error> {
    let current = room_of_member(txn, old, user)?;
    if !may_send_state(&current, user, StateEventType::RoomTombstone)? {
        return Err(Error::forbidden("you may not replace this room"));
    }
    let rules = rules(&version)?.authorization;
    let mut room = CreateRoom::new(user.to_owned());
    room.creation_content = creation_content(txn, &current, old, &version)?;
    if !additional_creators.is_empty() {
        if !rules.additional_room_creators {
            return Err(Error::invalid_param("rooms of this version have one creator only"));
        }
        let creators = additional_creators
            .iter()
            .map(|user| CanonicalJsonValue::String(user.to_string()));
        let creators = CanonicalJsonValue::Array(creators.collect());
        room.creation_content.insert("additional_creators".to_owned(), creators);
    }
    for kind in TAKEN_OVER {
        if let Some(content) = parse_content_of(&current, kind.clone())? {
            room.initial_state.push(((kind, String::new()), content));
        }
    }
    if let Some(mut levels) = parse_content_of(&current, StateEventType::RoomPowerLevels)? {
        if let Some(CanonicalJsonValue::Object(users)) = levels.get_mut("users") {
            if rules.explicitly_privilege_room_creators {
                // Creators stand above all levels there, and must not be listed.
                users.remove(user.as_str());
                for creator in additional_creators {
                    users.remove(creator.as_str());
                }
            } else {
                let level = Int::from(100);
                users.insert(user.to_string(), CanonicalJsonValue::Integer(level));
            }
        }
        let key = (StateEventType::RoomPowerLevels, String::new());
        room.initial_state.push((key, levels));
    }
    room.version = version;
    Ok(NewRoom { room, published: false })
}

/// What the old room's `m.room.create` says, and where the new room comes from.
fn creation_content(
    txn: &kith_store::ReadTxn<'_>,
    current: &CurrentRoom<'_, '_>,
    old: &RoomId,
    version: &RoomVersionId,
) -> Result<CanonicalJsonObject, Error> {
    let mut content = parse_content_of(current, StateEventType::RoomCreate)?.unwrap_or_default();
    for field in ["creator", "room_version", "predecessor", "additional_creators"] {
        content.remove(field);
    }
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    let mut predecessor = CanonicalJsonObject::from([("room_id".to_owned(), text(old.as_str()))]);
    // From version 12 on the new room's id follows from this content, so that it cannot name the tombstone.
    if *version != RoomVersionId::V12
        && let Some(last) = txn.forward_extremities(old)?.last()
    {
        predecessor.insert("event_id".to_owned(), text(last.as_str()));
    }
    content.insert("predecessor".to_owned(), CanonicalJsonValue::Object(predecessor));
    Ok(content)
}
