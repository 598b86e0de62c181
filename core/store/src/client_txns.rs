//! Which event a device's request with a transaction id made. It is kept for [`KEPT_MILLIS`], then dropped.

use ruma::{DeviceId, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedTransactionId, TransactionId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// How long a repeated request is recognised: a week, far longer than any client repeats one.
pub(crate) const KEPT_MILLIS: i64 = 7 * 24 * 3600 * 1000;

/// Old rows dropped for each new one, so that no commit ever drops many.
const DROPPED_AT_ONCE: i64 = 4;

/// What makes a client's request one and the same: the device, the path up to the transaction id, and that id.
///
/// Client-server API, "Transaction identifiers".
#[derive(Debug, Clone, Copy)]
pub struct ClientTxn<'a> {
    /// Whose request.
    pub user_id: &'a UserId,
    /// From which device.
    pub device_id: &'a DeviceId,
    /// The path up to the transaction id.
    pub scope: &'a str,
    /// The transaction id.
    pub txn_id: &'a TransactionId,
}

impl ReadTxn<'_> {
    /// The event that this request made before.
    pub fn client_txn_event(&self, txn: &ClientTxn<'_>) -> Result<Option<OwnedEventId>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT event_id FROM client_txns
                 WHERE user_id = ?1 AND device_id = ?2 AND txn_id = ?3 AND scope = ?4",
            )?
            .query_row(
                [
                    txn.user_id.as_str(),
                    txn.device_id.as_str(),
                    txn.txn_id.as_str(),
                    txn.scope,
                ],
                |row| column::id(row, 0),
            )
            .optional()?;
        Ok(found)
    }

    /// The transaction id by which this device made an event, for its `unsigned.transaction_id`.
    pub fn transaction_id(
        &self,
        event: &EventId,
        user: &UserId,
        device: &DeviceId,
    ) -> Result<Option<OwnedTransactionId>, StoreError> {
        let found: Option<String> = self
            .conn()
            .prepare_cached("SELECT txn_id FROM client_txns WHERE event_id = ?1 AND user_id = ?2 AND device_id = ?3")?
            .query_row([event.as_str(), user.as_str(), device.as_str()], |row| row.get(0))
            .optional()?;
        Ok(found.map(OwnedTransactionId::from))
    }
}

impl WriteTxn<'_> {
    /// Remembers what a request made.
    pub fn save_client_txn(
        &self,
        txn: &ClientTxn<'_>,
        event: &EventId,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        let now = column::millis(now);
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO client_txns (user_id, device_id, scope, txn_id, event_id, ts)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                txn.user_id.as_str(),
                txn.device_id.as_str(),
                txn.scope,
                txn.txn_id.as_str(),
                event.as_str(),
                now,
            ])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM client_txns WHERE (user_id, device_id, txn_id, scope) IN
                 (SELECT user_id, device_id, txn_id, scope FROM client_txns WHERE ts < ?1 ORDER BY ts LIMIT ?2)",
            )?
            .execute([now - KEPT_MILLIS, DROPPED_AT_ONCE])?;
        Ok(())
    }
}
