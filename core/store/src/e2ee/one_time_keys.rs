//! One-time and fallback keys of this node's devices. A one-time key leaves here once and never comes back.

use std::collections::BTreeMap;

use ruma::{DeviceId, OneTimeKeyAlgorithm, OneTimeKeyId, OwnedOneTimeKeyId, UInt, UserId};
use rusqlite::{OptionalExtension, Row, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Claimed keys remembered per device, so that a repeated upload of one is recognised: several full uploads.
const CLAIMED_KEPT: i64 = 500;

/// A one-time key of some id that was uploaded before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeKeyState {
    /// The key's JSON.
    pub key: String,
    /// Whether it was handed out.
    pub claimed: bool,
}

fn id_and_key(row: &Row<'_>) -> rusqlite::Result<(OwnedOneTimeKeyId, String)> {
    Ok((column::id(row, 0)?, row.get(1)?))
}

impl ReadTxn<'_> {
    /// What was uploaded under a one-time key's id.
    pub fn one_time_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        id: &OneTimeKeyId,
    ) -> Result<Option<OneTimeKeyState>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT key, claimed FROM one_time_keys
                 WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND key_id = ?4",
            )?
            .query_row(
                [user.as_str(), device.as_str(), id.algorithm().as_str(), id.as_str()],
                |row| {
                    Ok(OneTimeKeyState {
                        key: row.get(0)?,
                        claimed: row.get(1)?,
                    })
                },
            )
            .optional()?;
        Ok(found)
    }

    /// How many one-time keys of each algorithm a device has left. An algorithm without any is absent, but for
    /// `signed_curve25519`, whose zero some clients wait for before they upload more.
    pub fn one_time_key_counts(
        &self,
        user: &UserId,
        device: &DeviceId,
    ) -> Result<BTreeMap<OneTimeKeyAlgorithm, UInt>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT algorithm, count(*) FROM one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND claimed = 0 GROUP BY algorithm",
        )?;
        let rows = statement.query_map([user.as_str(), device.as_str()], |row| {
            let count = UInt::try_from(row.get::<_, i64>(1)?).unwrap_or(UInt::MIN);
            Ok((row.get::<_, String>(0)?.into(), count))
        })?;
        let mut counts: BTreeMap<OneTimeKeyAlgorithm, UInt> = rows.collect::<Result<_, _>>()?;
        counts.entry(OneTimeKeyAlgorithm::SignedCurve25519).or_default();
        Ok(counts)
    }

    /// The algorithms of which a device has a fallback key that was not yet handed out.
    pub fn unused_fallback_key_types(
        &self,
        user: &UserId,
        device: &DeviceId,
    ) -> Result<Vec<OneTimeKeyAlgorithm>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT algorithm FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND used = 0 ORDER BY algorithm",
        )?;
        let rows = statement.query_map([user.as_str(), device.as_str()], |row| {
            row.get::<_, String>(0).map(OneTimeKeyAlgorithm::from)
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A device's fallback key of an algorithm: id and JSON.
    pub fn fallback_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        algorithm: &OneTimeKeyAlgorithm,
    ) -> Result<Option<(OwnedOneTimeKeyId, String)>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT key_id, key FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
            )?
            .query_row([user.as_str(), device.as_str(), algorithm.as_str()], id_and_key)
            .optional()?;
        Ok(found)
    }
}

impl WriteTxn<'_> {
    /// Adds a one-time key whose id the device has not used before.
    pub fn add_one_time_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        id: &OneTimeKeyId,
        key: &str,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.keep_key(sql, user, device, id, key)
    }

    /// Takes the device's oldest one-time key of an algorithm. No later call gets the same one.
    pub fn claim_one_time_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        algorithm: &OneTimeKeyAlgorithm,
    ) -> Result<Option<(OwnedOneTimeKeyId, String)>, StoreError> {
        let sql = "UPDATE one_time_keys SET claimed = 1 WHERE position =
                   (SELECT position FROM one_time_keys
                    WHERE user_id = ?1 AND device_id = ?2 AND claimed = 0 AND algorithm = ?3 ORDER BY position LIMIT 1)
                   RETURNING key_id, key";
        self.hand_out(sql, user, device, algorithm)
    }

    /// Forgets the claimed keys of a device but the newest ones.
    pub fn forget_old_claims(&self, user: &UserId, device: &DeviceId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM one_time_keys WHERE position IN
                 (SELECT position FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND claimed = 1
                  ORDER BY position DESC LIMIT -1 OFFSET ?3)",
            )?
            .execute(params![user.as_str(), device.as_str(), CLAIMED_KEPT])?;
        Ok(())
    }

    /// Sets the device's fallback key of the id's algorithm. It counts as unused.
    pub fn set_fallback_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        id: &OneTimeKeyId,
        key: &str,
    ) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO fallback_keys (user_id, device_id, algorithm, key_id, key)
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        self.keep_key(sql, user, device, id, key)
    }

    /// Hands out the device's fallback key of an algorithm and marks it as used. It stays; the device is told.
    pub fn use_fallback_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        algorithm: &OneTimeKeyAlgorithm,
    ) -> Result<Option<(OwnedOneTimeKeyId, String)>, StoreError> {
        let sql = "UPDATE fallback_keys SET used = 1 WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3
                   RETURNING key_id, key";
        self.hand_out(sql, user, device, algorithm)
    }

    fn keep_key(
        &self,
        sql: &str,
        user: &UserId,
        device: &DeviceId,
        id: &OneTimeKeyId,
        key: &str,
    ) -> Result<(), StoreError> {
        let algorithm = id.algorithm();
        self.conn().prepare_cached(sql)?.execute([
            user.as_str(),
            device.as_str(),
            algorithm.as_str(),
            id.as_str(),
            key,
        ])?;
        Ok(())
    }

    fn hand_out(
        &self,
        sql: &str,
        user: &UserId,
        device: &DeviceId,
        algorithm: &OneTimeKeyAlgorithm,
    ) -> Result<Option<(OwnedOneTimeKeyId, String)>, StoreError> {
        let key = self
            .conn()
            .prepare_cached(sql)?
            .query_row([user.as_str(), device.as_str(), algorithm.as_str()], id_and_key)
            .optional()?;
        if key.is_some() {
            // The device is told what it has left, also while it waits for other news.
            self.next_seq()?;
        }
        Ok(key)
    }

    /// Removes all one-time and fallback keys of a device: its identity changed, and they were signed by the old one.
    pub fn delete_one_time_keys(&self, user: &UserId, device: &DeviceId) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2",
            "DELETE FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2",
        ] {
            self.conn()
                .prepare_cached(sql)?
                .execute([user.as_str(), device.as_str()])?;
        }
        Ok(())
    }
}
