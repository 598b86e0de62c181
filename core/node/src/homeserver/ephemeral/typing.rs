//! Who is typing where, in memory. It asks nobody whether they may.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use tokio::time::Instant;

use crate::homeserver::Passing;

/// Rooms remembered in which nobody types any more, so that clients are told so.
const QUIET_ROOMS: usize = 1_000;

/// How often other servers are told that someone is still typing.
const REPEAT: Duration = Duration::from_secs(20);

/// The users typing in rooms.
pub(super) struct Typing {
    passing: Passing,
    rooms: Mutex<HashMap<OwnedRoomId, TypingRoom>>,
}

#[derive(Default)]
struct TypingRoom {
    users: BTreeMap<OwnedUserId, Typist>,
    /// When the list of users last changed, by the counter of what passes in memory.
    changed: u64,
}

struct Typist {
    until: Instant,
    told: Instant,
}

/// What a word about typing means to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The user began: watch when it ends.
    Began,
    /// The user goes on, and others should be told that again.
    GoesOn,
    /// The user ended.
    Ended,
    /// Nothing that others need to know.
    Nothing,
}

impl Typing {
    pub(super) fn new(passing: Passing) -> Self {
        Self {
            passing,
            rooms: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnedRoomId, TypingRoom>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a user types for a while, or has ended.
    pub(super) fn note(&self, room: &RoomId, user: &UserId, lasting: Option<Duration>, now: Instant) -> Heard {
        let mut rooms = self.lock();
        let Some(lasting) = lasting else {
            return self.remove(&mut rooms, room, user);
        };
        let until = now + lasting;
        let entry = rooms.entry(room.to_owned()).or_default();
        if let Some(typist) = entry.users.get_mut(user) {
            typist.until = until;
            if now.duration_since(typist.told) < REPEAT {
                return Heard::Nothing;
            }
            typist.told = now;
            return Heard::GoesOn;
        }
        entry.users.insert(user.to_owned(), Typist { until, told: now });
        self.passing.advance(|number| entry.changed = number);
        Heard::Began
    }

    /// When a user's typing ends, if nothing more is heard.
    pub(super) fn until(&self, room: &RoomId, user: &UserId) -> Option<Instant> {
        Some(self.lock().get(room)?.users.get(user)?.until)
    }

    /// Ends a user's typing if its time is over.
    pub(super) fn expire(&self, room: &RoomId, user: &UserId, now: Instant) -> Heard {
        let mut rooms = self.lock();
        let typist = rooms.get(room).and_then(|room| room.users.get(user));
        match typist {
            Some(typist) if typist.until <= now => self.remove(&mut rooms, room, user),
            _ => Heard::Nothing,
        }
    }

    fn remove(&self, rooms: &mut HashMap<OwnedRoomId, TypingRoom>, room: &RoomId, user: &UserId) -> Heard {
        let Some(entry) = rooms.get_mut(room) else {
            return Heard::Nothing;
        };
        if entry.users.remove(user).is_none() {
            return Heard::Nothing;
        }
        self.passing.advance(|number| entry.changed = number);
        forget_quiet(rooms);
        Heard::Ended
    }

    /// Who types in a room.
    pub(super) fn in_room(&self, room: &RoomId) -> Vec<OwnedUserId> {
        let rooms = self.lock();
        let users = rooms.get(room).map(|room| room.users.keys().cloned().collect());
        users.unwrap_or_default()
    }

    /// The rooms where the list of who types changed after a number, with the lists.
    pub(super) fn since(&self, after: u64) -> Vec<(OwnedRoomId, Vec<OwnedUserId>)> {
        let rooms = self.lock();
        let changed = rooms.iter().filter(|(_, room)| room.changed > after);
        changed
            .map(|(id, room)| (id.clone(), room.users.keys().cloned().collect()))
            .collect()
    }
}

/// Forgets rooms in which nobody has typed for longest, when there are too many.
fn forget_quiet(rooms: &mut HashMap<OwnedRoomId, TypingRoom>) {
    if rooms.len() <= 2 * QUIET_ROOMS {
        return;
    }
    let quiet = rooms.values().filter(|room| room.users.is_empty());
    let mut quiet: Vec<u64> = quiet.map(|room| room.changed).collect();
    quiet.sort_unstable_by(|one, other| other.cmp(one));
    if let Some(&oldest) = quiet.get(QUIET_ROOMS) {
        rooms.retain(|_, room| !room.users.is_empty() || room.changed > oldest);
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    #[test]
    fn typing_begins_goes_on_and_ends() {
        let passing = Passing::new(&crate::clock::World::system());
        let typing = Typing::new(passing.clone());
        let (room, alice, bob) = (room_id!("!r:x"), user_id!("@alice:x"), user_id!("@bob:x"));
        let start = Instant::now();
        let (at, secs) = (|secs| start + Duration::from_secs(secs), Duration::from_secs);
        let begin = passing.last();
        let changed = |after: u64| typing.since(after).into_iter().map(|(_, users)| users).next();
        assert_eq!(changed(begin), None);
        assert_eq!(typing.note(room, alice, None, at(0)), Heard::Nothing);
        assert_eq!(typing.note(room, alice, Some(secs(30)), at(0)), Heard::Began);
        assert_eq!(changed(begin), Some(vec![alice.to_owned()]));
        let first = passing.last();
        assert!(first > begin);
        assert_eq!(typing.note(room, alice, Some(secs(30)), at(10)), Heard::Nothing);
        assert_eq!(typing.note(room, bob, Some(secs(5)), at(10)), Heard::Began);
        assert_eq!(typing.note(room, alice, Some(secs(30)), at(21)), Heard::GoesOn);
        assert_eq!(typing.until(room, alice), Some(at(51)));
        assert_eq!(typing.expire(room, alice, at(50)), Heard::Nothing);
        assert_eq!(typing.expire(room, bob, at(15)), Heard::Ended);
        assert_eq!(changed(first), Some(vec![alice.to_owned()]));
        assert_eq!(typing.note(room, alice, None, at(51)), Heard::Ended);
        assert_eq!(changed(first), Some(Vec::new()));
        assert!(typing.in_room(room).is_empty());
        assert_eq!(changed(passing.last()), None);
    }

    #[test]
    fn quiet_rooms_are_forgotten_oldest_first() {
        let typing = Typing::new(Passing::new(&crate::clock::World::system()));
        let (user, now) = (user_id!("@alice:x"), Instant::now());
        let room = |n: usize| OwnedRoomId::try_from(format!("!{n}:x")).unwrap();
        typing.note(&room(0), user, Some(Duration::from_secs(30)), now);
        for n in 1..=2 * QUIET_ROOMS {
            typing.note(&room(n), user, Some(Duration::from_secs(30)), now);
            typing.note(&room(n), user, None, now);
        }
        let left = typing.since(0).len();
        assert!((QUIET_ROOMS..=2 * QUIET_ROOMS).contains(&left), "{left}");
        assert_eq!(typing.in_room(&room(0)).len(), 1);
        let rooms = typing.lock();
        assert!(rooms.contains_key(&room(2 * QUIET_ROOMS)));
        assert!(!rooms.contains_key(&room(1)));
    }
}
