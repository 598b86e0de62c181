//! Users of this node and the tokens that let new ones register. It knows no session: see `devices`.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, Row, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// The BLAKE3 hash under which a secret token is kept.
pub type TokenHash = [u8; 32];

/// One account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The full user id.
    pub user_id: OwnedUserId,
    /// The password in PHC string format; none: no login by password.
    pub password_hash: Option<String>,
    /// When it was made.
    pub created: MilliSecondsSinceUnixEpoch,
    /// Whether the user administers this node.
    pub admin: bool,
    /// Whether the account was given up for ever. Its name is never given out again.
    pub deactivated: bool,
    /// Whether an administrator has closed the account for now: no request is answered.
    pub locked: bool,
}

const USER: &str = "user_id, password_hash, created_ts, admin, deactivated, locked";

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        user_id: column::id(row, 0)?,
        password_hash: row.get(1)?,
        created: column::time(row, 2)?,
        admin: row.get(3)?,
        deactivated: row.get(4)?,
        locked: row.get(5)?,
    })
}

impl ReadTxn<'_> {
    /// One account, deactivated ones too.
    pub fn user(&self, user_id: &UserId) -> Result<Option<User>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached(&format!("SELECT {USER} FROM accounts WHERE user_id = ?1"))?;
        Ok(statement.query_row([user_id.as_str()], user).optional()?)
    }

    /// Every account, oldest first.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached(&format!("SELECT {USER} FROM accounts ORDER BY created_ts, user_id"))?;
        let users = statement.query_map([], user)?.collect::<Result<_, _>>()?;
        Ok(users)
    }

    /// Whether a registration token may be used now.
    pub fn registration_token_valid(
        &self,
        hash: &TokenHash,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM registration_tokens WHERE hash = ?1
             AND (uses_left IS NULL OR uses_left > 0) AND (expires_ts IS NULL OR expires_ts > ?2)",
        )?;
        Ok(statement.exists(params![hash, column::millis(now)])?)
    }

    /// Whether any registration token may be used now.
    pub fn any_registration_token(&self, now: MilliSecondsSinceUnixEpoch) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM registration_tokens
             WHERE (uses_left IS NULL OR uses_left > 0) AND (expires_ts IS NULL OR expires_ts > ?1)",
        )?;
        Ok(statement.exists([column::millis(now)])?)
    }
}

impl WriteTxn<'_> {
    /// Adds an account; false, and nothing is changed, when the name was ever taken. The first account of a node
    /// administers it.
    pub fn insert_user(
        &self,
        user_id: &UserId,
        password_hash: Option<&str>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "INSERT INTO accounts (user_id, password_hash, created_ts, admin)
             VALUES (?1, ?2, ?3, NOT EXISTS (SELECT 1 FROM accounts)) ON CONFLICT DO NOTHING",
        )?;
        Ok(statement.execute(params![user_id.as_str(), password_hash, column::millis(now)])? == 1)
    }

    /// Sets a password.
    pub fn set_password(&self, user_id: &UserId, password_hash: &str) -> Result<(), StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("UPDATE accounts SET password_hash = ?2 WHERE user_id = ?1")?;
        statement.execute(params![user_id.as_str(), password_hash])?;
        Ok(())
    }

    /// Gives an account up for ever: no password, no devices.
    pub fn deactivate_user(&self, user_id: &UserId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE accounts SET deactivated = 1, admin = 0, password_hash = NULL WHERE user_id = ?1")?
            .execute([user_id.as_str()])?;
        Ok(())
    }

    /// Locks or unlocks an account; false when there is none.
    pub fn set_locked(&self, user_id: &UserId, locked: bool) -> Result<bool, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("UPDATE accounts SET locked = ?2 WHERE user_id = ?1 AND NOT deactivated")?;
        Ok(statement.execute(params![user_id.as_str(), locked])? == 1)
    }

    /// Adds a registration token that works `uses` times (none: any number) until `expires` (none: for ever).
    pub fn insert_registration_token(
        &self,
        hash: &TokenHash,
        uses: Option<u32>,
        expires: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<(), StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("INSERT INTO registration_tokens (hash, uses_left, expires_ts) VALUES (?1, ?2, ?3)")?;
        statement.execute(params![hash, uses, expires.map(column::millis)])?;
        Ok(())
    }

    /// Uses a registration token once; false when it is unknown, used up or expired.
    pub fn use_registration_token(
        &self,
        hash: &TokenHash,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "UPDATE registration_tokens SET uses_left = uses_left - 1 WHERE hash = ?1
             AND (uses_left IS NULL OR uses_left > 0) AND (expires_ts IS NULL OR expires_ts > ?2)",
        )?;
        Ok(statement.execute(params![hash, column::millis(now)])? == 1)
    }
}
