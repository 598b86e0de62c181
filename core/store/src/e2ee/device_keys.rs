//! Identity keys of this node's devices. A device without keys has no row here.

use ruma::{DeviceId, OwnedDeviceId, UserId};
use rusqlite::{OptionalExtension, Row};

use crate::{ReadTxn, StoreError, WriteTxn};

/// A device that has published its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// Its device keys in canonical JSON, with the signatures they were uploaded with.
    pub keys: String,
}

impl DeviceRow {
    /// From the columns device_id, display_name, keys.
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            device_id: row.get::<_, String>(0)?.into(),
            display_name: row.get(1)?,
            keys: row.get(2)?,
        })
    }
}

impl ReadTxn<'_> {
    /// One local device's keys in canonical JSON.
    pub fn device_keys(&self, user: &UserId, device: &DeviceId) -> Result<Option<String>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT keys FROM device_keys WHERE user_id = ?1 AND device_id = ?2")?
            .query_row([user.as_str(), device.as_str()], |row| row.get(0))
            .optional()?;
        Ok(found)
    }

    /// All devices of a local user that have published keys, by id.
    pub fn devices_with_keys(&self, user: &UserId) -> Result<Vec<DeviceRow>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT device_id, display_name, keys FROM device_keys JOIN devices USING (user_id, device_id)
             WHERE user_id = ?1 ORDER BY device_id",
        )?;
        let rows = statement.query_map([user.as_str()], DeviceRow::from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Sets a local device's keys.
    pub fn set_device_keys(&self, user: &UserId, device: &DeviceId, keys: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET keys = excluded.keys",
            )?
            .execute([user.as_str(), device.as_str(), keys])?;
        Ok(())
    }

    /// Removes a local device's keys and what others signed of them; false when it had none.
    pub fn delete_device_keys(&self, user: &UserId, device: &DeviceId) -> Result<bool, StoreError> {
        self.delete_signatures_on(user, device.as_str())?;
        let mut statement = self
            .conn()
            .prepare_cached("DELETE FROM device_keys WHERE user_id = ?1 AND device_id = ?2")?;
        Ok(statement.execute([user.as_str(), device.as_str()])? > 0)
    }
}
