//! The secrets of rooms' topics: the one that is used, and those that it replaced a short while ago. Which of two is used
//! follows from them alone, so that members who learn of the same ones use the same one. It makes none.

use std::fmt;

use kith_engine::is_generation_believed;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId};
use rusqlite::{OptionalExtension, Row};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Servers that have left a room, of which the maker of a secret says that it was not given to them.
const MAX_GONE: i64 = 10;

/// The secret of a room's topic.
#[derive(Clone, PartialEq, Eq)]
pub struct Topic {
    /// How many came before it, as far as its maker knew.
    pub generation: u64,
    /// The secret.
    pub secret: [u8; 32],
    /// When it came here.
    pub adopted_at: MilliSecondsSinceUnixEpoch,
    /// When another one took its place, if one has.
    pub replaced_at: Option<MilliSecondsSinceUnixEpoch>,
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic(generation {})", self.generation)
    }
}

/// A secret that was made here, or that another member told.
#[derive(Clone)]
pub struct NewTopic {
    /// As in [`Topic`].
    pub generation: u64,
    /// The secret.
    pub secret: [u8; 32],
    /// Servers that it was not given to because they have left; none: it was made here, and given to none that has.
    pub gone: Option<Vec<OwnedServerName>>,
    /// Now.
    pub now: MilliSecondsSinceUnixEpoch,
}

/// What became of a [`NewTopic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// It is used now.
    Yes,
    /// It is used now in place of one of the same generation that was made here, which others may have been given alone.
    OverOwn,
    /// The one that is used is the same, or comes later.
    No,
}

const COLUMNS: &str = "generation, secret, adopted_at, replaced_at";

fn topic(row: &Row<'_>) -> rusqlite::Result<Topic> {
    Ok(Topic {
        generation: row.get::<_, i64>(0)?.try_into().unwrap_or(0),
        secret: row.get(1)?,
        adopted_at: column::time(row, 2)?,
        replaced_at: column::optional_time(row, 3)?,
    })
}

impl ReadTxn<'_> {
    /// The secret that a room uses.
    pub fn topic(&self, room: &RoomId) -> Result<Option<Topic>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM topics
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND replaced_at IS NULL"
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        Ok(statement.query_row([room.as_str()], topic).optional()?)
    }

    /// The secrets of a room that are still read, and the one that is used.
    pub fn topics(&self, room: &RoomId) -> Result<Vec<Topic>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM topics WHERE room = (SELECT room FROM rooms WHERE room_id = ?)");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let topics = statement.query_map([room.as_str()], topic)?;
        Ok(topics.collect::<Result<_, _>>()?)
    }

    /// The rooms that have secrets.
    pub fn rooms_with_topics(&self) -> Result<Vec<OwnedRoomId>, StoreError> {
        self.names(
            "SELECT DISTINCT room_id FROM topics JOIN rooms USING (room) ORDER BY room_id",
            "room id",
            [],
        )
    }

    /// Whether a server that has left a room may have the secret that is used there.
    pub fn is_topic_stale(&self, room: &RoomId) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM topics JOIN departures USING (room)
                   WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND replaced_at IS NULL AND seq > since LIMIT 1";
        let found: Option<i64> = self.lookup(sql, [room.as_str()])?;
        Ok(found.is_some())
    }

    /// The servers that left a room last.
    pub fn servers_gone(&self, room: &RoomId) -> Result<Vec<OwnedServerName>, StoreError> {
        self.names(
            "SELECT name FROM departures JOIN servers USING (server)
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?) ORDER BY seq DESC LIMIT ?",
            "server name",
            (room.as_str(), MAX_GONE),
        )
    }
}

impl WriteTxn<'_> {
    /// Takes a room's secret into use if it comes after the one that is used: by generation, then by its bytes. A generation
    /// that is not believed now comes before all others, also that of the one that is used.
    pub fn adopt_topic(&self, room: &RoomId, new: &NewTopic) -> Result<Adopted, StoreError> {
        let Some(number) = self.room_no(room)? else {
            return Ok(Adopted::No);
        };
        let mut statement = self.conn().prepare_cached(
            "SELECT generation, secret, since, own FROM topics WHERE room = ? AND replaced_at IS NULL",
        )?;
        let used = statement.query_row([number], |row| {
            let used: (i64, [u8; 32], i64, bool) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(used)
        });
        let used = used.optional()?;
        let believed = |generation: i64| is_generation_believed(generation.try_into().unwrap_or(0), new.now);
        let generation = i64::try_from(new.generation).unwrap_or(i64::MAX);
        if !believed(generation) {
            return Ok(Adopted::No);
        }
        let mut since = self.last_seq()?.0;
        let mut adopted = Adopted::Yes;
        if let Some((before, secret, since_before, own)) = used {
            if believed(before) && (generation, new.secret) <= (before, secret) {
                return Ok(Adopted::No);
            }
            if let Some(gone) = &new.gone
                && !self.are_all_gone(number, since_before, gone)?
            {
                since = since_before;
            }
            if own && generation == before && new.gone.is_some() {
                adopted = Adopted::OverOwn;
            }
        }
        self.conn()
            .prepare_cached("UPDATE topics SET replaced_at = ? WHERE room = ? AND replaced_at IS NULL")?
            .execute((column::millis(new.now), number))?;
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO topics (room, generation, secret, since, own, adopted_at) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute((number, generation, new.secret, since, new.gone.is_none(), column::millis(new.now)))?;
        Ok(adopted)
    }

    /// Forgets the secrets of a room that are not used any more, but for those that were replaced at this time or later.
    pub fn forget_replaced_topics(&self, room: &RoomId, before: MilliSecondsSinceUnixEpoch) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM topics WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND replaced_at < ?",
            )?
            .execute((room.as_str(), column::millis(before)))?;
        Ok(())
    }

    /// Forgets all secrets of a room.
    pub fn forget_topics(&self, room: &RoomId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM topics WHERE room = (SELECT room FROM rooms WHERE room_id = ?)")?
            .execute([room.as_str()])?;
        Ok(())
    }

    /// Whether all servers that left a room after a position are among these.
    fn are_all_gone(&self, room: i64, after: i64, gone: &[OwnedServerName]) -> Result<bool, StoreError> {
        let left: Vec<OwnedServerName> = self.names(
            "SELECT name FROM departures JOIN servers USING (server) WHERE room = ? AND seq > ?",
            "server name",
            (room, after),
        )?;
        Ok(left.iter().all(|server| gone.contains(server)))
    }
}
