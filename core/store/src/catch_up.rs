//! What members compare when they catch up with each other: where a room stands, and which events lie how deep. It reads
//! events that stand in a room's graph only: no outliers, and none that were rejected.

use ruma::{OwnedEventId, OwnedRoomId, RoomId, ServerName};

use crate::{Moment, ReadTxn, StoreError, WriteTxn, departures::HELD_BY_THEN, intern::parse};

/// As the index `events_depth` has it.
const IN_THE_GRAPH: &str = "outlier = 0 AND status < 2";

impl ReadTxn<'_> {
    /// The rooms that two servers have users joined to, in the order of their names.
    pub fn rooms_in_common(&self, one: &ServerName, other: &ServerName) -> Result<Vec<OwnedRoomId>, StoreError> {
        self.names(
            "SELECT room_id FROM rooms JOIN room_servers AS a USING (room) JOIN room_servers AS b USING (room)
             WHERE a.server = (SELECT server FROM servers WHERE name = ?1)
               AND b.server = (SELECT server FROM servers WHERE name = ?2) ORDER BY room_id",
            "room id",
            (one.as_str(), other.as_str()),
        )
    }

    /// The greatest depth among a room's forward extremities; 0 if it has none.
    pub fn head_depth(&self, room: &RoomId) -> Result<u64, StoreError> {
        let sql = "SELECT max(depth) FROM forward_extremities JOIN events USING (event)
                   WHERE forward_extremities.room = (SELECT room FROM rooms WHERE room_id = ?)";
        let depth: Option<i64> = self.lookup(sql, [room.as_str()])?.flatten();
        Ok(depth.unwrap_or(0).try_into().unwrap_or(0))
    }

    /// The depth at which a window of so many of a room's deepest events begins, and whether the room has no more.
    pub fn depth_of_window(&self, room: &RoomId, window: usize) -> Result<(u64, bool), StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok((0, true));
        };
        let window = i64::try_from(window).unwrap_or(i64::MAX);
        let sql =
            format!("SELECT depth FROM events WHERE room = ? AND {IN_THE_GRAPH} ORDER BY depth DESC LIMIT 1 OFFSET ?");
        let beyond: Option<i64> = self.lookup(&sql, (room, window))?;
        if let Some(depth) = beyond {
            return Ok((depth.try_into().unwrap_or(0), false));
        }
        let sql = format!("SELECT min(depth) FROM events WHERE room = ? AND {IN_THE_GRAPH}");
        let first: Option<i64> = self.lookup(&sql, [room])?.flatten();
        Ok((first.unwrap_or(0).try_into().unwrap_or(0), true))
    }

    /// The events of a room that were held at a moment, at a depth or deeper, with their depths, the deepest first.
    pub fn events_from_depth(
        &self,
        room: &RoomId,
        depth: u64,
        moment: Moment,
        limit: usize,
    ) -> Result<Vec<(u64, OwnedEventId)>, StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok(Vec::new());
        };
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT depth, event_id FROM events WHERE room = ? AND {IN_THE_GRAPH} AND depth >= ? AND {HELD_BY_THEN}
             ORDER BY depth DESC, event_id LIMIT ?"
        ))?;
        let (depth, limit) = (
            i64::try_from(depth).unwrap_or(i64::MAX),
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        let (event, seq) = moment.parameters();
        let rows = statement.query_map((room, depth, event, seq, limit), |row| {
            let row: (i64, String) = (row.get(0)?, row.get(1)?);
            Ok(row)
        })?;
        rows.map(|row| {
            let (depth, id) = row?;
            Ok((depth.try_into().unwrap_or(0), parse("event id", &id)?))
        })
        .collect()
    }

    /// Events of a room's graph that are not held, since nobody had them when those after them came.
    pub fn gaps(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.names(
            "SELECT prev FROM gaps LEFT JOIN events ON event_id = prev AND outlier = 0
             WHERE gaps.room = (SELECT room FROM rooms WHERE room_id = ?) AND event IS NULL ORDER BY prev LIMIT 50",
            "event id",
            [room.as_str()],
        )
    }

    /// Whether events of a room wait to be sent to a server.
    pub fn has_outgoing(&self, server: &ServerName, room: &RoomId) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM outbox JOIN events USING (event)
                   WHERE outbox.server = (SELECT server FROM servers WHERE name = ?)
                     AND room = (SELECT room FROM rooms WHERE room_id = ?) LIMIT 1";
        let found: Option<i64> = self.lookup(sql, (server.as_str(), room.as_str()))?;
        Ok(found.is_some())
    }
}

impl WriteTxn<'_> {
    /// Remembers those of some events that are not held as gaps in a room's graph. They are forgotten when they are kept.
    pub fn note_gaps(&self, room: &RoomId, prev: &[OwnedEventId]) -> Result<(), StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok(());
        };
        for id in prev {
            if self.event_row(id)?.is_none_or(|held| held.outlier) {
                self.conn()
                    .prepare_cached("INSERT OR IGNORE INTO gaps (prev, room) VALUES (?, ?)")?
                    .execute((id.as_str(), room))?;
            }
        }
        Ok(())
    }

    /// Forgets the events of a room that wait to be sent to a server: it holds all that this one does.
    pub fn forget_outgoing(&self, server: &ServerName, room: &RoomId) -> Result<(), StoreError> {
        let sql = "DELETE FROM outbox WHERE server = (SELECT server FROM servers WHERE name = ?)
                   AND event IN (SELECT event FROM events WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
                                 AND outlier = 0 AND status = 0)";
        self.conn()
            .prepare_cached(sql)?
            .execute((server.as_str(), room.as_str()))?;
        Ok(())
    }
}
