//! Servers that are in a room no more: the room as it was when they left, which is what they may still read of it, and
//! whether those have heard of it who must. It decides nothing about who is answered.

use kith_engine::{Applied, EventStatus};
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use rusqlite::OptionalExtension;

use crate::{
    ReadTxn, Seq, StoreError, WriteTxn,
    packed::{pack_numbers, unpack_numbers},
};

/// A moment in what this node holds of a room: what came later lies beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    seq: i64,
    event: i64,
}

impl Moment {
    /// Now: nothing lies beyond it.
    pub const NOW: Self = Self {
        seq: i64::MAX,
        event: i64::MAX,
    };

    /// Two parameters for [`HELD_BY_THEN`].
    pub(crate) fn parameters(self) -> (i64, i64) {
        (self.event, self.seq)
    }
}

/// Whether an event row was held at a [`Moment`], by its place in the timeline where it has one. What is put in a place
/// before others later, as history, counts with those.
pub(crate) const HELD_BY_THEN: &str = "CASE WHEN stream IS NULL THEN event <= ? ELSE stream <= ? END";

/// How a server came to be in a room no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// When.
    pub moment: Moment,
    /// The room's forward extremities then.
    pub heads: Vec<OwnedEventId>,
    /// Whether an event of its own did it, so that it knows, and others may not.
    pub own_act: bool,
    /// Whether whoever must hear of it has.
    pub known: bool,
}

impl ReadTxn<'_> {
    /// How a server left a room, if it was there and is not, and this node saw how.
    pub fn departure(&self, room: &RoomId, server: &ServerName) -> Result<Option<Departure>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT seq, event, heads, own_act, known FROM departures
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
               AND server = (SELECT server FROM servers WHERE name = ?)",
        )?;
        let row = statement.query_row((room.as_str(), server.as_str()), |row| {
            let row: (i64, i64, Vec<u8>, bool, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok(row)
        });
        let Some((seq, event, heads, own_act, known)) = row.optional()? else {
            return Ok(None);
        };
        let heads = unpack_numbers(&heads)?.into_iter();
        Ok(Some(Departure {
            moment: Moment { seq, event },
            heads: heads.map(|event| self.event_name(event)).collect::<Result<_, _>>()?,
            own_act,
            known,
        }))
    }

    /// Whether an event was held at a moment.
    pub fn held_by(&self, id: &EventId, moment: Moment) -> Result<bool, StoreError> {
        let sql = format!("SELECT {HELD_BY_THEN} FROM events WHERE event_id = ?");
        let (event, seq) = moment.parameters();
        Ok(self.lookup(&sql, (event, seq, id.as_str()))?.unwrap_or(false))
    }

    /// The servers that an event of others removed from a room at a position.
    pub fn removed_at(&self, room: &RoomId, seq: Seq) -> Result<Vec<OwnedServerName>, StoreError> {
        self.names(
            "SELECT name FROM departures JOIN servers USING (server)
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND seq = ? AND own_act = 0",
            "server name",
            (room.as_str(), seq.0),
        )
    }

    /// The rooms of which one of two servers has left while the other one stayed, where that is still to be told: this node's
    /// own leaving to anybody, the other one's removal to itself.
    pub fn partings_to_tell(&self, own: &ServerName, other: &ServerName) -> Result<Vec<OwnedRoomId>, StoreError> {
        let sql = "SELECT room_id FROM departures JOIN rooms USING (room)
                   JOIN room_servers ON room_servers.room = departures.room
                    AND room_servers.server = (SELECT server FROM servers WHERE name = ?2)
                   WHERE departures.server = (SELECT server FROM servers WHERE name = ?1)
                     AND known = 0 AND own_act = ?3 ORDER BY room_id";
        let mut rooms: Vec<OwnedRoomId> = self.names(sql, "room id", (own.as_str(), other.as_str(), true))?;
        rooms.extend(self.names::<OwnedRoomId>(sql, "room id", (other.as_str(), own.as_str(), false))?);
        Ok(rooms)
    }
}

impl WriteTxn<'_> {
    /// Whoever must hear that a server left a room has.
    pub fn note_departure_known(&self, room: &RoomId, server: &ServerName) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "UPDATE departures SET known = 1 WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
                   AND server = (SELECT server FROM servers WHERE name = ?)",
            )?
            .execute((room.as_str(), server.as_str()))?;
        Ok(())
    }

    /// The last user of a server is gone, or the first has come: what follows is for [`WriteTxn::settle_departures`].
    pub(crate) fn set_departed(&self, room: i64, server: i64, departed: Option<Seq>) -> Result<(), StoreError> {
        match departed {
            Some(seq) => self
                .conn()
                .prepare_cached(
                    "INSERT OR REPLACE INTO departures (room, server, seq, event, heads, own_act, known)
                     VALUES (?, ?, ?, 0, x'', 0, 0)",
                )?
                .execute((room, server, seq.0))?,
            None => self
                .conn()
                .prepare_cached("DELETE FROM departures WHERE room = ? AND server = ?")?
                .execute((room, server))?,
        };
        Ok(())
    }

    /// Completes the departures that an event has just brought about. Where something lies between it and what is held, as
    /// when this node comes back to a room, nobody here can tell how those servers left; and of an event that was refuted, none left.
    pub(crate) fn settle_departures(
        &self,
        room: i64,
        event: i64,
        applied: &Applied,
        seq: Seq,
    ) -> Result<(), StoreError> {
        let pdu = &applied.pdu;
        let mut statement = self
            .conn()
            .prepare_cached("SELECT server FROM departures WHERE room = ? AND seq = ?")?;
        let servers = statement.query_map((room, seq.0), |row| row.get(0))?;
        let servers: Vec<i64> = servers.collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Ok(());
        }
        let mut connected = applied.refuted.is_none();
        for prev in pdu.prev_events() {
            let held = self.event_row(prev)?;
            connected &= held.is_some_and(|held| !held.outlier && held.status != EventStatus::Rejected);
        }
        if !connected {
            self.conn()
                .prepare_cached("DELETE FROM departures WHERE room = ? AND seq = ?")?
                .execute((room, seq.0))?;
            return Ok(());
        }
        let mut heads = self
            .conn()
            .prepare_cached("SELECT event FROM forward_extremities WHERE room = ?")?
            .query_map([room], |row| row.get(0))?
            .collect::<Result<Vec<i64>, _>>()?;
        let heads = pack_numbers(&mut heads);
        let author = self.intern_server(pdu.sender().server_name())?;
        for server in servers {
            self.conn()
                .prepare_cached(
                    "UPDATE departures SET event = ?, heads = ?, own_act = ? WHERE room = ? AND server = ?",
                )?
                .execute((event, &heads, server == author, room, server))?;
        }
        Ok(())
    }
}
