//! Rooms that are being entered through other servers, from before one of them is told until it is known what came of it.
//! It enters nothing.

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use rusqlite::{OptionalExtension, Row, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// A local user's way into a room that other servers may believe to be complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who enters.
    pub user_id: OwnedUserId,
    /// What.
    pub room_id: OwnedRoomId,
    /// Whether by knocking; else by joining.
    pub knock: bool,
    /// The servers that were told and may believe it, the last one first. None: those have left the room meanwhile, and who
    /// else is there is not known here.
    pub servers: Vec<OwnedServerName>,
    /// The room's version.
    pub version: RoomVersionId,
    /// The event that was told last.
    pub event_id: OwnedEventId,
    /// Why, in the user's words.
    pub reason: Option<String>,
    /// Whether the user does not want it any more: whoever believes it is told so.
    pub over: bool,
}

const COLUMNS: &str = "user_id, room_id, knock, servers, version, event_id, reason, over";

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        user_id: column::id(row, 0)?,
        room_id: column::id(row, 1)?,
        knock: row.get(2)?,
        servers: column::json(row, 3)?,
        version: column::id(row, 4)?,
        event_id: column::id(row, 5)?,
        reason: row.get(6)?,
        over: row.get(7)?,
    })
}

impl ReadTxn<'_> {
    /// Every room that is being entered, the longest first.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM entries ORDER BY entry");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let entries = statement.query_map([], entry)?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// A user's way into a room, if the user is entering it.
    pub fn entry(&self, user: &UserId, room: &RoomId) -> Result<Option<Entry>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM entries WHERE user_id = ? AND room_id = ?");
        let mut statement = self.conn().prepare_cached(&sql)?;
        Ok(statement.query_row((user.as_str(), room.as_str()), entry).optional()?)
    }
}

impl WriteTxn<'_> {
    /// Remembers that servers are told of a user's entry. Those that were told before stay told.
    pub fn begin_entry(&self, mut entry: Entry) -> Result<(), StoreError> {
        if let Some(before) = self.entry(&entry.user_id, &entry.room_id)? {
            let told = before.servers.into_iter();
            let told: Vec<_> = told.filter(|server| !entry.servers.contains(server)).collect();
            entry.servers.extend(told);
        }
        self.keep_entry(&entry)
    }

    /// A server that was told of a user's entry does not believe it. The entry is over once none of them does.
    pub fn entry_refused(&self, user: &UserId, room: &RoomId, by: &ServerName) -> Result<(), StoreError> {
        let Some(mut entry) = self.entry(user, room)? else {
            return Ok(());
        };
        entry.servers.retain(|server| server != by);
        if entry.servers.is_empty() {
            return self.end_entry(user, room);
        }
        self.keep_entry(&entry)
    }

    /// A server that was told of a user's entry is in the room no more: what it passed on before, others may believe.
    pub fn entry_told_elsewhere(&self, user: &UserId, room: &RoomId, by: &ServerName) -> Result<(), StoreError> {
        let Some(mut entry) = self.entry(user, room)? else {
            return Ok(());
        };
        entry.servers.retain(|server| server != by);
        self.keep_entry(&entry)
    }

    /// A server speaks of a room that a user is entering, so that it may believe that the user is there.
    pub fn entry_believed(&self, user: &UserId, room: &RoomId, by: &ServerName) -> Result<(), StoreError> {
        let Some(mut entry) = self.entry(user, room)? else {
            return Ok(());
        };
        entry.servers.retain(|server| server != by);
        entry.servers.insert(0, by.to_owned());
        self.keep_entry(&entry)
    }

    /// The user does not want to enter any more. The row stays until somebody who may believe it has been told.
    pub fn entry_over(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        let Some(mut entry) = self.entry(user, room)? else {
            return Ok(());
        };
        entry.servers.clear();
        entry.over = true;
        self.keep_entry(&entry)
    }

    /// The user is in the room, or no server believes so: nothing is left to be done.
    pub fn end_entry(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM entries WHERE user_id = ? AND room_id = ?")?
            .execute((user.as_str(), room.as_str()))?;
        Ok(())
    }

    fn keep_entry(&self, entry: &Entry) -> Result<(), StoreError> {
        let servers = serde_json::to_string(&entry.servers).map_err(|error| StoreError::Corrupt {
            what: "server names",
            reason: error.to_string(),
        })?;
        let sql = format!("INSERT OR REPLACE INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
        self.conn().prepare_cached(&sql)?.execute(params![
            entry.user_id.as_str(),
            entry.room_id.as_str(),
            entry.knock,
            servers,
            entry.version.as_str(),
            entry.event_id.as_str(),
            entry.reason,
            entry.over
        ])?;
        Ok(())
    }
}
