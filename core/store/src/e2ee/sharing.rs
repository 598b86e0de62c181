//! Who begins and who ceases to share rooms, and what that means for device lists. Told by members.rs, in the same write;
//! it reads no event.

use ruma::{OwnedServerName, OwnedUserId, UserId};
use rusqlite::params;

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// That users `?2` and `m.user` share a room other than `?1`.
const ALREADY_SHARING: &str = "EXISTS (SELECT 1 FROM members x JOIN members y ON y.room = x.room
     WHERE x.user = ?2 AND x.membership = 0 AND x.room <> ?1 AND y.user = m.user AND y.membership = 0)";

/// One `m.room.member` entry that became a join, or ceased to be one.
#[derive(Clone, Copy)]
pub(crate) struct JoinChange<'a> {
    pub(crate) room: i64,
    pub(crate) user: &'a UserId,
    pub(crate) user_no: i64,
    pub(crate) joined: bool,
    pub(crate) seq: Seq,
}

impl ReadTxn<'_> {
    /// Whether a user shares a room with any local user: then their device list is worth tracking.
    pub fn shares_a_room_with_local(&self, user: &UserId) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM accounts CROSS JOIN users u ON u.user_id = accounts.user_id
             CROSS JOIN members y ON y.user = u.user AND y.membership = 0
             CROSS JOIN members x ON x.room = y.room AND x.membership = 0
                AND x.user = (SELECT user FROM users WHERE user_id = ?1)",
        )?;
        Ok(statement.exists([user.as_str()])?)
    }

    fn is_account(&self, user: &UserId) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM accounts WHERE user_id = ?1")?;
        Ok(statement.exists([user.as_str()])?)
    }
}

impl WriteTxn<'_> {
    /// Notes that a user's devices changed: for all local users who share a room, and for the user if local. Returns
    /// whether there was anyone to note it for.
    pub fn note_device_list_change(&self, user: &UserId) -> Result<bool, StoreError> {
        let seq = self.next_seq()?;
        let noted = self
            .conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO device_list_changes (observer, subject, seq, gone)
                 SELECT accounts.user_id, ?1, ?2, 0 FROM accounts
                 WHERE accounts.user_id = ?1 OR EXISTS (
                    SELECT 1 FROM members x JOIN members y ON y.room = x.room
                    WHERE x.user = (SELECT user FROM users WHERE user_id = ?1) AND x.membership = 0
                      AND y.user = (SELECT user FROM users WHERE user_id = accounts.user_id) AND y.membership = 0)",
            )?
            .execute(params![user.as_str(), seq.0])?;
        Ok(noted > 0)
    }

    /// Takes what joins have made due: the local users whose device lists must be told to servers that share a room with
    /// them only now.
    pub fn take_due_device_lists(&self) -> Result<Vec<(OwnedUserId, OwnedServerName)>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("DELETE FROM due_device_lists RETURNING user_id, server")?;
        let rows = statement.query_map([], |row| Ok((column::id(row, 0)?, column::id(row, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Notes who begins or ceases to share a room by this change. The member and the servers of the room are already
    /// written.
    pub(crate) fn sharing_changed(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        let is_local = self.is_account(change.user)?;
        self.note_for_local_members(change)?;
        if is_local {
            self.note_members_for(change)?;
        }
        match (change.joined, is_local) {
            (true, true) => self.list_due_to_servers_of_room(change),
            (true, false) => self.lists_due_to_server_of(change),
            (false, _) => self.forget_unshared(change),
        }
    }

    /// For the local members of the room: the user came, or is gone.
    fn note_for_local_members(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT OR REPLACE INTO device_list_changes (observer, subject, seq, gone)
             SELECT accounts.user_id, ?3, ?4, ?5 FROM accounts CROSS JOIN users u ON u.user_id = accounts.user_id
             CROSS JOIN members m ON m.room = ?1 AND m.user = u.user AND m.membership = 0
             WHERE m.user <> ?2 AND NOT {ALREADY_SHARING}"
        );
        self.note(&sql, change)
    }

    /// For the local user who came or is gone: the members of the room.
    fn note_members_for(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT OR REPLACE INTO device_list_changes (observer, subject, seq, gone)
             SELECT ?3, u.user_id, ?4, ?5 FROM members m JOIN users u ON u.user = m.user
             WHERE m.room = ?1 AND m.membership = 0 AND m.user <> ?2 AND NOT {ALREADY_SHARING}"
        );
        self.note(&sql, change)
    }

    fn note(&self, sql: &str, change: JoinChange<'_>) -> Result<(), StoreError> {
        self.conn().prepare_cached(sql)?.execute(params![
            change.room,
            change.user_no,
            change.user.as_str(),
            change.seq.0,
            !change.joined,
        ])?;
        Ok(())
    }

    /// A local user joined: servers of the room that shared none with the user must get the user's list.
    ///
    /// Server-server API, "Device Management": updates are sent also "when that user joins a room which contains servers
    /// which are not already receiving updates for that user's device list".
    fn list_due_to_servers_of_room(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT OR IGNORE INTO due_device_lists (user_id, server)
                 SELECT ?3, s.name FROM room_servers r JOIN servers s ON s.server = r.server
                 WHERE r.room = ?1 AND r.server <> (SELECT server FROM users WHERE user = ?2)
                   AND EXISTS (SELECT 1 FROM device_list_positions WHERE user_id = ?3)
                   AND NOT EXISTS (SELECT 1 FROM members x JOIN room_servers y ON y.room = x.room
                        WHERE x.user = ?2 AND x.membership = 0 AND x.room <> ?1 AND y.server = r.server)",
            )?
            .execute(params![change.room, change.user_no, change.user.as_str()])?;
        Ok(())
    }

    /// A remote user joined: if it is their server's first in the room, the server must get the lists of the local members
    /// with whom it shared none.
    fn lists_due_to_server_of(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT OR IGNORE INTO due_device_lists (user_id, server)
                 SELECT p.user_id, s.name FROM room_servers r JOIN servers s ON s.server = r.server
                 CROSS JOIN device_list_positions p CROSS JOIN users u ON u.user_id = p.user_id
                 CROSS JOIN members m ON m.room = ?1 AND m.user = u.user AND m.membership = 0
                 WHERE r.room = ?1 AND r.server = (SELECT server FROM users WHERE user = ?2) AND r.joined = 1
                   AND NOT EXISTS (SELECT 1 FROM members x JOIN room_servers y ON y.room = x.room
                        WHERE x.user = m.user AND x.membership = 0 AND x.room <> ?1 AND y.server = r.server)",
            )?
            .execute(params![change.room, change.user_no])?;
        Ok(())
    }

    /// Someone left: copies of the device lists of remote users who share no room with a local user any more go, because
    /// their servers send no further updates.
    fn forget_unshared(&self, change: JoinChange<'_>) -> Result<(), StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT l.user_id FROM remote_device_lists l JOIN users u ON u.user_id = l.user_id
             WHERE u.user = ?2 OR EXISTS (SELECT 1 FROM members m WHERE m.room = ?1 AND m.user = u.user AND m.membership = 0)",
        )?;
        let rows = statement.query_map(params![change.room, change.user_no], |row| column::id(row, 0))?;
        let candidates: Vec<OwnedUserId> = rows.collect::<Result<_, _>>()?;
        for user in candidates {
            if !self.shares_a_room_with_local(&user)? {
                self.drop_device_list(&user)?;
            }
        }
        Ok(())
    }
}
