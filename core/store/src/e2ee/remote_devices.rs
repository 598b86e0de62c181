//! Copies of remote users' device lists, and whether each can be relied on. It asks no other server.

use ruma::{DeviceId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, params};

use super::DeviceRow;
use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Where the copy of a remote user's device list stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteDeviceList {
    /// The `stream_id` of the last update or answer that it holds.
    pub stream_id: i64,
    /// Counts the moments at which it turned out to be incomplete; names the state in which a fetch began.
    pub gaps: i64,
    /// Whether nothing is known to be missing.
    pub fresh: bool,
}

impl ReadTxn<'_> {
    /// The copy of a remote user's device list; none if it is not tracked.
    pub fn remote_device_list(&self, user: &UserId) -> Result<Option<RemoteDeviceList>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT stream_id, gaps, gaps = filled FROM remote_device_lists WHERE user_id = ?1")?
            .query_row([user.as_str()], |row| {
                Ok(RemoteDeviceList {
                    stream_id: row.get(0)?,
                    gaps: row.get(1)?,
                    fresh: row.get(2)?,
                })
            })
            .optional()?;
        Ok(found)
    }

    /// The devices in the copy, by id.
    pub fn remote_devices(&self, user: &UserId) -> Result<Vec<DeviceRow>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT device_id, display_name, keys FROM remote_device_keys WHERE user_id = ?1 ORDER BY device_id",
        )?;
        let rows = statement.query_map([user.as_str()], DeviceRow::from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Tracked users whose copies are incomplete, at most `limit`.
    pub fn stale_device_lists(&self, limit: usize) -> Result<Vec<OwnedUserId>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT user_id FROM remote_device_lists WHERE gaps <> filled LIMIT ?1")?;
        let rows = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| column::id(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Notes that a user's copy is incomplete; starts tracking one that was not. Returns the new count of gaps.
    pub fn note_device_list_gap(&self, user: &UserId) -> Result<i64, StoreError> {
        let gaps = self
            .conn()
            .prepare_cached(
                "INSERT INTO remote_device_lists (user_id, stream_id, gaps) VALUES (?1, 0, 1)
                 ON CONFLICT DO UPDATE SET gaps = gaps + 1 RETURNING gaps",
            )?
            .query_row([user.as_str()], |row| row.get(0))?;
        Ok(gaps)
    }

    /// Replaces the copy by a fetched list. `gaps` is what it was when the fetch began: a gap that came up meanwhile stays
    /// one. Returns false, and keeps nothing, when the user is no longer tracked.
    pub fn fill_device_list(
        &self,
        user: &UserId,
        stream_id: i64,
        gaps: i64,
        devices: &[DeviceRow],
    ) -> Result<bool, StoreError> {
        let tracked = self
            .conn()
            .prepare_cached(
                "UPDATE remote_device_lists SET stream_id = ?2, filled = max(filled, ?3) WHERE user_id = ?1",
            )?
            .execute(params![user.as_str(), stream_id, gaps])?;
        if tracked == 0 {
            return Ok(false);
        }
        self.conn()
            .prepare_cached("DELETE FROM remote_device_keys WHERE user_id = ?1")?
            .execute([user.as_str()])?;
        for device in devices {
            self.set_remote_device(user, device)?;
        }
        Ok(true)
    }

    /// Moves a copy on to the next update's position.
    pub fn advance_device_list(&self, user: &UserId, stream_id: i64) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE remote_device_lists SET stream_id = ?2 WHERE user_id = ?1")?
            .execute(params![user.as_str(), stream_id])?;
        Ok(())
    }

    /// Adds or replaces one device in the copy of a tracked user.
    pub fn set_remote_device(&self, user: &UserId, device: &DeviceRow) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO remote_device_keys (user_id, device_id, display_name, keys)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                user.as_str(),
                device.device_id.as_str(),
                device.display_name,
                device.keys
            ])?;
        Ok(())
    }

    /// Removes one device from the copy.
    pub fn delete_remote_device(&self, user: &UserId, device: &DeviceId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM remote_device_keys WHERE user_id = ?1 AND device_id = ?2")?
            .execute([user.as_str(), device.as_str()])?;
        Ok(())
    }

    /// Stops tracking a remote user: drops the copy with its cross-signing keys.
    pub fn drop_device_list(&self, user: &UserId) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM remote_device_lists WHERE user_id = ?1",
            "DELETE FROM cross_signing_keys WHERE user_id = ?1",
        ] {
            self.conn().prepare_cached(sql)?.execute([user.as_str()])?;
        }
        Ok(())
    }
}
