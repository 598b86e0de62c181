//! Event rows: finding, reading and keeping single events, and the timeline they form. What an event means for its room
//! is rooms.rs's part.

use std::collections::{BTreeSet, HashSet};

use kith_engine::{EventStatus, Pdu, StateId, StoredPdu};
use ruma::{EventId, OwnedEventId, RoomId};
use rusqlite::{OptionalExtension, Row};
use serde_json::value::RawValue;

use crate::{
    ReadTxn, Seq, StoreError, WriteTxn,
    intern::{missing, parse},
    packed::{pack_numbers, unpack_numbers},
};

/// An event at its place in a room's timeline.
#[derive(Debug, Clone)]
pub struct TimelineEvent {
    /// Its place: positive for events as they arrived, negative for history fetched later, oldest lowest.
    pub stream: Seq,
    /// The event; without its content where it is redacted.
    pub pdu: Pdu,
    /// The `m.room.redaction` event that redacted it.
    pub redacted_by: Option<OwnedEventId>,
    /// The state before it.
    pub state_before: Option<StateId>,
    /// The state after it.
    pub state_after: Option<StateId>,
}

/// Which way to walk a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards newer events.
    Forward,
    /// Towards older events.
    Backward,
}

/// An event's row, its JSON still unparsed.
pub(crate) struct EventRow {
    pub(crate) event: i64,
    pub(crate) room: i64,
    pub(crate) stream: Option<i64>,
    pub(crate) status: EventStatus,
    pub(crate) outlier: bool,
    pub(crate) state_before: Option<i64>,
    pub(crate) state_after: Option<i64>,
    pub(crate) redacted_by: Option<i64>,
    pub(crate) told: bool,
}

const ROW: &str =
    "SELECT event, room, stream, status, outlier, state_before, state_after, redacted_by, told FROM events";

impl EventRow {
    /// The columns that [`EventRow::read`] reads, for queries that join other tables.
    pub(crate) const COLUMNS: &str = "events.event, events.room, events.stream, events.status, events.outlier, \
         events.state_before, events.state_after, events.redacted_by, events.told";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            event: row.get(0)?,
            room: row.get(1)?,
            stream: row.get(2)?,
            status: match row.get(3)? {
                0 => EventStatus::Accepted,
                1 => EventStatus::SoftFailed,
                _ => EventStatus::Rejected,
            },
            outlier: row.get(4)?,
            state_before: row.get(5)?,
            state_after: row.get(6)?,
            redacted_by: row.get(7)?,
            told: row.get(8)?,
        })
    }

    /// Whether it stands in the graph as something that others may be built upon: accepted, and no outlier.
    pub(crate) fn is_accepted(&self) -> bool {
        self.status == EventStatus::Accepted && !self.outlier
    }
}

impl ReadTxn<'_> {
    /// An event at its place in its room's timeline; none if it has none.
    pub fn timeline_event(&self, id: &EventId) -> Result<Option<TimelineEvent>, StoreError> {
        match self.event_row(id)? {
            Some(row) => self.timeline_entry(&row),
            None => Ok(None),
        }
    }

    /// Events of a room's timeline beyond a place, which is not included, nearest first.
    pub fn timeline(
        &self,
        room: &RoomId,
        from: Seq,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<TimelineEvent>, StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok(Vec::new());
        };
        let sql = match direction {
            Direction::Forward => format!("{ROW} WHERE room = ? AND stream > ? ORDER BY stream LIMIT ?"),
            Direction::Backward => format!("{ROW} WHERE room = ? AND stream < ? ORDER BY stream DESC LIMIT ?"),
        };
        let mut statement = self.conn().prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((room, from.0, limit), EventRow::read)?;
        let mut events = Vec::new();
        for row in rows {
            events.extend(self.timeline_entry(&row?)?);
        }
        Ok(events)
    }

    /// An event's place in its room's timeline; none if it has none.
    pub fn stream_of(&self, id: &EventId) -> Result<Option<Seq>, StoreError> {
        let stream: Option<Option<i64>> = self.lookup("SELECT stream FROM events WHERE event_id = ?", [id.as_str()])?;
        Ok(stream.flatten().map(Seq))
    }

    /// The `m.room.redaction` event that redacted an event, if one did.
    pub fn redacted_by(&self, id: &EventId) -> Result<Option<OwnedEventId>, StoreError> {
        match self.event_row(id)?.and_then(|row| row.redacted_by) {
            Some(by) => self.event_name(by).map(Some),
            None => Ok(None),
        }
    }

    /// An event's JSON as other servers are sent it, unparsed.
    pub fn event_json(&self, id: &EventId) -> Result<Option<Box<RawValue>>, StoreError> {
        let json: Option<String> = self.lookup("SELECT json FROM events WHERE event_id = ?", [id.as_str()])?;
        let parsed = json.map(RawValue::from_string).transpose();
        parsed.map_err(|error| StoreError::Corrupt {
            what: "event",
            reason: format!("{id}: {error}"),
        })
    }

    pub(crate) fn event_row(&self, id: &EventId) -> Result<Option<EventRow>, StoreError> {
        let mut statement = self.conn().prepare_cached(&format!("{ROW} WHERE event_id = ?"))?;
        Ok(statement.query_row([id.as_str()], EventRow::read).optional()?)
    }

    pub(crate) fn stored_pdu(&self, row: &EventRow) -> Result<StoredPdu, StoreError> {
        Ok(StoredPdu {
            pdu: self.pdu(row.event, row.redacted_by.is_some())?,
            status: row.status,
            outlier: row.outlier,
            told: row.told,
        })
    }

    /// Parses an event, or takes it from the cache. `redacted` must be what this snapshot says.
    pub(crate) fn pdu(&self, event: i64, redacted: bool) -> Result<Pdu, StoreError> {
        if let Some(pdu) = self.caches().pdu(event, redacted) {
            return Ok(pdu);
        }
        let mut statement = self
            .conn()
            .prepare_cached("SELECT event_id, room_id, json FROM events JOIN rooms USING (room) WHERE event = ?")?;
        let mut rows = statement.query([event])?;
        let row = rows.next()?.ok_or_else(|| missing("event row"))?;
        let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
        let id: OwnedEventId = parse("event id", text(0)?)?;
        let pdu = Pdu::from_stored(id.clone(), parse("room id", text(1)?)?, text(2)?);
        let pdu = pdu.map_err(|error| StoreError::Corrupt {
            what: "event",
            reason: format!("{id}: {error}"),
        })?;
        self.caches().keep_pdu(event, redacted, &pdu);
        Ok(pdu)
    }

    pub(crate) fn timeline_entry(&self, row: &EventRow) -> Result<Option<TimelineEvent>, StoreError> {
        let Some(stream) = row.stream else {
            return Ok(None);
        };
        Ok(Some(TimelineEvent {
            stream: Seq(stream),
            pdu: self.pdu(row.event, row.redacted_by.is_some())?,
            redacted_by: row.redacted_by.map(|by| self.event_name(by)).transpose()?,
            state_before: row.state_before.map(StateId),
            state_after: row.state_after.map(StateId),
        }))
    }

    /// Walks the packed edges, so that only events whose auth events are not all held are parsed.
    pub(crate) fn read_auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, StoreError> {
        let mut open = Vec::with_capacity(of.len());
        for id in of {
            open.extend(self.event_no(id)?);
        }
        let mut seen: HashSet<i64> = open.iter().copied().collect();
        let mut chain = HashSet::new();
        let mut names = BTreeSet::new();
        while let Some(event) = open.pop() {
            for auth in self.auth_numbers(event, &mut names)? {
                chain.insert(auth);
                if seen.insert(auth) {
                    open.push(auth);
                }
            }
        }
        for event in chain {
            names.insert(self.event_name(event)?);
        }
        Ok(names)
    }

    /// The auth events of an event that are held, by number; those that are not go to `absent`.
    fn auth_numbers(&self, event: i64, absent: &mut BTreeSet<OwnedEventId>) -> Result<Vec<i64>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT auth, redacted_by IS NOT NULL FROM events WHERE event = ?")?;
        let (packed, redacted): (Option<Vec<u8>>, bool) =
            statement.query_row([event], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if let Some(packed) = packed {
            return unpack_numbers(&packed);
        }
        let mut numbers = Vec::new();
        for id in self.pdu(event, redacted)?.auth_events() {
            match self.event_no(id)? {
                Some(number) => numbers.push(number),
                None => {
                    absent.insert(id.clone());
                }
            }
        }
        Ok(numbers)
    }
}

/// What [`WriteTxn::insert_event`] keeps beside the event itself.
pub(crate) struct NewRow {
    pub(crate) event: i64,
    pub(crate) room: i64,
    pub(crate) stream: Option<i64>,
    pub(crate) status: EventStatus,
    pub(crate) outlier: bool,
    pub(crate) told: bool,
    pub(crate) state_before: Option<StateId>,
    pub(crate) state_after: Option<StateId>,
}

impl NewRow {
    fn status_number(&self) -> i64 {
        match self.status {
            EventStatus::Accepted => 0,
            EventStatus::SoftFailed => 1,
            EventStatus::Rejected => 2,
        }
    }
}

impl WriteTxn<'_> {
    pub(crate) fn insert_event(&self, pdu: &Pdu, row: &NewRow) -> Result<(), StoreError> {
        let kind = self.intern_type(&pdu.kind().to_string())?;
        let key = pdu.state_key().map(|key| self.intern_key(kind, key)).transpose()?;
        let sender = self.intern_user(pdu.sender())?;
        let mut auth = Vec::with_capacity(pdu.auth_events().len());
        for id in pdu.auth_events() {
            auth.extend(self.event_no(id)?);
        }
        let auth = (auth.len() == pdu.auth_events().len()).then(|| pack_numbers(&mut auth));
        let sql = "INSERT INTO events (event, event_id, room, stream, status, outlier, type, key, sender, depth, ts,
                       state_before, state_after, told, auth, json)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        self.conn().prepare_cached(sql)?.execute(rusqlite::params![
            row.event,
            pdu.event_id().as_str(),
            row.room,
            row.stream,
            row.status_number(),
            row.outlier,
            kind,
            key,
            sender,
            i64::try_from(pdu.depth()).unwrap_or(i64::MAX),
            i64::from(pdu.origin_server_ts().0),
            row.state_before.map(|state| state.0),
            row.state_after.map(|state| state.0),
            row.told,
            auth,
            pdu.json(),
        ])?;
        Ok(())
    }

    /// Gives a held event another place: an outlier whose state has become known, or whose status has.
    pub(crate) fn update_event(&self, row: &NewRow) -> Result<(), StoreError> {
        let sql = "UPDATE events SET stream = ?, status = ?, outlier = ?, state_before = ?, state_after = ?, told = ?
                   WHERE event = ?";
        self.conn().prepare_cached(sql)?.execute((
            row.stream,
            row.status_number(),
            row.outlier,
            row.state_before.map(|state| state.0),
            row.state_after.map(|state| state.0),
            row.told,
            row.event,
        ))?;
        Ok(())
    }

    /// Shows an event that has been withheld.
    pub(crate) fn place_event(&self, event: i64, stream: i64) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE events SET stream = ? WHERE event = ?")?
            .execute((stream, event))?;
        Ok(())
    }

    /// Replaces an event's JSON by its redacted form. Its id still holds: it is the hash of that form.
    pub(crate) fn redact_event(&self, event: i64, redacted: &str, by: i64) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE events SET json = ?, redacted_by = ? WHERE event = ?")?
            .execute((redacted, by, event))?;
        Ok(())
    }

    /// The place for one more event of history: before everything that the room has.
    pub(crate) fn place_before_all(&self, room: i64) -> Result<i64, StoreError> {
        let sql = "SELECT min(stream) FROM events WHERE room = ? AND stream IS NOT NULL";
        let first: Option<i64> = self.lookup(sql, [room])?.flatten();
        Ok(first.unwrap_or(0).min(0) - 1)
    }
}
