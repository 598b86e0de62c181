//! Which events users of this node are to be notified of, and which of them they have read. It evaluates no rule.

use std::collections::BTreeMap;

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, events::receipt::ReceiptThread};
use rusqlite::params;

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// Unread notifications kept for a user in one room; beyond them counts stand still.
const UNREAD: i64 = 1000;
/// Read notifications kept for a user, for `GET /notifications`.
const READ: i64 = 200;
/// How often, in stream positions, old unread notifications are looked for.
const PRUNE_EVERY: i64 = 64;

/// How much a user has not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnreadCounts {
    /// Events that notify.
    pub notifications: u64,
    /// Those among them that are highlighted.
    pub highlights: u64,
}

/// How much a user has not read in one room.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomCounts {
    /// Outside of threads.
    pub main: UnreadCounts,
    /// In each thread, by its root.
    pub threads: BTreeMap<OwnedEventId, UnreadCounts>,
}

impl RoomCounts {
    /// Threads included, as clients see it that do not ask for threads apart.
    pub fn total(&self) -> UnreadCounts {
        self.threads.values().fold(self.main, |sum, thread| UnreadCounts {
            notifications: sum.notifications + thread.notifications,
            highlights: sum.highlights + thread.highlights,
        })
    }
}

/// A notification to keep.
#[derive(Debug, Clone)]
pub struct NewNotification<'a> {
    /// The event's place in its room's timeline.
    pub stream: Seq,
    /// The root of the event's thread.
    pub thread: Option<&'a EventId>,
    /// Whether it is highlighted.
    pub highlight: bool,
    /// The JSON of the actions of the rule that matched.
    pub actions: &'a str,
}

/// A notification as `GET /notifications` lists it.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event's place in its room's timeline.
    pub stream: Seq,
    /// The event.
    pub event_id: OwnedEventId,
    /// Whether it was read.
    pub read: bool,
    /// The JSON of the actions of the rule that matched.
    pub actions: String,
}

impl ReadTxn<'_> {
    /// How much a user has not read in a room.
    pub fn notification_counts(&self, user_id: &UserId, room_id: &RoomId) -> Result<RoomCounts, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT thread, count(*), sum(highlight) FROM notifications INDEXED BY notifications_unread
             WHERE user = (SELECT user FROM users WHERE user_id = ?1)
               AND room = (SELECT room FROM rooms WHERE room_id = ?2) AND NOT read GROUP BY thread",
        )?;
        let mut rows = statement.query([user_id.as_str(), room_id.as_str()])?;
        let mut counts = RoomCounts::default();
        while let Some(row) = rows.next()? {
            let unread = UnreadCounts {
                notifications: row.get(1)?,
                highlights: row.get(2)?,
            };
            if row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?.is_empty() {
                counts.main = unread;
            } else {
                counts.threads.insert(column::id(row, 0)?, unread);
            }
        }
        Ok(counts)
    }

    /// A user's notifications before a place, newest first.
    pub fn notifications(
        &self,
        user_id: &UserId,
        before: Seq,
        highlights_only: bool,
        limit: usize,
    ) -> Result<Vec<Notification>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, stream, event_id, read, actions FROM notifications
             JOIN events USING (room, stream) JOIN rooms USING (room)
             WHERE user = (SELECT user FROM users WHERE user_id = ?1) AND stream < ?2 AND highlight >= ?3
             ORDER BY stream DESC LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![user_id.as_str(), before.0, highlights_only, limit], |row| {
            Ok(Notification {
                room_id: column::id(row, 0)?,
                stream: Seq(row.get(1)?),
                event_id: column::id(row, 2)?,
                read: row.get(3)?,
                actions: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many users are joined to a room, counted no further than `most`.
    pub fn joined_count_upto(&self, room_id: &RoomId, most: u32) -> Result<u32, StoreError> {
        let count = self.lookup(
            "SELECT count(*) FROM (SELECT 1 FROM members WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
             AND membership = 0 LIMIT ?)",
            params![room_id.as_str(), most],
        )?;
        Ok(count.unwrap_or(0))
    }

    /// The users of this node who are joined to a room.
    pub fn local_joined_users(&self, room_id: &RoomId) -> Result<Vec<OwnedUserId>, StoreError> {
        // Accounts are few and members may be many: the accounts are walked.
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM accounts CROSS JOIN users USING (user_id) CROSS JOIN members USING (user)
             WHERE members.room = (SELECT room FROM rooms WHERE room_id = ?) AND membership = 0",
        )?;
        let users = statement.query_map([room_id.as_str()], |row| column::id(row, 0))?;
        Ok(users.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Keeps a notification of an event, unread.
    pub fn insert_notification(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        new: &NewNotification<'_>,
    ) -> Result<(), StoreError> {
        let Some((user, room)) = self.user_and_room(user_id, room_id)? else {
            return Ok(());
        };
        self.conn()
            .prepare_cached(
                "INSERT OR IGNORE INTO notifications (user, room, stream, thread, highlight, actions)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                user,
                room,
                new.stream.0,
                new.thread.map_or("", EventId::as_str),
                new.highlight,
                new.actions,
            ])?;
        if new.stream.0 % PRUNE_EVERY == 0 {
            self.conn()
                .prepare_cached(
                    "DELETE FROM notifications WHERE user = ?1 AND room = ?2 AND stream <
                     (SELECT stream FROM notifications WHERE user = ?1 AND room = ?2
                      ORDER BY stream DESC LIMIT 1 OFFSET ?3)",
                )?
                .execute(params![user, room, UNREAD])?;
        }
        Ok(())
    }

    /// Notes that a user has read a room, or one thread of it, up to a place in its timeline. Says whether that changed
    /// anything.
    pub fn mark_read(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        thread: &ReceiptThread,
        upto: Seq,
    ) -> Result<bool, StoreError> {
        let Some((user, room)) = self.user_and_room(user_id, room_id)? else {
            return Ok(false);
        };
        let thread = match thread {
            ReceiptThread::Main => Some(""),
            ReceiptThread::Thread(root) => Some(root.as_str()),
            _ => None,
        };
        let read = self
            .conn()
            .prepare_cached(
                "UPDATE notifications SET read = 1 WHERE user = ?1 AND room = ?2 AND stream <= ?3 AND NOT read
                 AND (?4 IS NULL OR thread = ?4)",
            )?
            .execute(params![user, room, upto.0, thread])?;
        if read > 0 {
            self.conn()
                .prepare_cached(
                    "DELETE FROM notifications WHERE user = ?1 AND read AND stream <
                     (SELECT stream FROM notifications WHERE user = ?1 AND read ORDER BY stream DESC LIMIT 1 OFFSET ?2)",
                )?
                .execute(params![user, READ])?;
        }
        Ok(read > 0)
    }

    /// Forgets every notification of an event, because it was redacted.
    pub fn forget_notifications_of(&self, event_id: &EventId) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM notifications WHERE (user, room, stream) IN
                 (SELECT users.user, events.room, events.stream FROM events, accounts JOIN users USING (user_id)
                  WHERE event_id = ?1 AND stream IS NOT NULL)",
            )?
            .execute([event_id.as_str()])?;
        Ok(())
    }

    /// Forgets every notification of a user in a room, because the user is no longer there.
    pub fn forget_notifications_in(&self, user_id: &UserId, room_id: &RoomId) -> Result<(), StoreError> {
        let Some((user, room)) = self.user_and_room(user_id, room_id)? else {
            return Ok(());
        };
        self.conn()
            .prepare_cached("DELETE FROM notifications WHERE user = ?1 AND room = ?2")?
            .execute([user, room])?;
        Ok(())
    }

    fn user_and_room(&self, user_id: &UserId, room_id: &RoomId) -> Result<Option<(i64, i64)>, StoreError> {
        Ok(self.user_no(user_id)?.zip(self.room_no(room_id)?))
    }
}
