//! Names that recur, kept once and spoken of by number everywhere else in the file. It judges no name.

use std::{cell::RefCell, collections::HashMap};

use kith_engine::StateKey;
use ruma::{EventId, OwnedEventId, RoomId, ServerName, UserId, events::StateEventType};
use rusqlite::{OptionalExtension, Params, types::FromSql};

use crate::{ReadTxn, StoreError, WriteTxn};

/// Names of each kind that one transaction remembers at the most.
const REMEMBERED: usize = 4096;

/// What one transaction has learned of names: a job that keeps many events of one room asks for the same ones over and
/// over. Rows of names are never deleted and never renumbered, so within a transaction a number that was found stays
/// right; what is undone with a job is forgotten with it.
#[derive(Default)]
pub(crate) struct Numbers {
    rooms: Known,
    users: Known,
    servers: Known,
    events: Known,
    types: Known,
    /// By type name and state key, which no separator could tell apart: one map in another.
    keys: RefCell<HashMap<String, HashMap<String, i64>>>,
}

#[derive(Default)]
struct Known(RefCell<HashMap<String, i64>>);

impl Known {
    /// The number of a name: remembered, or looked up and then remembered if there is one.
    fn get(
        &self,
        name: &str,
        look_up: impl FnOnce() -> Result<Option<i64>, StoreError>,
    ) -> Result<Option<i64>, StoreError> {
        if let Some(known) = self.0.borrow().get(name) {
            return Ok(Some(*known));
        }
        let found = look_up()?;
        if let Some(number) = found {
            let mut known = self.0.borrow_mut();
            if known.len() < REMEMBERED {
                known.insert(name.to_owned(), number);
            }
        }
        Ok(found)
    }
}

impl ReadTxn<'_> {
    /// One value of one row, or none.
    pub(crate) fn lookup<T: FromSql>(&self, sql: &str, params: impl Params) -> Result<Option<T>, StoreError> {
        let mut statement = self.conn().prepare_cached(sql)?;
        Ok(statement.query_row(params, |row| row.get(0)).optional()?)
    }

    pub(crate) fn room_no(&self, room: &RoomId) -> Result<Option<i64>, StoreError> {
        self.numbers().rooms.get(room.as_str(), || {
            self.lookup("SELECT room FROM rooms WHERE room_id = ?", [room.as_str()])
        })
    }

    pub(crate) fn user_no(&self, user: &UserId) -> Result<Option<i64>, StoreError> {
        self.numbers().users.get(user.as_str(), || {
            self.lookup("SELECT user FROM users WHERE user_id = ?", [user.as_str()])
        })
    }

    pub(crate) fn server_no(&self, server: &ServerName) -> Result<Option<i64>, StoreError> {
        self.numbers().servers.get(server.as_str(), || {
            self.lookup("SELECT server FROM servers WHERE name = ?", [server.as_str()])
        })
    }

    pub(crate) fn event_no(&self, id: &EventId) -> Result<Option<i64>, StoreError> {
        self.numbers().events.get(id.as_str(), || {
            self.lookup("SELECT event FROM events WHERE event_id = ?", [id.as_str()])
        })
    }

    pub(crate) fn key_no(&self, key: &StateKey) -> Result<Option<i64>, StoreError> {
        let kind = key.0.to_string();
        if let Some(known) = self
            .numbers()
            .keys
            .borrow()
            .get(&kind)
            .and_then(|keys| keys.get(&key.1))
        {
            return Ok(Some(*known));
        }
        let sql = "SELECT key FROM state_keys JOIN types USING (type) WHERE name = ? AND state_key = ?";
        let found = self.lookup(sql, [kind.as_str(), key.1.as_str()])?;
        if let Some(number) = found {
            let mut keys = self.numbers().keys.borrow_mut();
            let keys = keys.entry(kind).or_default();
            if keys.len() < REMEMBERED {
                keys.insert(key.1.clone(), number);
            }
        }
        Ok(found)
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
        let look_up = || self.lookup("SELECT type FROM types WHERE name = ?", [name]);
        match self.numbers().types.get(name, look_up)? {
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
