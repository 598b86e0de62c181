//! Up to which event each user has read each room. It decides nothing: not even which of two receipts is further on.

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    events::receipt::ReceiptThread,
};
use rusqlite::{OptionalExtension, Params, Row, params};

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// Receipts of one user in one room, counted over threads, at the most; the oldest make room.
const MOST_THREADS: i64 = 500;

/// A read receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who has read it.
    pub user_id: OwnedUserId,
    /// Whether it is one (`m.read.private`) that nobody but the user may see.
    pub private: bool,
    /// The thread that it is about. Custom threads are never kept.
    pub thread: ReceiptThread,
    /// The event up to which the user has read.
    pub event_id: OwnedEventId,
    /// When, as the user's server says.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// When it arrived here.
    pub seq: Seq,
}

const COLUMNS: &str = "SELECT room_id, user_id, private, thread, event_id, ts, receipts.seq FROM receipts
     JOIN rooms ON rooms.room = receipts.room JOIN users ON users.user = receipts.user";

fn receipt(row: &Row<'_>) -> rusqlite::Result<Receipt> {
    let thread: String = row.get(3)?;
    Ok(Receipt {
        room_id: column::id(row, 0)?,
        user_id: column::id(row, 1)?,
        private: row.get(2)?,
        thread: match thread.as_str() {
            "" => ReceiptThread::Unthreaded,
            "main" => ReceiptThread::Main,
            _ => ReceiptThread::Thread(column::id(row, 3)?),
        },
        event_id: column::id(row, 4)?,
        ts: column::time(row, 5)?,
        seq: Seq(row.get(6)?),
    })
}

impl ReadTxn<'_> {
    /// The receipts, in all rooms that a user is joined to, that arrived after one position, up to and including another.
    /// Of private ones, only the user's own.
    pub fn receipts_between(&self, viewer: &UserId, after: Seq, upto: Seq) -> Result<Vec<Receipt>, StoreError> {
        let sql = format!(
            "{COLUMNS} WHERE receipts.seq > ?2 AND receipts.seq <= ?3 AND (NOT private OR user_id = ?1) AND EXISTS (
                SELECT 1 FROM members WHERE members.room = receipts.room AND membership = 0
                AND members.user = (SELECT user FROM users WHERE user_id = ?1))
             ORDER BY receipts.seq"
        );
        self.receipts(&sql, params![viewer.as_str(), after.0, upto.0])
    }

    /// The receipts in one room, as one of its members may see them.
    pub fn receipts_in(
        &self,
        room: &RoomId,
        viewer: &UserId,
        after: Seq,
        upto: Seq,
    ) -> Result<Vec<Receipt>, StoreError> {
        let sql = format!(
            "{COLUMNS} WHERE receipts.room = (SELECT room FROM rooms WHERE room_id = ?4)
             AND receipts.seq > ?2 AND receipts.seq <= ?3 AND (NOT private OR user_id = ?1) ORDER BY receipts.seq"
        );
        self.receipts(&sql, params![viewer.as_str(), after.0, upto.0, room.as_str()])
    }

    /// The newest public receipts of a server's users, made at a time or later, in rooms that have a topic and that another server
    /// is in.
    pub fn receipts_told_by_topic(
        &self,
        own: &ServerName,
        other: &ServerName,
        since: MilliSecondsSinceUnixEpoch,
        limit: usize,
    ) -> Result<Vec<Receipt>, StoreError> {
        let sql = format!(
            "{COLUMNS} WHERE users.server = (SELECT server FROM servers WHERE name = ?1) AND NOT private AND ts >= ?3
             AND EXISTS (SELECT 1 FROM topics WHERE topics.room = receipts.room AND replaced_at IS NULL)
             AND EXISTS (SELECT 1 FROM room_servers WHERE room_servers.room = receipts.room
                AND room_servers.server = (SELECT server FROM servers WHERE name = ?2))
             ORDER BY receipts.seq DESC LIMIT ?4"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.receipts(
            &sql,
            params![own.as_str(), other.as_str(), column::millis(since), limit],
        )
    }

    /// The event that a user's receipt of one kind stands at.
    pub fn receipt(
        &self,
        room: &RoomId,
        user: &UserId,
        private: bool,
        thread: &ReceiptThread,
    ) -> Result<Option<OwnedEventId>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT event_id FROM receipts WHERE room = (SELECT room FROM rooms WHERE room_id = ?1)
                 AND user = (SELECT user FROM users WHERE user_id = ?2) AND private = ?3 AND thread = ?4",
            )?
            .query_row(
                params![room.as_str(), user.as_str(), private, thread.as_str().unwrap_or("")],
                |row| column::id(row, 0),
            )
            .optional()?;
        Ok(found)
    }

    fn receipts(&self, sql: &str, params: impl Params) -> Result<Vec<Receipt>, StoreError> {
        let mut statement = self.conn().prepare_cached(sql)?;
        let rows = statement.query_map(params, receipt)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Moves a user's receipt of one kind to an event. Returns its position; none if nothing is held of the room.
    pub fn set_receipt(
        &self,
        room: &RoomId,
        user: &UserId,
        private: bool,
        thread: &ReceiptThread,
        event: &EventId,
        ts: MilliSecondsSinceUnixEpoch,
    ) -> Result<Option<Seq>, StoreError> {
        let Some(room) = self.room_no(room)? else {
            return Ok(None);
        };
        let (user, seq) = (self.intern_user(user)?, self.next_seq()?);
        let thread = thread.as_str().unwrap_or("");
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO receipts (room, user, private, thread, event_id, ts, seq)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                room,
                user,
                private,
                thread,
                event.as_str(),
                column::millis(ts),
                seq.0
            ])?;
        if !thread.is_empty() {
            self.conn()
                .prepare_cached(
                    "DELETE FROM receipts WHERE room = ?1 AND user = ?2 AND thread IN (
                     SELECT thread FROM receipts WHERE room = ?1 AND user = ?2 AND thread NOT IN ('', 'main')
                     ORDER BY seq DESC LIMIT -1 OFFSET ?3)",
                )?
                .execute([room, user, MOST_THREADS])?;
        }
        Ok(Some(seq))
    }
}
