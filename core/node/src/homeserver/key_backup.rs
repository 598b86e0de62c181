//! Backups of room keys that only their owner can decrypt. It never looks into a key, and keeps the better of two.

use kith_engine::encryption::RoomKeyRank;
use kith_store::{BackedUpKey, KeyBackup, KeyChange, ReadTxn};
use ruma::{
    OwnedRoomId, OwnedUserId, UInt,
    api::{
        client::backup::{BackupAlgorithm, KeyBackupData},
        error::{ErrorKind, WrongRoomKeysVersionErrorData},
    },
    exports::http::StatusCode,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Context;
use crate::Error;

/// The largest backed-up key accepted, in bytes.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// The largest `auth_data` accepted, in bytes.
const MAX_AUTH_DATA_BYTES: usize = 64 * 1024;

/// The key backup service.
#[derive(Clone)]
pub struct KeyBackups {
    ctx: Context,
}

/// Which keys of a backup a request is about.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All of them.
    All,
    /// Those of a room.
    Room(OwnedRoomId),
    /// The one of a session.
    Session(OwnedRoomId, String),
}

/// Where a backup stands after a change: `etag` and number of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Differs from every earlier one of the backup, if its keys do.
    pub etag: String,
    /// How many keys the backup holds.
    pub count: UInt,
}

impl KeyBackups {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Makes a new backup and returns its version. It becomes the one that keys are stored in.
    pub async fn create(&self, user: OwnedUserId, algorithm: &Raw<BackupAlgorithm>) -> Result<String, Error> {
        let Uploaded {
            algorithm, auth_data, ..
        } = Uploaded::parse(algorithm)?;
        let version = self
            .ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.create_key_backup(&user, &algorithm, &auth_data)?))
            .await?;
        Ok(version.to_string())
    }

    /// The newest backup; `M_NOT_FOUND` without.
    pub async fn current(&self, user: OwnedUserId) -> Result<KeyBackup, Error> {
        let found = self
            .ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.current_key_backup(&user)?))
            .await?;
        found.ok_or_else(|| Error::not_found("there is no backup"))
    }

    /// One backup; `M_NOT_FOUND` without.
    pub async fn version(&self, user: OwnedUserId, version: String) -> Result<KeyBackup, Error> {
        self.ctx.store.read(move |txn| existing(txn, &user, &version)).await
    }

    /// Replaces a backup's `auth_data`. The algorithm cannot change (`M_INVALID_PARAM`).
    pub async fn update(
        &self,
        user: OwnedUserId,
        version: String,
        algorithm: &Raw<BackupAlgorithm>,
    ) -> Result<(), Error> {
        let uploaded = Uploaded::parse(algorithm)?;
        if uploaded.version.as_ref().is_some_and(|stated| *stated != version) {
            return Err(Error::invalid_param(
                "the version in the body is not the one in the path",
            ));
        }
        self.ctx
            .store
            .write(move |txn| {
                let backup = existing(txn, &user, &version)?;
                if backup.algorithm != uploaded.algorithm {
                    return Err(Error::invalid_param("a backup's algorithm cannot change"));
                }
                Ok(txn.set_key_backup_auth_data(&user, backup.version, &uploaded.auth_data)?)
            })
            .await
    }

    /// Deletes a backup with its keys; `M_NOT_FOUND` without.
    pub async fn delete(&self, user: OwnedUserId, version: String) -> Result<(), Error> {
        self.ctx
            .store
            .write(move |txn| {
                let backup = existing(txn, &user, &version)?;
                txn.delete_key_backup(&user, backup.version)?;
                Ok(())
            })
            .await
    }

    /// Keys of a backup. An unknown session, unlike an empty room, is `M_NOT_FOUND`.
    pub async fn keys(&self, user: OwnedUserId, version: String, which: Selection) -> Result<Vec<BackedUpKey>, Error> {
        self.ctx
            .store
            .read(move |txn| {
                let backup = existing(txn, &user, &version)?;
                let (room, session) = which.parts();
                let keys = txn.backed_up_keys(&user, backup.version, room.map(|room| &**room), session)?;
                if session.is_some() && keys.is_empty() {
                    return Err(Error::not_found("the backup has no key of this session"));
                }
                Ok(keys)
            })
            .await
    }

    /// Stores keys in the newest backup, each unless the one that is there is as good or better.
    ///
    /// Refuses with `M_WRONG_ROOM_KEYS_VERSION` when the backup is not the newest, `M_NOT_FOUND` when there is none.
    pub async fn store_keys(&self, user: OwnedUserId, version: String, keys: Vec<BackedUpKey>) -> Result<Tally, Error> {
        let keys = keys
            .into_iter()
            .map(|key| Ok((rank(&key.key)?, key)))
            .collect::<Result<Vec<_>, Error>>()?;
        self.ctx
            .store
            .write(move |txn| {
                let backup = existing(txn, &user, &version)?;
                let current = txn.current_key_backup(&user)?.map_or(0, |current| current.version);
                if backup.version != current {
                    return Err(wrong_version(current));
                }
                let (mut added, mut changed) = (0, false);
                for (rank, key) in &keys {
                    match txn.back_up_key(&user, backup.version, key, *rank)? {
                        KeyChange::Added => added += 1,
                        KeyChange::Replaced => changed = true,
                        KeyChange::Kept => {}
                    }
                }
                if added == 0 && !changed {
                    return Ok(tally(backup.etag, backup.count));
                }
                let (etag, count) = txn.count_backup_change(&user, backup.version, added)?;
                Ok(tally(etag, count))
            })
            .await
    }

    /// Deletes keys from any backup. Deleting what is not there is no error.
    pub async fn delete_keys(&self, user: OwnedUserId, version: String, which: Selection) -> Result<Tally, Error> {
        self.ctx
            .store
            .write(move |txn| {
                let backup = existing(txn, &user, &version)?;
                let (room, session) = which.parts();
                let deleted = txn.delete_backed_up_keys(&user, backup.version, room.map(|room| &**room), session)?;
                if deleted == 0 {
                    return Ok(tally(backup.etag, backup.count));
                }
                let difference = i64::try_from(deleted).unwrap_or(i64::MAX);
                let (etag, count) = txn.count_backup_change(&user, backup.version, -difference)?;
                Ok(tally(etag, count))
            })
            .await
    }
}

impl Selection {
    fn parts(&self) -> (Option<&OwnedRoomId>, Option<&str>) {
        match self {
            Self::All => (None, None),
            Self::Room(room) => (Some(room), None),
            Self::Session(room, session) => (Some(room), Some(session)),
        }
    }
}

/// The tally as clients get it.
pub fn tally(etag: i64, count: i64) -> Tally {
    Tally {
        etag: etag.to_string(),
        count: UInt::try_from(count).unwrap_or(UInt::MIN),
    }
}

/// A backup's description as clients upload it. Nothing in `auth_data` is for the server to judge.
#[derive(Deserialize)]
struct Uploaded {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

impl Uploaded {
    fn parse(json: &Raw<BackupAlgorithm>) -> Result<Self, Error> {
        let uploaded: Self = json
            .deserialize_as_unchecked()
            .map_err(|error| Error::bad_json(error.to_string()))?;
        if !uploaded.auth_data.get().starts_with('{') {
            return Err(Error::bad_json("auth_data is not an object"));
        }
        if uploaded.auth_data.get().len() > MAX_AUTH_DATA_BYTES {
            return Err(too_large());
        }
        Ok(uploaded)
    }
}

/// The part of a backed-up key that decides whether it stays. The rest is only looked at for being there.
#[derive(Deserialize)]
struct Metadata {
    first_message_index: UInt,
    forwarded_count: UInt,
    is_verified: bool,
    #[serde(rename = "session_data")]
    _session_data: serde_json::Map<String, serde_json::Value>,
}

fn rank(key: &Raw<KeyBackupData>) -> Result<RoomKeyRank, Error> {
    if key.json().get().len() > MAX_KEY_BYTES {
        return Err(too_large());
    }
    let metadata: Metadata = key
        .deserialize_as_unchecked()
        .map_err(|error| Error::bad_json(error.to_string()))?;
    Ok(RoomKeyRank {
        is_verified: metadata.is_verified,
        first_message_index: metadata.first_message_index.into(),
        forwarded_count: metadata.forwarded_count.into(),
    })
}

fn existing(txn: &ReadTxn<'_>, user: &OwnedUserId, version: &str) -> Result<KeyBackup, Error> {
    let number = version.parse().ok();
    let found = number.map(|number| txn.key_backup(user, number)).transpose()?;
    found
        .flatten()
        .ok_or_else(|| Error::not_found("there is no such version of the backup"))
}

fn wrong_version(current: i64) -> Error {
    let data = WrongRoomKeysVersionErrorData::new(current.to_string());
    Error::refused(
        StatusCode::FORBIDDEN,
        ErrorKind::WrongRoomKeysVersion(data),
        "keys are stored only in the newest version of the backup",
    )
}

fn too_large() -> Error {
    Error::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::TooLarge,
        format!("a backed-up key has at most {MAX_KEY_BYTES} bytes"),
    )
}
