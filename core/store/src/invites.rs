//! Invitations of other servers: refusals that nobody could be told of yet, and a count of those that came from strangers.
//! It decides nothing: not even who is a stranger.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use rusqlite::params;

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Leaves owed at the most; the oldest make room.
const MOST_OWED: i64 = 1_000;

/// A leave of a local user that no server of the room has heard of yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedLeave {
    /// Who left.
    pub user_id: OwnedUserId,
    /// What.
    pub room_id: OwnedRoomId,
    /// Whom to tell, the likeliest first.
    pub servers: Vec<OwnedServerName>,
    /// Why, in the user's words.
    pub reason: Option<String>,
}

impl ReadTxn<'_> {
    /// Every leave that is owed, oldest first.
    pub fn owed_leaves(&self) -> Result<Vec<OwedLeave>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT user_id, room_id, servers, reason FROM owed_leaves ORDER BY owed")?;
        let owed = statement.query_map([], |row| {
            Ok(OwedLeave {
                user_id: column::id(row, 0)?,
                room_id: column::id(row, 1)?,
                servers: column::json(row, 2)?,
                reason: row.get(3)?,
            })
        })?;
        Ok(owed.collect::<Result<_, _>>()?)
    }

    /// Invitations of strangers that a user got after a time.
    pub fn strangers_invites(&self, user: &UserId, after: MilliSecondsSinceUnixEpoch) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM strangers_invites WHERE user_id = ? AND ts > ?";
        Ok(self.lookup(sql, (user.as_str(), column::millis(after)))?.unwrap_or(0))
    }
}

impl WriteTxn<'_> {
    /// Remembers a leave that a room's servers must still be told of.
    pub fn owe_leave(&self, leave: &OwedLeave) -> Result<(), StoreError> {
        let servers = serde_json::to_string(&leave.servers).map_err(|error| StoreError::Corrupt {
            what: "server names",
            reason: error.to_string(),
        })?;
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO owed_leaves (user_id, room_id, servers, reason) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![
                leave.user_id.as_str(),
                leave.room_id.as_str(),
                servers,
                leave.reason
            ])?;
        self.conn()
            .prepare_cached("DELETE FROM owed_leaves WHERE owed <= (SELECT max(owed) FROM owed_leaves) - ?")?
            .execute([MOST_OWED])?;
        Ok(())
    }

    /// A leave is owed no more: it was heard of, or the user has come back.
    pub fn settle_leave(&self, user: &UserId, room: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM owed_leaves WHERE user_id = ? AND room_id = ?")?
            .execute([user.as_str(), room.as_str()])?;
        Ok(())
    }

    /// Counts an invitation of a stranger, and forgets those from before a time.
    pub fn count_strangers_invite(
        &self,
        user: &UserId,
        now: MilliSecondsSinceUnixEpoch,
        forget_before: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM strangers_invites WHERE user_id = ? AND ts <= ?")?
            .execute((user.as_str(), column::millis(forget_before)))?;
        self.conn()
            .prepare_cached("INSERT INTO strangers_invites (user_id, ts) VALUES (?, ?)")?
            .execute((user.as_str(), column::millis(now)))?;
        Ok(())
    }
}
