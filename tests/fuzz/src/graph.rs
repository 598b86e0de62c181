//! A room made of whatever a fuzzer says: three servers of two people each send events with arbitrary pasts, all of them
//! well signed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use kith_engine::{
    CheckedPdu, CreateRoom, EventStatus, Outcome, RoomReader, StateKey, StateMap, check_pdu, receive_history,
    receive_outlier, receive_with_state,
    testing::{MemoryRooms, TestServer, any_key},
};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use ruma::{
    CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId,
    api::client::room::create_room::v3::RoomPreset, canonical_json::to_canonical_value, events::StateEventType,
};
use serde_json::{Value, json};

use crate::{VERSIONS, signed};

/// Events of one case: enough for every pair of forks, few enough for many cases a second.
const MAX_EVENTS: usize = 24;

const KINDS: [&str; 9] = [
    "m.room.member",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.create",
    "m.room.server_acl",
    "m.room.third_party_invite",
    "m.room.redaction",
    "m.room.message",
];

/// A room with nothing in it but what its creation made.
type Start = (MemoryRooms, OwnedRoomId, Vec<OwnedEventId>);

thread_local! {
    /// Signing a room's first events takes longer than a whole case.
    static START: RefCell<BTreeMap<RoomVersionId, Start>> = const { RefCell::new(BTreeMap::new()) };
}

fn start(server: &TestServer, version: &RoomVersionId) -> Start {
    let mut request = CreateRoom::new(server.user("a"));
    request.version = version.clone();
    request.preset = RoomPreset::PublicChat;
    let mut rooms = MemoryRooms::default();
    let (room, events) = rooms.create(server, &request);
    let events = events.iter().map(|event| event.event_id().to_owned()).collect();
    (rooms, room, events)
}

/// The room and all that is known of it.
pub struct Graph {
    pub rooms: MemoryRooms,
    pub room: OwnedRoomId,
    pub version: RoomVersionId,
    /// Every event that is held, in the order in which it came.
    pub events: Vec<OwnedEventId>,
    /// Every event that was made, whether it could be judged or not.
    made: Vec<CheckedPdu>,
    servers: [TestServer; 3],
}

impl Graph {
    /// A public room of one of the versions.
    pub fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let version = u.choose(&VERSIONS)?.clone();
        let servers = ["one", "two", "three"].map(TestServer::new);
        let (rooms, room, events) = START.with_borrow_mut(|starts| {
            let start = starts
                .entry(version.clone())
                .or_insert_with(|| start(&servers[0], &version));
            start.clone()
        });
        Ok(Self {
            rooms,
            room,
            version,
            events,
            made: Vec::new(),
            servers,
        })
    }

    /// Adds events for as long as the fuzzer has something to say.
    pub fn grow(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        while self.events.len() < MAX_EVENTS && !u.is_empty() {
            // What was held as a part of something else, or lacked its past, comes again.
            let event = match !self.made.is_empty() && u.ratio(1, 4)? {
                true => u.choose(&self.made)?.clone(),
                false => {
                    let Some(event) = self.event(u)? else { continue };
                    self.made.push(event.clone());
                    event
                }
            };
            let outcome = match u.int_in_range(0..=7)? {
                0 => receive_outlier(&self.rooms, &event),
                1 => receive_history(&self.rooms, &event, None),
                2 => receive_with_state(&self.rooms, &event, &self.picked(u, 5)?),
                3 => receive_history(&self.rooms, &event, Some(&self.picked(u, 5)?)),
                _ => kith_engine::receive(&self.rooms, &event),
            };
            if let Ok(Outcome::Applied(applied)) = outcome {
                self.rooms.save(&applied);
                if !self.events.iter().any(|id| id == event.event_id()) {
                    self.events.push(event.event_id().to_owned());
                }
                self.check();
            }
        }
        Ok(())
    }

    /// What holds of a room whatever is sent to it.
    pub fn check(&self) {
        self.check_state(&self.rooms.state_of(&self.room));
        for before in self.events.iter().filter_map(|id| self.rooms.state_before_event(id)) {
            self.check_state(&before);
        }
        let Ok(extremities) = self.rooms.forward_extremities(&self.room);
        assert!(!extremities.is_empty(), "there is always something to build upon");
        assert_eq!(extremities.iter().collect::<BTreeSet<_>>().len(), extremities.len());
        for id in &extremities {
            let Ok(event) = self.rooms.event(id);
            let event = event.expect("extremities are held");
            assert_eq!(event.status, EventStatus::Accepted, "{id} is built upon");
        }
    }

    /// What holds of every state of the room: no event stands there that was rejected, or under a key that is not its own.
    pub fn check_state(&self, state: &StateMap) {
        for (key, id) in state {
            let Ok(event) = self.rooms.event(id);
            let event = event.expect("states hold events that are held");
            assert_ne!(event.status, EventStatus::Rejected, "{id} stands in a state");
            assert_eq!(event.pdu.state_entry().as_ref(), Some(key));
        }
    }

    /// State events that are held and not rejected, at their keys: any choice of them is a state that forks could have.
    pub fn any_state(&self, u: &mut Unstructured<'_>) -> Result<StateMap> {
        let mut state = StateMap::new();
        for id in &self.events {
            let Ok(event) = self.rooms.event(id);
            let event = event.expect("listed events are held");
            let is_create = event.pdu.kind().to_string() == "m.room.create";
            if let Some(key) = event.pdu.state_entry()
                && event.status != EventStatus::Rejected
                && (is_create || u.ratio(2, 3)?)
            {
                state.insert(key, id.clone());
            }
        }
        Ok(state)
    }

    fn user(&self, u: &mut Unstructured<'_>) -> Result<OwnedUserId> {
        let server = &self.servers[u.choose_index(3)?];
        Ok(server.user(u.choose(&["a", "b"])?))
    }

    /// Up to so many events, now and then one that nobody has.
    fn picked(&self, u: &mut Unstructured<'_>, most: usize) -> Result<Vec<OwnedEventId>> {
        let mut picked = Vec::new();
        for _ in 0..u.int_in_range(0..=most)? {
            if u.ratio(1, 20)? {
                picked.extend(EventId::parse(format!("${}", "A".repeat(43))));
            } else {
                picked.push(u.choose(&self.events)?.clone());
            }
        }
        Ok(picked)
    }

    /// One signed event, if it is well formed.
    fn event(&self, u: &mut Unstructured<'_>) -> Result<Option<CheckedPdu>> {
        let sender = self.user(u)?;
        let kind = *u.choose(&KINDS)?;
        let mut content = self.content(u, kind)?;
        let mut event = json!({
            "type": kind,
            "sender": sender,
            "room_id": self.room,
            "origin_server_ts": u.int_in_range(0..=1_000_000)?,
        });
        let state_key = match kind {
            "m.room.message" => None,
            "m.room.redaction" => {
                let redacts = json!(u.choose(&self.events)?);
                match self.version {
                    RoomVersionId::V10 => event["redacts"] = redacts,
                    _ => content["redacts"] = redacts,
                }
                None
            }
            "m.room.member" if u.ratio(1, 2)? => Some(sender.to_string()),
            "m.room.member" => Some(self.user(u)?.to_string()),
            _ => Some(u.choose(&["", "", "x", "@a:one"])?.to_string()),
        };
        if let Some(state_key) = &state_key {
            event["state_key"] = json!(state_key);
        }
        let Ok(extremities) = self.rooms.forward_extremities(&self.room);
        let prev = if u.ratio(1, 2)? {
            extremities
        } else {
            self.picked(u, 4)?
        };
        let auth = if u.ratio(3, 4)? {
            self.usual_auth_events(sender.as_str(), state_key.as_deref())
        } else {
            self.picked(u, 6)?
        };
        event["depth"] = json!(u.int_in_range(0..=40)?);
        event["prev_events"] = json!(prev);
        event["auth_events"] = json!(auth);
        event["content"] = content;
        if kind == "m.room.create" && self.version == RoomVersionId::V12 {
            event.as_object_mut().expect("an object").remove("room_id");
        }
        Ok(self.signed(&event, sender.server_name().as_str()))
    }

    fn signed(&self, event: &Value, server: &str) -> Option<CheckedPdu> {
        let object = match to_canonical_value(event).ok()? {
            CanonicalJsonValue::Object(object) => object,
            _ => return None,
        };
        let server = self.servers.iter().find(|candidate| candidate.name == server)?;
        check_pdu(&signed(server, &self.version, object)?, &self.version, any_key).ok()
    }

    /// What an honest server names, judging by the current state.
    fn usual_auth_events(&self, sender: &str, state_key: Option<&str>) -> Vec<OwnedEventId> {
        let state = self.rooms.state_of(&self.room);
        let key = |kind: &str, state_key: &str| -> StateKey { (StateEventType::from(kind), state_key.to_owned()) };
        let mut keys = vec![
            key("m.room.power_levels", ""),
            key("m.room.join_rules", ""),
            key("m.room.member", sender),
        ];
        if self.version != RoomVersionId::V12 {
            keys.push(key("m.room.create", ""));
        }
        if let Some(target) = state_key.filter(|target| *target != sender) {
            keys.push(key("m.room.member", target));
        }
        keys.iter().filter_map(|key| state.get(key).cloned()).collect()
    }

    fn content(&self, u: &mut Unstructured<'_>, kind: &str) -> Result<Value> {
        let levels = [
            json!(0),
            json!(1),
            json!(50),
            json!(100),
            json!(-1),
            json!("50"),
            json!(null),
            json!(i64::MAX),
        ];
        Ok(match kind {
            "m.room.member" => {
                let mut content = json!({
                    "membership": u.choose(&["join", "leave", "invite", "ban", "knock", "other", ""])?,
                });
                if u.ratio(1, 8)? {
                    content["join_authorised_via_users_server"] = json!(self.user(u)?);
                }
                content
            }
            "m.room.power_levels" => {
                let mut content = json!({"users": {}, "events": {}});
                for _ in 0..u.int_in_range(0..=3)? {
                    content["users"][self.user(u)?.as_str()] = u.choose(&levels)?.clone();
                }
                for name in [
                    "users_default",
                    "events_default",
                    "state_default",
                    "ban",
                    "kick",
                    "invite",
                    "redact",
                ] {
                    if u.ratio(1, 4)? {
                        content[name] = u.choose(&levels)?.clone();
                    }
                }
                if u.ratio(1, 4)? {
                    content["events"][*u.choose(&KINDS)?] = u.choose(&levels)?.clone();
                }
                content
            }
            "m.room.join_rules" => json!({
                "join_rule": u.choose(&["public", "invite", "knock", "restricted", "knock_restricted", "private", ""])?,
                "allow": [{"type": "m.room_membership", "room_id": self.room}],
            }),
            "m.room.create" => json!({"room_version": self.version, "creator": self.user(u)?}),
            "m.room.server_acl" => {
                json!({"allow": ["*"], "deny": u.choose(&[json!(["two"]), json!("two"), json!([1])])?})
            }
            _ => json!({"body": "x"}),
        })
    }
}
