//! What `/sync` and its kin ask of rooms as wholes: which ones have news for a user, and who stands for a room without a
//! name. Single events and pages of them are events.rs's part.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState,
};
use rusqlite::params;

use crate::{
    Direction, Moment, ReadTxn, Seq, StoreError, TimelineEvent, column,
    events::EventRow,
    intern::parse,
    members::{from_number, to_number},
};

/// A room that a user has a place in, as `/sync` looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The user's membership.
    pub membership: MembershipState,
    /// When the membership event became what it is.
    pub member_seq: Seq,
    /// When anything was last added to the timeline or changed in the state.
    pub active: Seq,
}

impl ReadTxn<'_> {
    /// The rooms of which a user is, was or may become a member, those left or refused only if that came about after a
    /// position.
    pub fn sync_rooms(&self, user: &UserId, left_after: Seq) -> Result<Vec<SyncRoom>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, membership, members.seq,
                 max(
                     ifnull((SELECT max(stream) FROM events WHERE events.room = members.room AND stream IS NOT NULL), 0),
                     ifnull((SELECT max(seq) FROM room_states WHERE room_states.room = members.room), 0)
                 )
             FROM members JOIN rooms USING (room)
             WHERE user = (SELECT user FROM users WHERE user_id = ?1)
               AND (membership NOT IN (?2, ?3) OR members.seq > ?4)",
        )?;
        let (leave, ban) = (to_number(&MembershipState::Leave), to_number(&MembershipState::Ban));
        let rows = statement.query_map(params![user.as_str(), leave, ban, left_after.0], |row| {
            let row: (String, i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(row)
        })?;
        rows.map(|row| {
            let (room_id, membership, member_seq, active) = row?;
            Ok(SyncRoom {
                room_id: parse("room id", &room_id)?,
                membership: from_number(membership)?,
                member_seq: Seq(member_seq),
                active: Seq(active),
            })
        })
        .collect()
    }

    /// The first members of a room with one of these memberships, without one user, by when their membership event came.
    pub fn heroes(
        &self,
        room: &RoomId,
        except: &UserId,
        memberships: &[MembershipState],
        limit: usize,
    ) -> Result<Vec<OwnedUserId>, StoreError> {
        let wanted = serde_json::Value::from_iter(memberships.iter().map(to_number)).to_string();
        // Events that came with a join have no place in the timeline; they are older than what has.
        self.names(
            "SELECT user_id FROM members JOIN users USING (user) JOIN events USING (event)
             WHERE members.room = (SELECT room FROM rooms WHERE room_id = ?1)
               AND membership IN (SELECT value FROM json_each(?2)) AND user_id <> ?3
             ORDER BY stream NULLS FIRST, depth, members.event LIMIT ?4",
            "user id",
            params![
                room.as_str(),
                wanted,
                except.as_str(),
                i64::try_from(limit).unwrap_or(i64::MAX)
            ],
        )
    }

    /// Events of a room's timeline as it was at a moment, at or after a time or at or before it, nearest first. Costs the timeline's length.
    pub fn events_near(
        &self,
        room: &RoomId,
        ts: MilliSecondsSinceUnixEpoch,
        direction: Direction,
        moment: Moment,
        limit: usize,
    ) -> Result<Vec<TimelineEvent>, StoreError> {
        let (side, order) = match direction {
            Direction::Forward => (">=", "ASC"),
            Direction::Backward => ("<=", "DESC"),
        };
        let sql = format!(
            "SELECT {columns} FROM events
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?1) AND stream <= ?3 AND ts {side} ?2
             ORDER BY ts {order}, stream {order} LIMIT ?4",
            columns = EventRow::COLUMNS,
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(
            params![room.as_str(), column::millis(ts), moment.parameters().1, limit],
            EventRow::read,
        )?;
        let mut events = Vec::new();
        for row in rows {
            events.extend(self.timeline_entry(&row?)?);
        }
        Ok(events)
    }
}
