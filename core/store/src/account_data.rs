//! What clients keep with the server: account data, global and per room, and filters. It never looks inside.

use ruma::{OwnedRoomId, RoomId, UserId};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::value::RawValue;

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// One entry of account data.
#[derive(Debug, Clone)]
pub struct AccountDataEntry {
    /// The room it is about; none: global.
    pub room_id: Option<OwnedRoomId>,
    /// The event type.
    pub kind: String,
    /// The event's content.
    pub content: Box<RawValue>,
    /// When it was last set.
    pub seq: Seq,
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AccountDataEntry> {
    Ok(AccountDataEntry {
        room_id: match row.get_ref(0)?.as_str()? {
            "" => None,
            _ => Some(column::id(row, 0)?),
        },
        kind: row.get(1)?,
        content: column::json(row, 2)?,
        seq: Seq(row.get(3)?),
    })
}

impl ReadTxn<'_> {
    /// The content of one entry.
    pub fn account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        kind: &str,
    ) -> Result<Option<Box<RawValue>>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT content FROM account_data WHERE user_id = ?1 AND room_id = ?2 AND type = ?3")?;
        let content = statement.query_row([user_id.as_str(), room_key(room_id), kind], |row| column::json(row, 0));
        Ok(content.optional()?)
    }

    /// Everything set after `after` and up to `upto`, global and per room, oldest first.
    pub fn account_data_between(
        &self,
        user_id: &UserId,
        after: Seq,
        upto: Seq,
    ) -> Result<Vec<AccountDataEntry>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, type, content, seq FROM account_data
             WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
        )?;
        let entries = statement.query_map(params![user_id.as_str(), after.0, upto.0], entry)?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// One filter's JSON.
    pub fn filter(&self, user_id: &UserId, filter_id: u32) -> Result<Option<String>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT filter FROM filters WHERE user_id = ?1 AND filter_id = ?2")?;
        let filter = statement.query_row(params![user_id.as_str(), filter_id], |row| row.get(0));
        Ok(filter.optional()?)
    }
}

impl WriteTxn<'_> {
    /// Sets one entry to a JSON content.
    pub fn set_account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        kind: &str,
        content: &str,
    ) -> Result<Seq, StoreError> {
        let seq = self.next_seq()?;
        self.conn()
            .prepare_cached(
                "INSERT INTO account_data (user_id, room_id, type, content, seq) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET content = excluded.content, seq = excluded.seq",
            )?
            .execute(params![user_id.as_str(), room_key(room_id), kind, content, seq.0])?;
        Ok(seq)
    }

    /// Removes everything that a user's clients kept here.
    pub fn delete_account_data(&self, user_id: &UserId) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM account_data WHERE user_id = ?1",
            "DELETE FROM filters WHERE user_id = ?1",
        ] {
            self.conn().prepare_cached(sql)?.execute([user_id.as_str()])?;
        }
        Ok(())
    }

    /// Keeps a filter and returns its number; the same filter keeps its number. None when the user has `most` others.
    pub fn keep_filter(&self, user_id: &UserId, filter: &str, most: u32) -> Result<Option<u32>, StoreError> {
        let mut known = self
            .conn()
            .prepare_cached("SELECT filter_id FROM filters WHERE user_id = ?1 AND filter = ?2")?;
        let known = known.query_row([user_id.as_str(), filter], |row| row.get(0));
        if let Some(id) = known.optional()? {
            return Ok(Some(id));
        }
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO filters (user_id, filter_id, filter)
             SELECT ?1, count(*), ?2 FROM filters WHERE user_id = ?1 HAVING count(*) < ?3 RETURNING filter_id",
        )?;
        let id = insert.query_row(params![user_id.as_str(), filter, most], |row| row.get(0));
        Ok(id.optional()?)
    }
}

fn room_key(room_id: Option<&RoomId>) -> &str {
    room_id.map_or("", RoomId::as_str)
}
