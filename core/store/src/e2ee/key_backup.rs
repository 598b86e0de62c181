//! Server-side backups of room keys, which only their owner can decrypt. It decides nothing about which key stays.

use kith_engine::encryption::RoomKeyRank;
use ruma::{OwnedRoomId, RoomId, UserId, api::client::backup::KeyBackupData, serde::Raw};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::value::RawValue;

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// A version of a user's backup.
#[derive(Debug, Clone)]
pub struct KeyBackup {
    /// Its number; higher is newer.
    pub version: i64,
    /// The algorithm's name.
    pub algorithm: String,
    /// The algorithm's data.
    pub auth_data: Box<RawValue>,
    /// Changes whenever its keys change.
    pub etag: i64,
    /// How many keys it holds.
    pub count: i64,
}

/// A room key in a backup.
#[derive(Debug, Clone)]
pub struct BackedUpKey {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The session.
    pub session_id: String,
    /// The key as it was uploaded.
    pub key: Raw<KeyBackupData>,
}

/// What an upload did to a session's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// The session was new.
    Added,
    /// The upload took the place of another key.
    Replaced,
    /// The key that was there stays.
    Kept,
}

fn backup(row: &Row<'_>) -> rusqlite::Result<KeyBackup> {
    Ok(KeyBackup {
        version: row.get(0)?,
        algorithm: row.get(1)?,
        auth_data: column::json(row, 2)?,
        etag: row.get(3)?,
        count: row.get(4)?,
    })
}

/// Rows whose stored metadata is out of range, which nothing writes, rank worst.
fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(u64::MAX))
}

impl ReadTxn<'_> {
    /// The newest backup of a user.
    pub fn current_key_backup(&self, user: &UserId) -> Result<Option<KeyBackup>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT version, algorithm, auth_data, etag, count FROM key_backups
                 WHERE user_id = ?1 AND deleted = 0 ORDER BY version DESC LIMIT 1",
            )?
            .query_row([user.as_str()], backup)
            .optional()?;
        Ok(found)
    }

    /// One backup of a user.
    pub fn key_backup(&self, user: &UserId, version: i64) -> Result<Option<KeyBackup>, StoreError> {
        let found = self
            .conn()
            .prepare_cached(
                "SELECT version, algorithm, auth_data, etag, count FROM key_backups
                 WHERE user_id = ?1 AND version = ?2 AND deleted = 0",
            )?
            .query_row(params![user.as_str(), version], backup)
            .optional()?;
        Ok(found)
    }

    /// The keys in a backup: all, those of a room, or the one of a session.
    pub fn backed_up_keys(
        &self,
        user: &UserId,
        version: i64,
        room: Option<&RoomId>,
        session: Option<&str>,
    ) -> Result<Vec<BackedUpKey>, StoreError> {
        const ALL: &str = "SELECT room_id, session_id, key FROM backed_up_keys WHERE user_id = ?1 AND version = ?2";
        let map = |row: &Row<'_>| {
            Ok(BackedUpKey {
                room_id: column::id(row, 0)?,
                session_id: row.get(1)?,
                key: column::json(row, 2)?,
            })
        };
        let keys: Result<Vec<_>, _> = match (room, session) {
            (Some(room), Some(session)) => self
                .conn()
                .prepare_cached(&format!("{ALL} AND room_id = ?3 AND session_id = ?4"))?
                .query_map(params![user.as_str(), version, room.as_str(), session], map)?
                .collect(),
            (Some(room), None) => self
                .conn()
                .prepare_cached(&format!("{ALL} AND room_id = ?3"))?
                .query_map(params![user.as_str(), version, room.as_str()], map)?
                .collect(),
            (None, _) => self
                .conn()
                .prepare_cached(ALL)?
                .query_map(params![user.as_str(), version], map)?
                .collect(),
        };
        Ok(keys?)
    }
}

impl WriteTxn<'_> {
    /// Makes a new backup and returns its version, which no backup of the user ever had.
    pub fn create_key_backup(&self, user: &UserId, algorithm: &str, auth_data: &RawValue) -> Result<i64, StoreError> {
        let version = self
            .conn()
            .prepare_cached(
                "INSERT INTO key_backups (user_id, version, algorithm, auth_data)
                 VALUES (?1, 1 + (SELECT coalesce(max(version), 0) FROM key_backups WHERE user_id = ?1), ?2, ?3)
                 RETURNING version",
            )?
            .query_row([user.as_str(), algorithm, auth_data.get()], |row| row.get(0))?;
        Ok(version)
    }

    /// Replaces a backup's algorithm data.
    pub fn set_key_backup_auth_data(
        &self,
        user: &UserId,
        version: i64,
        auth_data: &RawValue,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE key_backups SET auth_data = ?3 WHERE user_id = ?1 AND version = ?2")?
            .execute(params![user.as_str(), version, auth_data.get()])?;
        Ok(())
    }

    /// Deletes a backup with its keys; false when there is none. Its version is not used again.
    pub fn delete_key_backup(&self, user: &UserId, version: i64) -> Result<bool, StoreError> {
        let deleted = self
            .conn()
            .prepare_cached(
                "UPDATE key_backups SET deleted = 1, count = 0, auth_data = '{}'
                 WHERE user_id = ?1 AND version = ?2 AND deleted = 0",
            )?
            .execute(params![user.as_str(), version])?;
        self.conn()
            .prepare_cached("DELETE FROM backed_up_keys WHERE user_id = ?1 AND version = ?2")?
            .execute(params![user.as_str(), version])?;
        Ok(deleted > 0)
    }

    /// Puts a session's key into a backup unless the one that is there is as good or better. The caller counts what
    /// changed and tells [`WriteTxn::count_backup_change`].
    pub fn back_up_key(
        &self,
        user: &UserId,
        version: i64,
        key: &BackedUpKey,
        rank: RoomKeyRank,
    ) -> Result<KeyChange, StoreError> {
        let kept = self
            .conn()
            .prepare_cached(
                "SELECT is_verified, first_message_index, forwarded_count FROM backed_up_keys
                 WHERE user_id = ?1 AND version = ?2 AND room_id = ?3 AND session_id = ?4",
            )?
            .query_row(
                params![user.as_str(), version, key.room_id.as_str(), key.session_id],
                |row| {
                    Ok(RoomKeyRank {
                        is_verified: row.get(0)?,
                        first_message_index: unsigned(row, 1)?,
                        forwarded_count: unsigned(row, 2)?,
                    })
                },
            )
            .optional()?;
        let change = match kept {
            Some(kept) if !rank.replaces(kept) => return Ok(KeyChange::Kept),
            Some(_) => KeyChange::Replaced,
            None => KeyChange::Added,
        };
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO backed_up_keys
                 (user_id, version, room_id, session_id, is_verified, first_message_index, forwarded_count, key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                user.as_str(),
                version,
                key.room_id.as_str(),
                key.session_id,
                rank.is_verified,
                i64::try_from(rank.first_message_index).unwrap_or(i64::MAX),
                i64::try_from(rank.forwarded_count).unwrap_or(i64::MAX),
                key.key.json().get(),
            ])?;
        Ok(change)
    }

    /// Deletes keys from a backup: all, those of a room, or the one of a session. Returns how many.
    pub fn delete_backed_up_keys(
        &self,
        user: &UserId,
        version: i64,
        room: Option<&RoomId>,
        session: Option<&str>,
    ) -> Result<usize, StoreError> {
        let deleted = self
            .conn()
            .prepare_cached(
                "DELETE FROM backed_up_keys WHERE user_id = ?1 AND version = ?2
                 AND (?3 IS NULL OR room_id = ?3) AND (?4 IS NULL OR session_id = ?4)",
            )?
            .execute(params![user.as_str(), version, room.map(RoomId::as_str), session])?;
        Ok(deleted)
    }

    /// Notes that a backup's keys changed: moves its etag on and its count by the difference. Returns both.
    pub fn count_backup_change(&self, user: &UserId, version: i64, difference: i64) -> Result<(i64, i64), StoreError> {
        let counted = self
            .conn()
            .prepare_cached(
                "UPDATE key_backups SET etag = etag + 1, count = count + ?3 WHERE user_id = ?1 AND version = ?2
                 RETURNING etag, count",
            )?
            .query_row(params![user.as_str(), version, difference], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        Ok(counted)
    }
}
