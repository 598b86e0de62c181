//! Dehydrated devices (MSC3814): the encrypted secrets of a device that sleeps on the server. It cannot wake one.

use ruma::{DeviceId, OwnedDeviceId, UserId};
use rusqlite::OptionalExtension;

use crate::{ReadTxn, StoreError, WriteTxn};

/// A user's sleeping device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DehydratedDevice {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// What the client needs to wake it, as JSON.
    pub device_data: String,
}

impl ReadTxn<'_> {
    /// A user's dehydrated device.
    pub fn dehydrated_device(&self, user: &UserId) -> Result<Option<DehydratedDevice>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = ?1")?
            .query_row([user.as_str()], |row| {
                Ok(DehydratedDevice {
                    device_id: row.get::<_, String>(0)?.into(),
                    device_data: row.get(1)?,
                })
            })
            .optional()?;
        Ok(found)
    }
}

impl WriteTxn<'_> {
    /// Makes an existing device the user's dehydrated one. An earlier one stays as a plain device: delete it first.
    pub fn set_dehydrated_device(&self, user: &UserId, device: &DeviceId, data: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO dehydrated_devices (user_id, device_id, device_data) VALUES (?1, ?2, ?3)",
            )?
            .execute([user.as_str(), device.as_str(), data])?;
        Ok(())
    }
}
