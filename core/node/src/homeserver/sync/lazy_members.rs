//! Remembers which membership events each device was told, so that they are not told twice. Forgetting is always safe:
//! what is forgotten is told again.
//!
//! Client-server API, "Lazy-loading room members".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};

use crate::homeserver::Session;
use crate::homeserver::timeline::SyncToken;

/// Membership events remembered over all devices; at about 200 bytes each.
const REMEMBERED: usize = 32 * 1024;

/// Which membership event of each user a device was told, by room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ToldMembers {
    rooms: BTreeMap<OwnedRoomId, BTreeMap<OwnedUserId, OwnedEventId>>,
    /// Rooms that were told anew: what was told of them before does not count.
    anew: BTreeSet<OwnedRoomId>,
}

impl ToldMembers {
    /// Whether this very membership event was told.
    pub(super) fn contains(&self, room: &RoomId, user: &UserId, event: &OwnedEventId) -> bool {
        self.rooms.get(room).and_then(|users| users.get(user)) == Some(event)
    }

    /// Notes a membership event as told.
    pub(super) fn insert(&mut self, room: &RoomId, user: &UserId, event: OwnedEventId) {
        self.rooms
            .entry(room.to_owned())
            .or_default()
            .insert(user.to_owned(), event);
    }

    /// Notes that a room is told anew, so that the client keeps nothing of what it held of it.
    pub(super) fn start_room(&mut self, room: &RoomId) {
        self.rooms.remove(room);
        self.anew.insert(room.to_owned());
    }

    fn absorb(&mut self, newer: Self) {
        for room in newer.anew {
            self.rooms.remove(&room);
        }
        for (room, users) in newer.rooms {
            self.rooms.entry(room).or_default().extend(users);
        }
    }

    fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.anew.is_empty()
    }

    fn len(&self) -> usize {
        self.rooms.values().map(BTreeMap::len).sum()
    }
}

/// What a device confirmed, and what the last answer to it told. The device confirms by asking on from that answer's
/// token; if it asks from anywhere else, it may never have got the answer.
#[derive(Debug)]
struct Device {
    confirmed: Arc<ToldMembers>,
    confirmed_at: Option<SyncToken>,
    pending: Option<(SyncToken, ToldMembers)>,
    /// When the device last asked, in the order of asking.
    asked: u64,
}

/// The memory of all devices.
#[derive(Debug, Default)]
pub(super) struct LazyMembers {
    devices: Mutex<Devices>,
}

#[derive(Debug, Default)]
struct Devices {
    known: HashMap<(OwnedUserId, OwnedDeviceId), Device>,
    clock: u64,
}

impl LazyMembers {
    /// What a device that asks from `since` surely holds.
    pub(super) fn confirmed(&self, session: &Session, since: Option<&SyncToken>) -> Arc<ToldMembers> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = devices.known.get_mut(&key(session)) else {
            return Arc::default();
        };
        match device.pending.take() {
            Some((token, told)) if Some(&token) == since => {
                if !told.is_empty() {
                    Arc::make_mut(&mut device.confirmed).absorb(told);
                }
                device.confirmed_at = Some(token);
            }
            // The same question again: its answer got lost, or a second request runs beside the first.
            pending if device.confirmed_at.as_ref() == since => device.pending = pending,
            // A client that starts anew or returns to an old token holds who knows what.
            _ => {
                devices.known.remove(&key(session));
                return Arc::default();
            }
        }
        Arc::clone(&device.confirmed)
    }

    /// Notes what an answer from `since` to `next` tells beyond what the device holds.
    pub(super) fn told(&self, session: &Session, since: Option<&SyncToken>, next: SyncToken, told: ToldMembers) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.clock += 1;
        let asked = devices.clock;
        let device = devices.known.entry(key(session)).or_insert_with(|| Device {
            confirmed: Arc::default(),
            confirmed_at: since.copied(),
            pending: None,
            asked,
        });
        device.asked = asked;
        device.pending = Some((next, told));
        devices.shrink();
    }
}

impl Devices {
    /// Forgets the devices that asked longest ago until the bound holds.
    fn shrink(&mut self) {
        let weight =
            |device: &Device| device.confirmed.len() + device.pending.as_ref().map_or(0, |(_, told)| told.len());
        let mut total: usize = self.known.values().map(weight).sum();
        while total > REMEMBERED {
            let oldest = self.known.iter().min_by_key(|(_, device)| device.asked);
            let Some((key, device)) = oldest.map(|(key, device)| (key.clone(), weight(device))) else {
                return;
            };
            self.known.remove(&key);
            total -= device;
        }
    }
}

fn key(session: &Session) -> (OwnedUserId, OwnedDeviceId) {
    (session.user_id.clone(), session.device_id.clone())
}

#[cfg(test)]
mod tests {
    use kith_store::Seq;
    use ruma::{event_id, owned_device_id, owned_event_id, owned_user_id, room_id, user_id};

    use super::*;

    fn session() -> Session {
        Session {
            user_id: owned_user_id!("@a:x"),
            device_id: owned_device_id!("PHONE"),
        }
    }

    fn at(seq: i64) -> SyncToken {
        SyncToken {
            seq: Seq(seq),
            ephemeral: 0,
            to_device: Seq(seq),
        }
    }

    fn told() -> ToldMembers {
        let mut told = ToldMembers::default();
        told.insert(room_id!("!r:x"), user_id!("@b:x"), owned_event_id!("$b"));
        told
    }

    fn knows(members: &ToldMembers) -> bool {
        members.contains(room_id!("!r:x"), user_id!("@b:x"), &event_id!("$b").to_owned())
    }

    #[test]
    fn going_on_confirms() {
        let memory = LazyMembers::default();
        memory.told(&session(), None, at(5), told());
        assert!(knows(&memory.confirmed(&session(), Some(&at(5)))));
        memory.told(&session(), Some(&at(5)), at(7), ToldMembers::default());
        assert!(knows(&memory.confirmed(&session(), Some(&at(7)))));
    }

    #[test]
    fn a_lost_answer_is_not_held() {
        let memory = LazyMembers::default();
        memory.told(&session(), None, at(5), ToldMembers::default());
        memory.confirmed(&session(), Some(&at(5)));
        memory.told(&session(), Some(&at(5)), at(7), told());
        assert!(!knows(&memory.confirmed(&session(), Some(&at(5)))));
        // The answer had only been slow: going on from it still confirms.
        assert!(knows(&memory.confirmed(&session(), Some(&at(7)))));
    }

    #[test]
    fn starting_anew_or_from_an_old_token_forgets() {
        for since in [None, Some(at(3))] {
            let memory = LazyMembers::default();
            memory.told(&session(), Some(&at(2)), at(5), told());
            assert!(knows(&memory.confirmed(&session(), Some(&at(5)))));
            assert!(!knows(&memory.confirmed(&session(), since.as_ref())));
            assert!(!knows(&memory.confirmed(&session(), Some(&at(5)))));
        }
    }

    #[test]
    fn another_event_of_the_same_user_is_news() {
        let other = owned_event_id!("$other");
        assert!(!told().contains(room_id!("!r:x"), user_id!("@b:x"), &other));
        assert!(!told().contains(room_id!("!s:x"), user_id!("@b:x"), &owned_event_id!("$b")));
    }

    #[test]
    fn a_room_told_anew_starts_empty() {
        let memory = LazyMembers::default();
        memory.told(&session(), None, at(5), told());
        assert!(knows(&memory.confirmed(&session(), Some(&at(5)))));
        let mut anew = ToldMembers::default();
        anew.start_room(room_id!("!r:x"));
        memory.told(&session(), Some(&at(5)), at(7), anew);
        assert!(!knows(&memory.confirmed(&session(), Some(&at(7)))));
    }

    #[test]
    fn memory_is_bounded() {
        let memory = LazyMembers::default();
        for device in 0..4 {
            let mut members = ToldMembers::default();
            for user in 0..REMEMBERED / 2 - 1 {
                let user = UserId::parse(format!("@u{user}:x")).unwrap();
                members.insert(room_id!("!r:x"), &user, owned_event_id!("$e"));
            }
            let session = Session {
                device_id: format!("D{device}").into(),
                ..session()
            };
            memory.told(&session, None, at(1), members);
        }
        let devices = memory.devices.lock().unwrap();
        assert_eq!(devices.known.len(), 2);
        assert!(devices.known.keys().all(|(_, device)| device == "D2" || device == "D3"));
    }
}
