//! Devices of this node's users and the tokens they log in with. Tokens come and go as hashes; none is ever readable.

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, Row, params};

use crate::{ReadTxn, StoreError, TokenHash, WriteTxn, column};

/// One device: a client session of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its id, unique within the user.
    pub device_id: OwnedDeviceId,
    /// What the user calls it.
    pub display_name: Option<String>,
    /// When it last made a request, give or take some minutes.
    pub last_seen: MilliSecondsSinceUnixEpoch,
    /// The address it then came from; none over a local socket.
    pub last_seen_ip: Option<String>,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Requests.
    Access,
    /// Getting the next pair of tokens.
    Refresh,
}

impl TokenKind {
    fn column(self) -> i64 {
        match self {
            Self::Access => 0,
            Self::Refresh => 1,
        }
    }
}

/// A token as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The device it belongs to.
    pub device_id: OwnedDeviceId,
    /// Counts refreshes of this device's session.
    pub generation: i64,
    /// When it stops working, if ever.
    pub expires: Option<MilliSecondsSinceUnixEpoch>,
    /// Whether an older generation's tokens still work, because nothing has yet shown that the client got this one.
    pub unconfirmed: bool,
    /// Whether an administrator has locked the account.
    pub locked: bool,
    /// When the device was last noted to make a request.
    pub last_seen: MilliSecondsSinceUnixEpoch,
}

/// A token to keep.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its hash.
    pub hash: TokenHash,
    /// What it is good for.
    pub kind: TokenKind,
    /// When it stops working, if ever.
    pub expires: Option<MilliSecondsSinceUnixEpoch>,
}

const DEVICE: &str = "device_id, display_name, last_seen_ts, last_seen_ip";

fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        device_id: row.get::<_, String>(0)?.into(),
        display_name: row.get(1)?,
        last_seen: column::time(row, 2)?,
        last_seen_ip: row.get(3)?,
    })
}

impl ReadTxn<'_> {
    /// One device of a user.
    pub fn device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Device>, StoreError> {
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT {DEVICE} FROM devices WHERE user_id = ?1 AND device_id = ?2"
        ))?;
        Ok(statement
            .query_row([user_id.as_str(), device_id.as_str()], device)
            .optional()?)
    }

    /// All devices of a user, by id.
    pub fn devices(&self, user_id: &UserId) -> Result<Vec<Device>, StoreError> {
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT {DEVICE} FROM devices WHERE user_id = ?1 ORDER BY device_id"
        ))?;
        let devices = statement
            .query_map([user_id.as_str()], device)?
            .collect::<Result<_, _>>()?;
        Ok(devices)
    }

    /// What a token's hash opens. Expired ones are found too.
    pub fn token(&self, hash: &TokenHash, kind: TokenKind) -> Result<Option<Token>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT t.user_id, t.device_id, t.generation, t.expires_ts, t.generation > d.confirmed, u.locked, d.last_seen_ts
             FROM tokens t JOIN devices d USING (user_id, device_id) JOIN accounts u USING (user_id)
             WHERE t.hash = ?1 AND t.kind = ?2",
        )?;
        let token = statement.query_row(params![hash, kind.column()], |row| {
            Ok(Token {
                user_id: column::id(row, 0)?,
                device_id: row.get::<_, String>(1)?.into(),
                generation: row.get(2)?,
                expires: column::optional_time(row, 3)?,
                unconfirmed: row.get(4)?,
                locked: row.get(5)?,
                last_seen: column::time(row, 6)?,
            })
        });
        Ok(token.optional()?)
    }
}

impl WriteTxn<'_> {
    /// Adds a device, or takes an existing one over: its earlier tokens stop working. A name is set only on a new one.
    pub fn log_device_in(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: Option<&str>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO devices (user_id, device_id, display_name, created_ts, last_seen_ts)
                 VALUES (?1, ?2, ?3, ?4, ?4)
                 ON CONFLICT DO UPDATE SET last_seen_ts = excluded.last_seen_ts, confirmed = 0",
            )?
            .execute(params![
                user_id.as_str(),
                device_id.as_str(),
                display_name,
                column::millis(now)
            ])?;
        self.conn()
            .prepare_cached("DELETE FROM tokens WHERE user_id = ?1 AND device_id = ?2")?
            .execute([user_id.as_str(), device_id.as_str()])?;
        Ok(())
    }

    /// Keeps tokens of one generation for a device that exists.
    pub fn insert_tokens(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        generation: i64,
        tokens: &[NewToken],
    ) -> Result<(), StoreError> {
        let mut statement = self.conn().prepare_cached(
            "INSERT INTO tokens (hash, user_id, device_id, kind, generation, expires_ts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for token in tokens {
            statement.execute(params![
                token.hash,
                user_id.as_str(),
                device_id.as_str(),
                token.kind.column(),
                generation,
                token.expires.map(column::millis),
            ])?;
        }
        Ok(())
    }

    /// Notes that a device holds the tokens of a generation: all others of the device stop working.
    pub fn confirm_tokens(&self, user_id: &UserId, device_id: &DeviceId, generation: i64) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE devices SET confirmed = ?3 WHERE user_id = ?1 AND device_id = ?2")?
            .execute(params![user_id.as_str(), device_id.as_str(), generation])?;
        self.conn()
            .prepare_cached("DELETE FROM tokens WHERE user_id = ?1 AND device_id = ?2 AND generation <> ?3")?
            .execute(params![user_id.as_str(), device_id.as_str(), generation])?;
        Ok(())
    }

    /// Drops tokens that were given out and never shown to have arrived.
    pub fn delete_unconfirmed_tokens(&self, user_id: &UserId, device_id: &DeviceId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM tokens WHERE user_id = ?1 AND device_id = ?2 AND generation >
                 (SELECT confirmed FROM devices WHERE user_id = ?1 AND device_id = ?2)",
            )?
            .execute([user_id.as_str(), device_id.as_str()])?;
        Ok(())
    }

    /// Renames a device; false when there is none.
    pub fn rename_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: Option<&str>,
    ) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("UPDATE devices SET display_name = ?3 WHERE user_id = ?1 AND device_id = ?2")?;
        Ok(statement.execute(params![user_id.as_str(), device_id.as_str(), display_name])? == 1)
    }

    /// Notes that a device made a request.
    pub fn touch_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        now: MilliSecondsSinceUnixEpoch,
        ip: Option<&str>,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "UPDATE devices SET last_seen_ts = ?3, last_seen_ip = ?4 WHERE user_id = ?1 AND device_id = ?2",
            )?
            .execute(params![user_id.as_str(), device_id.as_str(), column::millis(now), ip])?;
        Ok(())
    }

    /// Removes a device with its tokens; false when there is none. Takes a stream position, so that requests of the device
    /// that wait are woken.
    pub fn delete_device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("DELETE FROM devices WHERE user_id = ?1 AND device_id = ?2")?;
        let removed = statement.execute([user_id.as_str(), device_id.as_str()])? == 1;
        if removed {
            self.next_seq()?;
        }
        Ok(removed)
    }
}
