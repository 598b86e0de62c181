//! Room aliases of this node, and the rooms that it publishes. Who may change them is decided elsewhere.

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// An alias of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The room that it names.
    pub room_id: OwnedRoomId,
    /// The local user who made it.
    pub creator: OwnedUserId,
}

impl ReadTxn<'_> {
    /// What an alias names.
    pub fn alias(&self, alias: &RoomAliasId) -> Result<Option<Alias>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT room_id, creator FROM aliases WHERE alias = ?1")?
            .query_row([alias.as_str()], |row| {
                Ok(Alias {
                    room_id: column::id(row, 0)?,
                    creator: column::id(row, 1)?,
                })
            })
            .optional()?;
        Ok(found)
    }

    /// A room's aliases here, in alphabetical order.
    pub fn aliases_of(&self, room: &RoomId) -> Result<Vec<OwnedRoomAliasId>, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT alias FROM aliases WHERE room_id = ?1 ORDER BY alias")?;
        let rows = query.query_map([room.as_str()], |row| column::id(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether the public room list shows a room.
    pub fn is_published(&self, room: &RoomId) -> Result<bool, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT 1 FROM published_rooms WHERE room_id = ?1")?;
        Ok(query.exists([room.as_str()])?)
    }

    /// The rooms that the public room list shows.
    pub fn published_rooms(&self) -> Result<Vec<OwnedRoomId>, StoreError> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT room_id FROM published_rooms ORDER BY room_id")?;
        let rows = query.query_map([], |row| column::id(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Adds an alias; `false` if it exists already, and then nothing changes.
    pub fn add_alias(&self, alias: &RoomAliasId, room: &RoomId, creator: &UserId) -> Result<bool, StoreError> {
        let added = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO aliases (alias, room_id, creator) VALUES (?1, ?2, ?3)")?
            .execute(params![alias.as_str(), room.as_str(), creator.as_str()])?;
        Ok(added > 0)
    }

    /// Removes an alias; `false` if there was none.
    pub fn remove_alias(&self, alias: &RoomAliasId) -> Result<bool, StoreError> {
        let removed = self
            .conn()
            .prepare_cached("DELETE FROM aliases WHERE alias = ?1")?
            .execute([alias.as_str()])?;
        Ok(removed > 0)
    }

    /// Lets all aliases of one room name another, as after an upgrade.
    pub fn move_aliases(&self, from: &RoomId, to: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE aliases SET room_id = ?2 WHERE room_id = ?1")?
            .execute([from.as_str(), to.as_str()])?;
        Ok(())
    }

    /// Shows a room in the public room list, or hides it.
    pub fn set_published(&self, room: &RoomId, published: bool) -> Result<(), StoreError> {
        let change = if published {
            "INSERT OR IGNORE INTO published_rooms (room_id) VALUES (?1)"
        } else {
            "DELETE FROM published_rooms WHERE room_id = ?1"
        };
        self.conn().prepare_cached(change)?.execute([room.as_str()])?;
        Ok(())
    }
}
