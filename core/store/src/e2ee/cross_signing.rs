//! Cross-signing keys of local and tracked remote users, and the signatures that local users uploaded. None is checked
//! here.

use kith_engine::encryption::KeySignature;
use ruma::{UserId, encryption::KeyUsage};
use rusqlite::OptionalExtension;

use crate::{ReadTxn, StoreError, WriteTxn};

/// A cross-signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossSigningRow {
    /// The public key in unpadded base64, which is also its name.
    pub public: String,
    /// The key object in canonical JSON, with the signatures it was uploaded with.
    pub key: String,
}

impl ReadTxn<'_> {
    /// A user's cross-signing key of one usage.
    pub fn cross_signing_key(&self, user: &UserId, usage: &KeyUsage) -> Result<Option<CrossSigningRow>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT public, key FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2")?
            .query_row([user.as_str(), usage.as_str()], |row| {
                Ok(CrossSigningRow {
                    public: row.get(0)?,
                    key: row.get(1)?,
                })
            })
            .optional()?;
        Ok(found)
    }

    /// Whether one of a user's cross-signing keys has this public key.
    pub fn is_cross_signing_key(&self, user: &UserId, public: &str) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM cross_signing_keys WHERE user_id = ?1 AND public = ?2")?;
        Ok(statement.exists([user.as_str(), public])?)
    }

    /// The signatures that local users uploaded for a key, which is named by device id or public key.
    pub fn key_signatures(&self, user: &UserId, key_name: &str) -> Result<Vec<KeySignature>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT signer, key_id, signature FROM key_signatures WHERE user_id = ?1 AND key_name = ?2",
        )?;
        let rows = statement.query_map([user.as_str(), key_name], |row| {
            Ok(KeySignature {
                signer: row.get(0)?,
                key_id: row.get(1)?,
                signature: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Sets a user's cross-signing key of one usage.
    pub fn set_cross_signing_key(
        &self,
        user: &UserId,
        usage: &KeyUsage,
        key: &CrossSigningRow,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO cross_signing_keys (user_id, usage, public, key) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute([user.as_str(), usage.as_str(), &key.public, &key.key])?;
        Ok(())
    }

    /// Removes a user's cross-signing key of one usage.
    pub fn delete_cross_signing_key(&self, user: &UserId, usage: &KeyUsage) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2")?
            .execute([user.as_str(), usage.as_str()])?;
        Ok(())
    }

    /// Adds a signature to a key, or replaces the one by the same signing key. Returns whether that changed anything.
    pub fn add_key_signature(
        &self,
        user: &UserId,
        key_name: &str,
        signature: &KeySignature,
    ) -> Result<bool, StoreError> {
        let changed = self
            .conn()
            .prepare_cached(
                "INSERT INTO key_signatures (user_id, key_name, signer, key_id, signature) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET signature = excluded.signature WHERE signature <> excluded.signature",
            )?
            .execute([
                user.as_str(),
                key_name,
                &signature.signer,
                &signature.key_id,
                &signature.signature,
            ])?;
        Ok(changed > 0)
    }

    /// Removes all signatures on a key that is gone or replaced.
    pub fn delete_signatures_on(&self, user: &UserId, key_name: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM key_signatures WHERE user_id = ?1 AND key_name = ?2")?
            .execute([user.as_str(), key_name])?;
        Ok(())
    }

    /// Removes all signatures that a user made with a key that is no longer theirs.
    pub fn delete_signatures_by(&self, signer: &UserId, key_id: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM key_signatures WHERE signer = ?1 AND key_id = ?2")?
            .execute([signer.as_str(), key_id])?;
        Ok(())
    }
}
