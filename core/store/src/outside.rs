//! Memberships of local users in rooms that this node is not in (invites and knocks as other servers told them), and
//! the rooms that users forgot. What the node's own rooms say of members stands elsewhere.

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    events::room::member::MembershipState,
};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::value::RawValue;

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// A local user's standing in a room that this node is not in.
#[derive(Debug, Clone)]
pub struct OutsideMembership {
    /// The user.
    pub user_id: OwnedUserId,
    /// The room.
    pub room_id: OwnedRoomId,
    /// `invite`, `knock`, or `leave` once that is over.
    pub membership: MembershipState,
    /// When it came to be.
    pub seq: Seq,
    /// The server that told, through which the room can be answered.
    pub via: OwnedServerName,
    /// The room's version.
    pub version: RoomVersionId,
    /// The event that says so.
    pub event_id: OwnedEventId,
    /// That event, in federation format.
    pub event: Box<RawValue>,
    /// What the other server tells of the room: stripped state events.
    pub state: Vec<Box<RawValue>>,
}

/// What to keep of a standing; its place in the stream is given by the store.
#[derive(Debug, Clone, Copy)]
pub struct NewOutsideMembership<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The room.
    pub room_id: &'a RoomId,
    /// `invite`, `knock` or `leave`.
    pub membership: &'a MembershipState,
    /// The server that told, through which the room can be answered.
    pub via: &'a ServerName,
    /// The room's version.
    pub version: &'a RoomVersionId,
    /// The event that says so.
    pub event_id: &'a EventId,
    /// That event, in federation format.
    pub event: &'a RawValue,
    /// Stripped state events.
    pub state: &'a [Box<RawValue>],
}

const COLUMNS: &str = "user_id, room_id, membership, seq, via, version, event_id, event, state";

fn outside_membership(row: &Row<'_>) -> rusqlite::Result<OutsideMembership> {
    Ok(OutsideMembership {
        user_id: column::id(row, 0)?,
        room_id: column::id(row, 1)?,
        membership: MembershipState::from(row.get::<_, String>(2)?),
        seq: Seq(row.get(3)?),
        via: column::id(row, 4)?,
        version: column::id(row, 5)?,
        event_id: column::id(row, 6)?,
        event: column::json(row, 7)?,
        state: column::json(row, 8)?,
    })
}

impl ReadTxn<'_> {
    /// A user's standing in a room that this node is not in.
    pub fn outside_membership(&self, user: &UserId, room: &RoomId) -> Result<Option<OutsideMembership>, StoreError> {
        let query = format!("SELECT {COLUMNS} FROM outside_memberships WHERE user_id = ?1 AND room_id = ?2");
        let found = self
            .conn()
            .prepare_cached(&query)?
            .query_row([user.as_str(), room.as_str()], outside_membership)
            .optional()?;
        Ok(found)
    }

    /// All such standings of a user that changed after `after` and not after `upto`, oldest first.
    pub fn outside_memberships_between(
        &self,
        user: &UserId,
        after: Seq,
        upto: Seq,
    ) -> Result<Vec<OutsideMembership>, StoreError> {
        let query = format!(
            "SELECT {COLUMNS} FROM outside_memberships WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq"
        );
        let mut query = self.conn().prepare_cached(&query)?;
        let rows = query.query_map(params![user.as_str(), after.0, upto.0], outside_membership)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The users with such a standing in a room.
    pub fn outside_users(&self, room: &RoomId) -> Result<Vec<OwnedUserId>, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT user_id FROM outside_memberships WHERE room_id = ?1")?;
        let rows = query.query_map([room.as_str()], |row| column::id(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether a user left a room and asked to forget it.
    pub fn is_forgotten(&self, user: &UserId, room: &RoomId) -> Result<bool, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT 1 FROM forgotten_rooms WHERE user_id = ?1 AND room_id = ?2")?;
        Ok(query.exists([user.as_str(), room.as_str()])?)
    }

    /// The rooms that a user asked to forget.
    pub fn forgotten_rooms(&self, user: &UserId) -> Result<Vec<OwnedRoomId>, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT room_id FROM forgotten_rooms WHERE user_id = ?1 ORDER BY room_id")?;
        let rows = query.query_map([user.as_str()], |row| column::id(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Keeps a standing in place of the one before. A room that the user had forgotten comes back.
    pub fn set_outside_membership(&self, new: &NewOutsideMembership<'_>) -> Result<Seq, StoreError> {
        let seq = self.next_seq()?;
        let state = serde_json::to_string(new.state).map_err(|error| StoreError::Corrupt {
            what: "stripped state",
            reason: error.to_string(),
        })?;
        let insert = format!(
            "INSERT OR REPLACE INTO outside_memberships ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
        );
        self.conn().prepare_cached(&insert)?.execute(params![
            new.user_id.as_str(),
            new.room_id.as_str(),
            new.membership.as_str(),
            seq.0,
            new.via.as_str(),
            new.version.as_str(),
            new.event_id.as_str(),
            new.event.get(),
            state,
        ])?;
        self.unforget_room(new.user_id, new.room_id)?;
        Ok(seq)
    }

    /// Drops a standing: the room's own state tells from now on.
    pub fn remove_outside_membership(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM outside_memberships WHERE user_id = ?1 AND room_id = ?2")?
            .execute([user.as_str(), room.as_str()])?;
        Ok(())
    }

    /// Remembers that a user wants to see no more of a room.
    pub fn forget_room(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        self.remove_outside_membership(user, room)?;
        let seq = self.next_seq()?;
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO forgotten_rooms (user_id, room_id, seq) VALUES (?1, ?2, ?3)")?
            .execute(params![user.as_str(), room.as_str(), seq.0])?;
        Ok(())
    }

    /// Takes that back: the user is invited or joined anew.
    pub fn unforget_room(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM forgotten_rooms WHERE user_id = ?1 AND room_id = ?2")?
            .execute([user.as_str(), room.as_str()])?;
        Ok(())
    }
}
