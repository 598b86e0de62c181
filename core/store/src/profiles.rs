//! Profiles of this node's users, a row a field. It holds nothing of other servers' users.

use ruma::{UserId, profile::UserProfile};
use rusqlite::params;

use crate::{ReadTxn, StoreError, WriteTxn, column};

impl ReadTxn<'_> {
    /// All fields of a user's profile; empty for one that has none, or is not of this node.
    pub fn profile(&self, user_id: &UserId) -> Result<UserProfile, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT field, value FROM profiles WHERE user_id = ?1")?;
        let fields = statement.query_map([user_id.as_str()], |row| {
            Ok((row.get::<_, String>(0)?, column::json::<serde_json::Value>(row, 1)?))
        })?;
        Ok(fields.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Sets one field of a profile to a JSON value.
    pub fn set_profile_field(&self, user_id: &UserId, field: &str, value: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO profiles (user_id, field, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )?
            .execute(params![user_id.as_str(), field, value])?;
        Ok(())
    }

    /// Removes one field of a profile, if it is there.
    pub fn delete_profile_field(&self, user_id: &UserId, field: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM profiles WHERE user_id = ?1 AND field = ?2")?
            .execute([user_id.as_str(), field])?;
        Ok(())
    }

    /// Removes a whole profile.
    pub fn delete_profile(&self, user_id: &UserId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM profiles WHERE user_id = ?1")?
            .execute([user_id.as_str()])?;
        Ok(())
    }
}
