//! Verifies a database file: SQLite's own structure, references, and that every event still hashes to its id. It changes
//! nothing, and leaves nothing beside the file.

use std::path::{Path, PathBuf};

use kith_engine::{Pdu, PduError, StateId, json::parse_object};
use ruma::{OwnedRoomId, RoomVersionId};
use rusqlite::Connection;

use crate::{
    OpenError, ReadTxn, StoreError,
    cache::Caches,
    intern::parse,
    migrations::known_version,
    open::{Found, damaged_or_sqlite, look, open_to_look},
};

/// Problems told at the most; a file with so many needs a backup, not a list.
const MAX_PROBLEMS: usize = 100;

/// What a check found.
#[derive(Debug)]
pub struct Checked {
    /// The schema version of the file.
    pub schema: usize,
    /// How many rooms it holds.
    pub rooms: u64,
    /// How many events it holds.
    pub events: u64,
    /// What is wrong, as far as it was looked for: at the most a hundred things.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// SQLite's own check says so.
    #[error("SQLite says: {0}")]
    Integrity(String),
    /// A reference leads nowhere.
    #[error("row {row} of table {table} refers to a row that is not there")]
    Reference {
        /// The table.
        table: String,
        /// The row that refers.
        row: i64,
    },
    /// An event's JSON is not what its id was made of.
    #[error("event {0} does not hash to its id")]
    EventId(String),
    /// An event's JSON is not canonical, so it was not written by us.
    #[error("event {0} is not canonical JSON")]
    NotCanonical(String),
    /// An event does not parse.
    #[error("event {id} does not parse: {source}")]
    Event {
        /// The event.
        id: String,
        /// Why.
        source: PduError,
    },
    /// A room has a state but no event to build upon.
    #[error("room {0} has no forward extremity")]
    NoExtremity(OwnedRoomId),
    /// A room would build upon an event that was refused, or whose state is not known.
    #[error("room {room} builds upon {event}, which it cannot")]
    Extremity {
        /// The room.
        room: OwnedRoomId,
        /// The event.
        event: String,
    },
    /// A room's current state is not what its spread-out entries say.
    #[error("the current state of room {0} is not what its entries say")]
    CurrentState(OwnedRoomId),
    /// A state, or something else that is packed, cannot be read.
    #[error("state {state} cannot be read: {source}")]
    State {
        /// The state's number.
        state: i64,
        /// Why.
        source: StoreError,
    },
}

/// Verifies a file, whether or not a node is using it. Reads all of it.
pub fn check(path: &Path) -> Result<Checked, OpenError> {
    let Found::Schema(schema @ 1..) = look(path)? else {
        return Err(OpenError::Missing(PathBuf::from(path)));
    };
    let conn = open_to_look(path)?;
    let mut checked = Checked {
        schema,
        rooms: 0,
        events: 0,
        problems: Vec::new(),
    };
    check_all(&conn, &mut checked).map_err(|error| match error {
        StoreError::Sqlite(error) => damaged_or_sqlite(path, error),
        error => OpenError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        },
    })?;
    Ok(checked)
}

fn check_all(conn: &Connection, checked: &mut Checked) -> Result<(), StoreError> {
    // One snapshot for everything.
    let snapshot = conn.unchecked_transaction()?;
    check_structure(&snapshot, checked)?;
    // The tables of an older schema may look different; it is migrated when it is opened.
    if checked.is_sound() && checked.schema == known_version() {
        let caches = Caches::new(0, 0);
        let txn = ReadTxn::new(&snapshot, &caches);
        check_events(&txn, checked)?;
        check_rooms(&txn, checked)?;
        check_states(&txn, checked)?;
    }
    Ok(())
}

fn check_structure(conn: &Connection, checked: &mut Checked) -> Result<(), StoreError> {
    let mut statement = conn.prepare(&format!("PRAGMA integrity_check({MAX_PROBLEMS})"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let said: String = row.get(0)?;
        if said != "ok" {
            add(checked, Problem::Integrity(said));
        }
    }
    let mut statement = conn.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let row = Problem::Reference {
            table: row.get(0)?,
            row: row.get::<_, Option<i64>>(1)?.unwrap_or(-1),
        };
        add(checked, row);
    }
    Ok(())
}

fn check_events(txn: &ReadTxn<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let mut statement = txn
        .conn()
        .prepare("SELECT event_id, version, json FROM events JOIN rooms USING (room)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, version, json): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        checked.events += 1;
        match recompute(&json, &parse("room version", &version)?) {
            Ok(pdu) if pdu.event_id().as_str() != id => add(checked, Problem::EventId(id)),
            Ok(pdu) if pdu.json() != json => add(checked, Problem::NotCanonical(id)),
            Ok(_) => {}
            Err(source) => add(checked, Problem::Event { id, source }),
        }
    }
    Ok(())
}

fn recompute(json: &str, version: &RoomVersionId) -> Result<Pdu, PduError> {
    Pdu::from_json(&parse_object(json)?, version)
}

fn check_rooms(txn: &ReadTxn<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let conn = txn.conn();
    checked.rooms = conn.query_row("SELECT count(*) FROM rooms", [], |row| row.get(0))?;
    let rooms: Vec<OwnedRoomId> = txn.names(
        "SELECT room_id FROM rooms WHERE state IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM forward_extremities WHERE forward_extremities.room = rooms.room)",
        "room id",
        [],
    )?;
    for room in rooms {
        add(checked, Problem::NoExtremity(room));
    }
    let mut statement = conn.prepare(
        "SELECT room_id, event_id FROM forward_extremities JOIN rooms ON rooms.room = forward_extremities.room
         JOIN events USING (event)
         WHERE status <> 0 OR outlier OR state_after IS NULL OR events.room <> forward_extremities.room",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let room: String = row.get(0)?;
        let problem = Problem::Extremity {
            room: parse("room id", &room)?,
            event: row.get(1)?,
        };
        add(checked, problem);
    }
    let mut statement = conn.prepare("SELECT room, room_id, state FROM rooms WHERE state IS NOT NULL")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (room, room_id, state): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let mut entries = conn.prepare_cached("SELECT key, event FROM current_state WHERE room = ? ORDER BY key")?;
        let entries = entries
            .query_map([room], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(i64, i64)>, _>>()?;
        // A state that cannot be read is told of by the check of the states.
        if txn.packed_state(state).is_ok_and(|packed| *packed != *entries) {
            add(checked, Problem::CurrentState(parse("room id", &room_id)?));
        }
    }
    Ok(())
}

fn check_states(txn: &ReadTxn<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let mut statement = txn.conn().prepare("SELECT state FROM states")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let state = row.get(0)?;
        if let Err(source) = txn.check_state(StateId(state)) {
            add(checked, Problem::State { state, source });
        }
    }
    Ok(())
}

fn add(checked: &mut Checked, problem: Problem) {
    if checked.problems.len() < MAX_PROBLEMS {
        checked.problems.push(problem);
    }
}
