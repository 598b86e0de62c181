//! What users have reported to the node's owner. It judges nothing.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Reports kept at the most; the oldest make room.
const MOST: i64 = 1_000;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When it was made.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// Who made it.
    pub reporter: OwnedUserId,
    /// The room reported, or that of the event.
    pub room_id: Option<OwnedRoomId>,
    /// The event reported.
    pub event_id: Option<OwnedEventId>,
    /// The user reported.
    pub user_id: Option<OwnedUserId>,
    /// Why, in the reporter's words.
    pub reason: String,
}

fn optional_id<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>>
where
    T: TryFrom<String>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(index)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => column::id(row, index).map(Some),
    }
}

impl ReadTxn<'_> {
    /// The newest reports, newest first.
    pub fn reports(&self, limit: u32) -> Result<Vec<Report>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT ts, reporter, room_id, event_id, user_id, reason FROM reports ORDER BY report DESC LIMIT ?",
        )?;
        let reports = statement.query_map([limit], |row| {
            Ok(Report {
                ts: column::time(row, 0)?,
                reporter: column::id(row, 1)?,
                room_id: optional_id(row, 2)?,
                event_id: optional_id(row, 3)?,
                user_id: optional_id(row, 4)?,
                reason: row.get(5)?,
            })
        })?;
        Ok(reports.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Keeps a report. The oldest beyond the limit are forgotten.
    pub fn add_report(&self, report: &Report) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO reports (ts, reporter, room_id, event_id, user_id, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                column::millis(report.ts),
                report.reporter.as_str(),
                report.room_id.as_ref().map(|room| room.as_str()),
                report.event_id.as_ref().map(|event| event.as_str()),
                report.user_id.as_ref().map(|user| user.as_str()),
                report.reason,
            ])?;
        self.conn()
            .prepare_cached("DELETE FROM reports WHERE report <= (SELECT max(report) FROM reports) - ?")?
            .execute([MOST])?;
        Ok(())
    }
}
