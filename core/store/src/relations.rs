//! Which events relate to which, and the threads they form. What a relation means for either event is not judged here.
//!
//! Client-server API, "Forming relationships between events".

use kith_engine::Pdu;
use ruma::{EventId, OwnedEventId, RoomId, UserId};
use rusqlite::params;
use serde::Deserialize;

use crate::{
    Direction, ReadTxn, Seq, StoreError, TimelineEvent, WriteTxn,
    events::EventRow,
    intern::{missing, parse},
};

/// Longer relation types are not indexed: nothing that exists comes near, and a stranger chooses them.
const MAX_REL_TYPE: usize = 255;

/// How far relations of relations are followed.
///
/// Client-server API, `GET /relations`: "It is recommended that at least 3 levels of relationships are traversed."
pub const RECURSION_DEPTH: u32 = 3;

/// Which relations of an event are asked for.
#[derive(Debug, Clone, Copy)]
pub struct RelationQuery<'a> {
    /// The room of both events: relations from elsewhere do not count.
    pub room: &'a RoomId,
    /// The event that others relate to.
    pub target: &'a EventId,
    /// Only relations of this type.
    pub rel_type: Option<&'a str>,
    /// Only events of this type.
    pub kind: Option<&'a str>,
    /// Whether to follow relations of relations.
    pub recurse: bool,
    /// Only events beyond this place in this direction, nearest first.
    pub from: Seq,
    /// See [`RelationQuery::from`].
    pub direction: Direction,
    /// The most events.
    pub limit: usize,
}

/// What a thread amounts to.
#[derive(Debug, Clone)]
pub struct ThreadRow {
    /// The newest event in it.
    pub latest: TimelineEvent,
    /// Events in it, the root not counted.
    pub count: u64,
    /// Whether a user wrote any event in it.
    pub participated: bool,
}

/// A thread of a room, as [`ReadTxn::threads`] lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadPlace {
    /// The event that it starts from.
    pub root: OwnedEventId,
    /// The place of its newest event.
    pub latest: Seq,
}

impl ReadTxn<'_> {
    /// Whether any event relates to this one. One lookup, so that the many events without relations cost no more.
    pub fn has_relations(&self, room: &RoomId, target: &EventId) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM relations WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND target = ? LIMIT 1",
        )?;
        Ok(statement.exists([room.as_str(), target.as_str()])?)
    }

    /// Events that relate to one.
    pub fn relations(&self, query: &RelationQuery<'_>) -> Result<Vec<TimelineEvent>, StoreError> {
        let Some(room) = self.room_no(query.room)? else {
            return Ok(Vec::new());
        };
        let depth = if query.recurse { RECURSION_DEPTH } else { 1 };
        let (beyond, order) = match query.direction {
            Direction::Forward => (">", "ASC"),
            Direction::Backward => ("<", "DESC"),
        };
        // UNION, not UNION ALL: an event reached on two ways is told once.
        let sql = format!(
            "WITH RECURSIVE related (event, rel_type, stream, depth) AS (
                 SELECT event, rel_type, stream, 1 FROM relations WHERE room = ?3 AND target = ?1
                 UNION
                 SELECT r.event, r.rel_type, r.stream, related.depth + 1 FROM related
                 JOIN events AS parent ON parent.event = related.event
                 JOIN relations AS r ON r.room = ?3 AND r.target = parent.event_id
                 WHERE related.depth < ?2
             )
             SELECT DISTINCT {columns} FROM related JOIN events USING (event)
             WHERE events.stream {beyond} ?4
               AND (?5 IS NULL OR rel_type = ?5)
               AND (?6 IS NULL OR events.type = (SELECT type FROM types WHERE name = ?6))
             ORDER BY events.stream {order} LIMIT ?7",
            columns = EventRow::COLUMNS,
        );
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        let params = params![
            query.target.as_str(),
            depth,
            room,
            query.from.0,
            query.rel_type,
            query.kind,
            limit
        ];
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map(params, EventRow::read)?;
        let mut events = Vec::new();
        for row in rows {
            events.extend(self.timeline_entry(&row?)?);
        }
        Ok(events)
    }

    /// Ids of the events that relate to one by a type, oldest first, without those of some senders.
    pub fn relation_ids(
        &self,
        room: &RoomId,
        target: &EventId,
        rel_type: &str,
        except: &[&UserId],
        limit: usize,
    ) -> Result<Vec<OwnedEventId>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.names(
            "SELECT event_id FROM relations JOIN events USING (event)
             WHERE relations.room = (SELECT room FROM rooms WHERE room_id = ?3) AND target = ?1 AND rel_type = ?2
               AND relations.sender NOT IN (SELECT user FROM users WHERE user_id IN (SELECT value FROM json_each(?4)))
             ORDER BY relations.stream LIMIT ?5",
            "event id",
            params![target.as_str(), rel_type, room.as_str(), user_list(except), limit],
        )
    }

    /// Edits of a message that its author made, most recent first: candidates, of which the first valid one counts.
    ///
    /// Client-server API, "Server-side aggregation of `m.replace` relationships": by `origin_server_ts`, then by the
    /// largest event id.
    pub fn edits(&self, original: &Pdu, limit: usize) -> Result<Vec<TimelineEvent>, StoreError> {
        let sql = format!(
            "SELECT {columns} FROM relations JOIN events USING (event)
             WHERE relations.room = (SELECT room FROM rooms WHERE room_id = ?2) AND target = ?1
               AND rel_type = 'm.replace' AND key IS NULL
               AND relations.sender = (SELECT user FROM users WHERE user_id = ?3)
               AND type = (SELECT type FROM types WHERE name = ?4)
             ORDER BY ts DESC, event_id DESC LIMIT ?5",
            columns = EventRow::COLUMNS,
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let kind = original.kind().to_string();
        let params = params![
            original.event_id().as_str(),
            original.room_id().as_str(),
            original.sender().as_str(),
            kind,
            i64::try_from(limit).unwrap_or(i64::MAX),
        ];
        let rows = statement.query_map(params, EventRow::read)?;
        let mut events = Vec::new();
        for row in rows {
            events.extend(self.timeline_entry(&row?)?);
        }
        Ok(events)
    }

    /// The thread that starts from an event, as a user sees it who ignores some others; none if nobody else wrote in it.
    pub fn thread(
        &self,
        room: &RoomId,
        root: &EventId,
        reader: &UserId,
        ignored: &[&UserId],
    ) -> Result<Option<ThreadRow>, StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT {columns} FROM relations JOIN events USING (event)
             WHERE relations.room = ?3 AND target = ?1 AND rel_type = 'm.thread'
               AND relations.sender NOT IN (SELECT user FROM users WHERE user_id IN (SELECT value FROM json_each(?2)))
             ORDER BY relations.stream DESC LIMIT 1",
            columns = EventRow::COLUMNS,
        );
        let ignored = user_list(ignored);
        let mut statement = self.conn().prepare_cached(&sql)?;
        let mut rows = statement.query_map(params![root.as_str(), ignored, room], EventRow::read)?;
        let Some(latest) = rows.next() else {
            return Ok(None);
        };
        let latest = self.timeline_entry(&latest?)?.ok_or_else(|| missing("thread event"))?;
        let mut statement = self.conn().prepare_cached(
            "SELECT count(*), ifnull(max(sender = (SELECT user FROM users WHERE user_id = ?4)), 0) FROM relations
             WHERE room = ?3 AND target = ?1 AND rel_type = 'm.thread'
               AND sender NOT IN (SELECT user FROM users WHERE user_id IN (SELECT value FROM json_each(?2)))",
        )?;
        let params = params![root.as_str(), ignored, room, reader.as_str()];
        let (count, participated) = statement.query_row(params, |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Some(ThreadRow {
            latest,
            count,
            participated,
        }))
    }

    /// The threads of a room whose newest event stands before a place, newest first.
    pub fn threads(&self, room: &RoomId, before: Seq, limit: usize) -> Result<Vec<ThreadPlace>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT root, latest FROM threads
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?1) AND latest < ?2 ORDER BY latest DESC LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![room.as_str(), before.0, limit], |row| {
            let row: (String, i64) = (row.get(0)?, row.get(1)?);
            Ok(row)
        })?;
        rows.map(|row| {
            let (root, latest) = row?;
            Ok(ThreadPlace {
                root: parse("event id", &root)?,
                latest: Seq(latest),
            })
        })
        .collect()
    }
}

impl WriteTxn<'_> {
    /// Notes what a newly shown event says of another one, and its words.
    pub(crate) fn index_event(&self, event: i64, room: i64, stream: i64, pdu: &Pdu) -> Result<(), StoreError> {
        self.index_relation(event, room, stream, pdu)?;
        self.index_words(event, pdu)
    }

    /// Forgets both, as a redaction takes them away. `pdu` is the event before that.
    pub(crate) fn unindex_event(&self, event: i64, room: i64, stream: i64, pdu: &Pdu) -> Result<(), StoreError> {
        self.unindex_relation(room, stream, pdu)?;
        self.unindex_words(event, pdu)
    }

    fn index_relation(&self, event: i64, room: i64, stream: i64, pdu: &Pdu) -> Result<(), StoreError> {
        let Some(relation) = relation(pdu) else {
            return Ok(());
        };
        let sender = self.intern_user(pdu.sender())?;
        self.conn()
            .prepare_cached(
                "INSERT OR IGNORE INTO relations (room, target, rel_type, stream, event, sender)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute((
                room,
                relation.event_id.as_str(),
                &relation.rel_type,
                stream,
                event,
                sender,
            ))?;
        if relation.rel_type == THREAD {
            self.conn()
                .prepare_cached(
                    "INSERT INTO threads (room, root, latest) VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET latest = max(latest, excluded.latest)",
                )?
                .execute((room, relation.event_id.as_str(), stream))?;
        }
        Ok(())
    }

    fn unindex_relation(&self, room: i64, stream: i64, pdu: &Pdu) -> Result<(), StoreError> {
        let Some(relation) = relation(pdu) else {
            return Ok(());
        };
        let target = relation.event_id.as_str();
        self.conn()
            .prepare_cached("DELETE FROM relations WHERE room = ? AND target = ? AND rel_type = ? AND stream = ?")?
            .execute((room, target, &relation.rel_type, stream))?;
        if relation.rel_type != THREAD {
            return Ok(());
        }
        let newest = "SELECT max(stream) FROM relations WHERE room = ? AND target = ? AND rel_type = 'm.thread'";
        match self.lookup::<Option<i64>>(newest, (room, target))?.flatten() {
            Some(latest) => self
                .conn()
                .prepare_cached("UPDATE threads SET latest = ? WHERE room = ? AND root = ?")?
                .execute((latest, room, target))?,
            None => self
                .conn()
                .prepare_cached("DELETE FROM threads WHERE room = ? AND root = ?")?
                .execute((room, target))?,
        };
        Ok(())
    }
}

const THREAD: &str = "m.thread";

#[derive(Deserialize)]
struct Relation {
    rel_type: String,
    event_id: OwnedEventId,
}

/// The relation that an event tells of; none if it tells none, or one of a shape that nobody understands.
fn relation(pdu: &Pdu) -> Option<Relation> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Relation,
    }
    // Most events have none: the text says so before it is parsed.
    if !pdu.content_json().contains("m.relates_to") {
        return None;
    }
    let relation = pdu.content_as::<Content>().ok()?.relates_to;
    (relation.rel_type.len() <= MAX_REL_TYPE).then_some(relation)
}

/// A JSON array for `json_each`.
fn user_list(users: &[&UserId]) -> String {
    serde_json::Value::from_iter(users.iter().map(|user| user.as_str())).to_string()
}
