//! Names that recur, kept once and spoken of by number everywhere else in the file. It judges no name.

use kith_engine::StateKey;
use ruma::{EventId, OwnedEventId, RoomId, ServerName, UserId, events::StateEventType};
use rusqlite::{OptionalExtension, Params, types::FromSql};

use crate::{ReadTxn, StoreError, WriteTxn};

impl ReadTxn<'_> {
    /// One value of one row, or none.
    pub(crate) fn lookup<T: FromSql>(&self, sql: &str, params: impl Params) -> Result<Option<T>, StoreError> {
        let mut statement = self.conn().prepare_cached(sql)?;
        Ok(statement.query_row(params, |row| row.get(0)).optional()?)
    }

    pub(crate) fn room_no(&self, room: &RoomId) -> Result<Option<i64>, StoreError> {
        self.lookup("SELECT room FROM rooms WHERE room_id = ?", [room.as_str()])
    }

    pub(crate) fn user_no(&self, user: &UserId) -> Result<Option<i64>, StoreError> {
        self.lookup("SELECT user FROM users WHERE user_id = ?", [user.as_str()])
    }

    pub(crate) fn server_no(&self, server: &ServerName) -> Result<Option<i64>, StoreError> {
        self.lookup("SELECT server FROM servers WHERE name = ?", [server.as_str()])
    }

    pub(crate) fn event_no(&self, id: &EventId) -> Result<Option<i64>, StoreError> {
        self.lookup("SELECT event FROM events WHERE event_id = ?", [id.as_str()])
    }

    pub(crate) fn key_no(&self, key: &StateKey) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT key FROM state_keys JOIN types USING (type) WHERE name = ? AND state_key = ?";
        self.lookup(sql, [key.0.to_string().as_str(), key.1.as_str()])
    }

    pub(crate) fn key_name(&self, key: i64) -> Result<StateKey, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT name, state_key FROM state_keys JOIN types USING (type) WHERE key = ?")?;
        Ok(statement.query_row([key], |row| {
            let name: StateEventType = row.get_ref(0)?.as_str()?.into();
            Ok((name, row.get(1)?))
        })?)
    }

    pub(crate) fn event_name(&self, event: i64) -> Result<OwnedEventId, StoreError> {
        let id: String = self
            .lookup("SELECT event_id FROM events WHERE event = ?", [event])?
            .ok_or_else(|| missing("event row"))?;
        parse("event id", &id)
    }
}

impl WriteTxn<'_> {
    pub(crate) fn intern_server(&self, server: &ServerName) -> Result<i64, StoreError> {
        match self.server_no(server)? {
            Some(known) => Ok(known),
            None => self.insert("INSERT INTO servers (name) VALUES (?)", [server.as_str()]),
        }
    }

    pub(crate) fn intern_user(&self, user: &UserId) -> Result<i64, StoreError> {
        if let Some(known) = self.user_no(user)? {
            return Ok(known);
        }
        let server = self.intern_server(user.server_name())?;
        self.insert(
            "INSERT INTO users (user_id, server) VALUES (?, ?)",
            (user.as_str(), server),
        )
    }

    pub(crate) fn intern_type(&self, name: &str) -> Result<i64, StoreError> {
        match self.lookup("SELECT type FROM types WHERE name = ?", [name])? {
            Some(known) => Ok(known),
            None => self.insert("INSERT INTO types (name) VALUES (?)", [name]),
        }
    }

    pub(crate) fn intern_key(&self, kind: i64, state_key: &str) -> Result<i64, StoreError> {
        let sql = "SELECT key FROM state_keys WHERE type = ? AND state_key = ?";
        match self.lookup(sql, (kind, state_key))? {
            Some(known) => Ok(known),
            None => self.insert(
                "INSERT INTO state_keys (type, state_key) VALUES (?, ?)",
                (kind, state_key),
            ),
        }
    }

    fn insert(&self, sql: &str, params: impl Params) -> Result<i64, StoreError> {
        Ok(self.conn().prepare_cached(sql)?.insert(params)?)
    }
}

/// A row that another row promises is not there.
pub(crate) fn missing(what: &'static str) -> StoreError {
    StoreError::Corrupt {
        what,
        reason: "it is missing".to_owned(),
    }
}

/// Parses an identifier that was checked before it was stored.
pub(crate) fn parse<T>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T: for<'a> TryFrom<&'a str, Error = ruma::IdParseError>,
{
    T::try_from(text).map_err(|error| StoreError::Corrupt {
        what,
        reason: error.to_string(),
    })
}
