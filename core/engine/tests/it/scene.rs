//! A room with a few servers in it, to tell stories with.

use kith_engine::{
    Applied, CheckedPdu, CreateRoom, Draft, StateMap,
    testing::{MemoryRooms, TestServer, at},
};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId, api::client::room::create_room::v3::RoomPreset,
    events::StateEventType,
};
use serde_json::{Value, json};

/// Alice made the room; the others are on servers of their own.
pub(crate) struct Scene {
    pub(crate) rooms: MemoryRooms,
    pub(crate) room: OwnedRoomId,
    pub(crate) servers: Vec<TestServer>,
    /// Every event so far, in the order of its making.
    pub(crate) events: Vec<CheckedPdu>,
    clock: u32,
}

pub(crate) const NAMES: [&str; 5] = ["alice", "bob", "charlie", "ella", "zara"];

impl Scene {
    /// A room of this version and preset with Alice in it.
    pub(crate) fn new(version: RoomVersionId, preset: RoomPreset) -> Self {
        let servers: Vec<TestServer> = NAMES
            .iter()
            .map(|name| TestServer::new(&format!("{name}.example")))
            .collect();
        let mut rooms = MemoryRooms::default();
        let request = CreateRoom {
            version,
            preset,
            ..CreateRoom::new(servers[0].user("alice"))
        };
        let (room, events) = rooms.create(&servers[0], &request);
        Self {
            rooms,
            room,
            servers,
            events,
            clock: 1_000,
        }
    }

    /// A public room, everybody of these joined.
    pub(crate) fn public(version: RoomVersionId, joined: &[&str]) -> Self {
        let mut scene = Self::new(version, RoomPreset::PublicChat);
        for name in joined {
            scene.say(name, "m.room.member", Some(&user(name)), json!({"membership": "join"}));
        }
        scene
    }

    pub(crate) fn server(&self, name: &str) -> &TestServer {
        &self.servers[NAMES.iter().position(|n| *n == name).unwrap()]
    }

    pub(crate) fn draft(&self, name: &str, kind: &str, state_key: Option<&str>, content: Value) -> Draft {
        let sender: OwnedUserId = user(name).try_into().unwrap();
        let draft = Draft::message(sender, kind, content).unwrap();
        Draft {
            state_key: state_key.map(str::to_owned),
            ..draft
        }
    }

    fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// Sends an event that the room must allow.
    pub(crate) fn say(&mut self, name: &str, kind: &str, state_key: Option<&str>, content: Value) -> OwnedEventId {
        self.try_say(name, kind, state_key, content).unwrap()
    }

    /// Sends an event; the words of the refusal if the room does not allow it.
    pub(crate) fn try_say(
        &mut self,
        name: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Result<OwnedEventId, String> {
        let draft = self.draft(name, kind, state_key, content);
        let now = at(self.tick());
        let index = NAMES.iter().position(|n| *n == name).unwrap();
        let event = self
            .rooms
            .send(&self.servers[index], &self.room, &draft, now)
            .map_err(|e| e.to_string())?;
        let id = event.event_id().to_owned();
        self.events.push(event);
        Ok(id)
    }

    /// Makes an event on top of these, whether allowed or not, and does not send it.
    pub(crate) fn craft(
        &mut self,
        prev: &[&OwnedEventId],
        name: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> CheckedPdu {
        let now = self.tick();
        self.craft_at(now, prev, name, kind, state_key, content)
    }

    /// [`Scene::craft`] with a clock of its own.
    pub(crate) fn craft_at(
        &self,
        now: u32,
        prev: &[&OwnedEventId],
        name: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> CheckedPdu {
        let prev: Vec<OwnedEventId> = prev.iter().map(|id| (*id).clone()).collect();
        let draft = self.draft(name, kind, state_key, content);
        self.rooms
            .build_on(self.server(name), &self.room, &prev, &draft, at(now))
    }

    /// [`Scene::craft`], then received.
    pub(crate) fn put(
        &mut self,
        prev: &[&OwnedEventId],
        name: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> (OwnedEventId, Applied) {
        let event = self.craft(prev, name, kind, state_key, content);
        let applied = self.rooms.accept(&event);
        let id = event.event_id().to_owned();
        self.events.push(event);
        (id, applied)
    }

    pub(crate) fn last(&self) -> OwnedEventId {
        self.events.last().unwrap().event_id().to_owned()
    }

    pub(crate) fn state(&self) -> StateMap {
        self.rooms.state_of(&self.room)
    }

    /// The content of a state event of the current state.
    pub(crate) fn content(&self, kind: &str, state_key: &str) -> Option<Value> {
        let state = self.state();
        let id = state.get(&(StateEventType::from(kind), state_key.to_owned()))?;
        let event = self.events.iter().find(|event| event.event_id() == id).unwrap();
        Some(event.pdu().content_as().unwrap())
    }
}

/// The user of this name.
pub(crate) fn user(name: &str) -> String {
    format!("@{name}:{name}.example")
}

pub(crate) fn user_id(name: &str) -> OwnedUserId {
    UserId::parse(user(name)).unwrap()
}
