//! Who is in which room, as the current states say, and which servers that involves. It reads no history.

use kith_engine::Pdu;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    events::room::member::MembershipState,
};
use rusqlite::{OptionalExtension, Row};
use serde::Deserialize;

use crate::{
    ReadTxn, Seq, StoreError, WriteTxn,
    e2ee::JoinChange,
    intern::{missing, parse},
};

/// A user's place in a room, as the current state has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user_id: OwnedUserId,
    /// The membership.
    pub membership: MembershipState,
    /// The `m.room.member` event that says so.
    pub event_id: OwnedEventId,
    /// When the entry became what it is.
    pub seq: Seq,
}

/// One of the rooms that a user's membership is known in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomMembership {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The user's membership there.
    pub membership: MembershipState,
    /// The `m.room.member` event that says so.
    pub event_id: OwnedEventId,
    /// When the entry became what it is.
    pub seq: Seq,
}

impl ReadTxn<'_> {
    /// A user's place in a room; none if the current state has no word of it.
    pub fn member(&self, room: &RoomId, user: &UserId) -> Result<Option<Member>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, membership, event_id, members.seq FROM members JOIN users USING (user) JOIN events USING (event)
             WHERE members.room = (SELECT room FROM rooms WHERE room_id = ?)
               AND user = (SELECT user FROM users WHERE user_id = ?)",
        )?;
        let row = statement.query_row((room.as_str(), user.as_str()), |row| Ok(member(row)));
        row.optional()?.transpose()
    }

    /// A user's membership in a room; `leave` if the current state has no word of it.
    pub fn membership(&self, room: &RoomId, user: &UserId) -> Result<MembershipState, StoreError> {
        let number = self.lookup(
            "SELECT membership FROM members WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
             AND user = (SELECT user FROM users WHERE user_id = ?)",
            (room.as_str(), user.as_str()),
        )?;
        number.map_or(Ok(MembershipState::Leave), from_number)
    }

    /// The members of a room with these memberships, by user number: the order is stable and means nothing.
    pub fn members(&self, room: &RoomId, wanted: &[MembershipState]) -> Result<Vec<Member>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, membership, event_id, members.seq FROM members INDEXED BY members_membership
             JOIN users USING (user) JOIN events USING (event)
             WHERE members.room = (SELECT room FROM rooms WHERE room_id = ?) AND membership = ? ORDER BY user",
        )?;
        let mut members = Vec::new();
        for membership in wanted {
            let rows = statement.query_map((room.as_str(), to_number(membership)), |row| Ok(member(row)))?;
            for row in rows {
                members.push(row??);
            }
        }
        Ok(members)
    }

    /// How many users of a room have a membership.
    pub fn member_count(&self, room: &RoomId, membership: &MembershipState) -> Result<u64, StoreError> {
        let count = self.lookup(
            "SELECT count(*) FROM members WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND membership = ?",
            (room.as_str(), to_number(membership)),
        )?;
        Ok(count.unwrap_or(0))
    }

    /// The rooms in which a user has one of these memberships.
    pub fn rooms_of(&self, user: &UserId, wanted: &[MembershipState]) -> Result<Vec<RoomMembership>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, membership, event_id, members.seq FROM members JOIN rooms USING (room)
             JOIN events ON events.event = members.event
             WHERE user = (SELECT user FROM users WHERE user_id = ?) AND membership = ? ORDER BY members.room",
        )?;
        let mut rooms = Vec::new();
        for membership in wanted {
            let rows = statement.query_map((user.as_str(), to_number(membership)), |row| {
                let row: (String, i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(row)
            })?;
            for row in rows {
                let (room_id, membership, event_id, seq) = row?;
                rooms.push(RoomMembership {
                    room_id: parse("room id", &room_id)?,
                    membership: from_number(membership)?,
                    event_id: parse("event id", &event_id)?,
                    seq: Seq(seq),
                });
            }
        }
        Ok(rooms)
    }

    /// The servers with a user joined to a room, this node's own included.
    pub fn joined_servers(&self, room: &RoomId) -> Result<Vec<OwnedServerName>, StoreError> {
        self.names(
            "SELECT name FROM room_servers JOIN servers USING (server)
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?)",
            "server name",
            [room.as_str()],
        )
    }

    /// Whether a server has a user joined to a room.
    pub fn is_server_joined(&self, room: &RoomId, server: &ServerName) -> Result<bool, StoreError> {
        let found: Option<i64> = self.lookup(
            "SELECT 1 FROM room_servers WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
             AND server = (SELECT server FROM servers WHERE name = ?)",
            (room.as_str(), server.as_str()),
        )?;
        Ok(found.is_some())
    }

    /// The rooms that a server has a user joined to.
    pub fn rooms_of_server(&self, server: &ServerName) -> Result<Vec<OwnedRoomId>, StoreError> {
        self.names(
            "SELECT room_id FROM room_servers JOIN rooms USING (room)
             WHERE server = (SELECT server FROM servers WHERE name = ?) ORDER BY room",
            "room id",
            [server.as_str()],
        )
    }

    /// The servers with a user joined to a room that this user is joined to, each once, this node's own included: who
    /// is told of the user's devices, presence and profile.
    pub fn servers_sharing_a_room(&self, user: &UserId) -> Result<Vec<OwnedServerName>, StoreError> {
        self.names(
            "SELECT DISTINCT name FROM members JOIN room_servers USING (room) JOIN servers USING (server)
             WHERE user = (SELECT user FROM users WHERE user_id = ?) AND membership = 0",
            "server name",
            [user.as_str()],
        )
    }

    /// The users joined to a room that this user is joined to, each once, the user included.
    pub fn users_sharing_a_room(&self, user: &UserId) -> Result<Vec<OwnedUserId>, StoreError> {
        self.names(
            "SELECT DISTINCT user_id FROM members AS mine JOIN members AS theirs
             ON theirs.room = mine.room AND theirs.membership = 0
             JOIN users ON users.user = theirs.user
             WHERE mine.user = (SELECT user FROM users WHERE user_id = ?) AND mine.membership = 0",
            "user id",
            [user.as_str()],
        )
    }

    /// The rooms that both users are joined to.
    pub fn shared_rooms(&self, one: &UserId, other: &UserId) -> Result<Vec<OwnedRoomId>, StoreError> {
        self.names(
            "SELECT room_id FROM members AS mine JOIN members AS theirs ON theirs.room = mine.room
             JOIN rooms ON rooms.room = mine.room
             WHERE mine.user = (SELECT user FROM users WHERE user_id = ?1) AND mine.membership = 0
               AND theirs.user = (SELECT user FROM users WHERE user_id = ?2) AND theirs.membership = 0
             ORDER BY mine.room",
            "room id",
            (one.as_str(), other.as_str()),
        )
    }

    /// A column of identifiers.
    pub(crate) fn names<T>(
        &self,
        sql: &str,
        what: &'static str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'t> TryFrom<&'t str, Error = ruma::IdParseError>,
    {
        let mut statement = self.conn().prepare_cached(sql)?;
        let rows = statement.query_map(params, |row| row.get::<_, String>(0))?;
        rows.map(|row| parse(what, &row?)).collect()
    }
}

impl WriteTxn<'_> {
    /// Writes that a user's `m.room.member` entry in a room's current state is now this event, or none.
    pub(crate) fn set_member(
        &self,
        room: i64,
        user: &UserId,
        event: Option<(i64, &Pdu)>,
        seq: Seq,
    ) -> Result<(), StoreError> {
        let user_no = self.intern_user(user)?;
        let sql = "SELECT membership FROM members WHERE room = ? AND user = ?";
        let before: Option<i64> = self.lookup(sql, (room, user_no))?;
        let after = match event {
            Some((event, pdu)) => {
                let membership = to_number(&pdu_membership(pdu)?);
                self.conn()
                    .prepare_cached(
                        "INSERT INTO members (room, user, membership, event, seq) VALUES (?, ?, ?, ?, ?)
                         ON CONFLICT DO UPDATE
                         SET membership = excluded.membership, event = excluded.event, seq = excluded.seq",
                    )?
                    .execute((room, user_no, membership, event, seq.0))?;
                Some(membership)
            }
            None => {
                self.conn()
                    .prepare_cached("DELETE FROM members WHERE room = ? AND user = ?")?
                    .execute((room, user_no))?;
                None
            }
        };
        let joined = after == Some(JOIN);
        if joined == (before == Some(JOIN)) {
            return Ok(());
        }
        self.count_joined(room, user, if joined { 1 } else { -1 }, seq)?;
        self.sharing_changed(JoinChange {
            room,
            user,
            user_no,
            joined,
            seq,
        })
    }

    fn count_joined(&self, room: i64, user: &UserId, by: i64, seq: Seq) -> Result<(), StoreError> {
        let server = self.intern_server(user.server_name())?;
        self.conn()
            .prepare_cached(
                "INSERT INTO room_servers (room, server, joined) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET joined = joined + excluded.joined",
            )?
            .execute((room, server, by))?;
        if by > 0 {
            return self.set_departed(room, server, None);
        }
        let gone = self
            .conn()
            .prepare_cached("DELETE FROM room_servers WHERE room = ? AND server = ? AND joined <= 0")?
            .execute((room, server))?;
        if gone > 0 {
            self.set_departed(room, server, Some(seq))?;
        }
        Ok(())
    }
}

const JOIN: i64 = 0;

pub(crate) fn to_number(membership: &MembershipState) -> i64 {
    match membership {
        MembershipState::Join => JOIN,
        MembershipState::Invite => 1,
        MembershipState::Ban => 3,
        MembershipState::Knock => 4,
        // The authorisation rules let no other membership in.
        _ => 2,
    }
}

pub(crate) fn from_number(number: i64) -> Result<MembershipState, StoreError> {
    Ok(match number {
        JOIN => MembershipState::Join,
        1 => MembershipState::Invite,
        2 => MembershipState::Leave,
        3 => MembershipState::Ban,
        4 => MembershipState::Knock,
        _ => return Err(missing("membership")),
    })
}

fn member(row: &Row<'_>) -> Result<Member, StoreError> {
    Ok(Member {
        user_id: parse("user id", row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?,
        membership: from_number(row.get(1)?)?,
        event_id: parse("event id", row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?)?,
        seq: Seq(row.get(3)?),
    })
}

/// The membership that an `m.room.member` event gives.
fn pdu_membership(pdu: &Pdu) -> Result<MembershipState, StoreError> {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    let id: &EventId = pdu.event_id();
    pdu.content_as::<Content>()
        .map(|content| content.membership)
        .map_err(|error| StoreError::Corrupt {
            what: "m.room.member content",
            reason: format!("{id}: {error}"),
        })
}
