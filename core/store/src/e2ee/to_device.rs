//! Messages waiting for local devices, and which requests and messages were already carried out. It reads no message.

use ruma::{DeviceId, ServerName, TransactionId, UserId, events::AnyToDeviceEvent, serde::Raw};
use rusqlite::params;

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// Messages of one server that wait for one device at the most; further ones are refused.
const WAITING_PER_ORIGIN: i64 = 10_000;

/// Requests of one device remembered: far more than any client repeats.
const SENT_KEPT: i64 = 1_000;

/// Messages of one server remembered: an outgoing queue repeats only its newest.
const RECEIVED_KEPT: i64 = 10_000;

/// A message waiting for a device.
#[derive(Debug, Clone)]
pub struct ToDeviceMessage {
    /// When it arrived. No two messages share a position.
    pub seq: Seq,
    /// The event as the client gets it.
    pub event: Raw<AnyToDeviceEvent>,
}

impl ReadTxn<'_> {
    /// The messages that wait for a device, after `since` up to `to`, oldest first, at most `limit`.
    pub fn to_device_messages(
        &self,
        user: &UserId,
        device: &DeviceId,
        since: Seq,
        to: Seq,
        limit: usize,
    ) -> Result<Vec<ToDeviceMessage>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT seq, message FROM to_device_messages
             WHERE user_id = ?1 AND device_id = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq LIMIT ?5",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![user.as_str(), device.as_str(), since.0, to.0, limit], |row| {
            Ok(ToDeviceMessage {
                seq: Seq(row.get(0)?),
                event: column::json(row, 1)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether anything waits for a device after `since`.
    pub fn has_to_device_messages(&self, user: &UserId, device: &DeviceId, since: Seq) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM to_device_messages WHERE user_id = ?1 AND device_id = ?2 AND seq > ?3")?;
        Ok(statement.exists(params![user.as_str(), device.as_str(), since.0])?)
    }
}

impl WriteTxn<'_> {
    /// Puts a message into a device's inbox. Returns false when the sender's server has filled its part of it. The device
    /// must exist.
    pub fn add_to_device_message(
        &self,
        user: &UserId,
        device: &DeviceId,
        origin: &ServerName,
        message: &Raw<AnyToDeviceEvent>,
    ) -> Result<bool, StoreError> {
        let waiting: i64 = self
            .conn()
            .prepare_cached(
                "SELECT count(*) FROM to_device_messages WHERE user_id = ?1 AND device_id = ?2 AND origin = ?3",
            )?
            .query_row([user.as_str(), device.as_str(), origin.as_str()], |row| row.get(0))?;
        if waiting >= WAITING_PER_ORIGIN {
            return Ok(false);
        }
        let seq = self.next_seq()?;
        self.conn()
            .prepare_cached(
                "INSERT INTO to_device_messages (seq, user_id, device_id, origin, message) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                seq.0,
                user.as_str(),
                device.as_str(),
                origin.as_str(),
                message.json().get()
            ])?;
        Ok(true)
    }

    /// Deletes the messages that a device has acknowledged: all up to a position. Returns how many.
    pub fn delete_to_device(&self, user: &UserId, device: &DeviceId, up_to: Seq) -> Result<usize, StoreError> {
        let deleted = self
            .conn()
            .prepare_cached("DELETE FROM to_device_messages WHERE user_id = ?1 AND device_id = ?2 AND seq <= ?3")?
            .execute(params![user.as_str(), device.as_str(), up_to.0])?;
        Ok(deleted)
    }

    /// Remembers a device's request; false when it was carried out before.
    pub fn remember_to_device_sent(
        &self,
        user: &UserId,
        device: &DeviceId,
        txn_id: &TransactionId,
    ) -> Result<bool, StoreError> {
        let new = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO to_device_sent (user_id, device_id, txn_id) VALUES (?1, ?2, ?3)")?
            .execute([user.as_str(), device.as_str(), txn_id.as_str()])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM to_device_sent WHERE position IN
                 (SELECT position FROM to_device_sent WHERE user_id = ?1 AND device_id = ?2
                  ORDER BY position DESC LIMIT -1 OFFSET ?3)",
            )?
            .execute(params![user.as_str(), device.as_str(), SENT_KEPT])?;
        Ok(new > 0)
    }

    /// Remembers another server's message; false when it arrived before.
    pub fn remember_to_device_received(&self, origin: &ServerName, message_id: &str) -> Result<bool, StoreError> {
        let new = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO to_device_received (origin, message_id) VALUES (?1, ?2)")?
            .execute([origin.as_str(), message_id])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM to_device_received WHERE position IN
                 (SELECT position FROM to_device_received WHERE origin = ?1
                  ORDER BY position DESC LIMIT -1 OFFSET ?2)",
            )?
            .execute(params![origin.as_str(), RECEIVED_KEPT])?;
        Ok(new > 0)
    }
}
