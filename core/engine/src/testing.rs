//! Rooms in memory and servers with known keys, for tests. Nothing that a user runs holds this.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    RoomVersionId, ServerName, UInt,
    signatures::{Ed25519KeyPair, KeyPair, Signature},
};

use crate::{
    Applied, BuildError, CheckedPdu, CreateRoom, CurrentState, Draft, NewState, Outcome, Refuted, RoomError,
    RoomReader, Signer, StateId, StateKey, StateMap, StoredPdu, VerifyKey, build::build_unauthorised, build_create,
    build_event, create_room, receive, rules, view::entries,
};

thread_local! {
    static TIES_FLIPPED: Cell<bool> = const { Cell::new(false) };
}

/// From now on, state resolution on this thread takes earlier events for later ones, or no longer does: broken on purpose,
/// for tests that must notice when servers resolve differently.
pub fn flip_ties(flipped: bool) {
    TIES_FLIPPED.set(flipped);
}

pub(crate) fn ties_are_flipped() -> bool {
    TIES_FLIPPED.get()
}

/// A server whose key follows from its name.
#[derive(Debug)]
pub struct TestServer {
    /// Its name.
    pub name: OwnedServerName,
    key: Ed25519KeyPair,
}

impl TestServer {
    /// The id of every test server's key.
    pub const KEY_ID: &str = "ed25519:test";

    /// The server of this name.
    pub fn new(name: &str) -> Self {
        let mut seed = [0; 32];
        for (byte, letter) in seed.iter_mut().zip(name.bytes().cycle()) {
            *byte = letter;
        }
        Self {
            name: ServerName::parse(name).unwrap(),
            key: key_pair(&seed, "test"),
        }
    }

    /// One of its users.
    pub fn user(&self, localpart: &str) -> OwnedUserId {
        format!("@{localpart}:{}", self.name).try_into().unwrap()
    }

    /// What signs its events.
    pub fn signer(&self) -> Signer<'_, Self> {
        Signer {
            server: &self.name,
            key: self,
        }
    }

    /// Its public key.
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey {
            public_key: self.key.public_key(),
            revoked: false,
        }
    }
}

impl KeyPair for TestServer {
    fn sign(&self, message: &[u8]) -> Signature {
        self.key.sign(message)
    }
}

/// An Ed25519 key pair from its seed.
pub fn key_pair(seed: &[u8; 32], version: &str) -> Ed25519KeyPair {
    // PKCS#8: version 0, the algorithm's identifier, and the seed in an octet string within an octet string.
    let mut der = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    der.extend(seed);
    Ed25519KeyPair::from_der(&der, version.to_owned()).unwrap()
}

/// The keys of any test server, whatever its name.
pub fn any_key(server: &ServerName, key_id: &str, _at: MilliSecondsSinceUnixEpoch) -> Option<VerifyKey> {
    (key_id == TestServer::KEY_ID).then(|| TestServer::new(server.as_str()).verify_key())
}

/// So many milliseconds after 1970.
pub fn at(millis: u32) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::from(millis))
}

/// How often each kind of read was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// Events read whole.
    pub events: usize,
    /// Single state entries.
    pub entries: usize,
    /// Whole states.
    pub states: usize,
}

#[derive(Debug, Clone)]
struct Row {
    stored: StoredPdu,
    before: Option<StateId>,
    after: Option<StateId>,
}

#[derive(Debug, Clone)]
struct Room {
    version: RoomVersionId,
    extremities: Vec<OwnedEventId>,
    current: Option<StateId>,
}

/// Rooms in memory, as the store keeps them.
#[derive(Debug, Clone, Default)]
pub struct MemoryRooms {
    events: HashMap<OwnedEventId, Row>,
    states: Vec<Arc<StateMap>>,
    rooms: HashMap<OwnedRoomId, Room>,
    early_redactions: HashMap<OwnedEventId, Vec<OwnedEventId>>,
    redacted: HashMap<OwnedEventId, OwnedEventId>,
    refuted: Vec<Refuted>,
    reads: RefCell<Reads>,
}

impl MemoryRooms {
    /// Saves what an event changes.
    pub fn save(&mut self, applied: &Applied) {
        let id = applied.event_id().to_owned();
        let before = applied.state_before.clone().map(|state| self.keep(state));
        let after = match (before, &applied.sets) {
            (Some(base), Some(key)) => {
                let set = StateMap::from([(key.clone(), id.clone())]);
                Some(self.keep(NewState::Delta { base, set }))
            }
            (before, _) => before,
        };
        if let Some(new) = &applied.refuted {
            for old in self.refuted.iter_mut().filter(|old| old.instead.as_ref() == Some(&id)) {
                old.instead = new.instead.clone();
            }
            self.refuted.push(new.clone());
        }
        let current = match &applied.current_state {
            CurrentState::Unchanged => None,
            CurrentState::AfterEvent => after,
            CurrentState::New(state) => Some(self.keep(state.clone())),
        };
        let room = self
            .rooms
            .entry(applied.pdu.room_id().to_owned())
            .or_insert_with(|| Room {
                version: applied.version.clone(),
                extremities: Vec::new(),
                current: None,
            });
        room.current = current.or(room.current);
        if let Some(change) = &applied.forward_extremities {
            room.extremities.retain(|extremity| !change.gone.contains(extremity));
            room.extremities.extend(change.added.then(|| id.clone()));
        }
        let redaction = rules(&applied.version).unwrap().redaction;
        if let (true, Some(target)) = (applied.withheld, applied.pdu.redacts(&redaction)) {
            self.early_redactions.entry(target).or_default().push(id.clone());
        }
        for redaction in &applied.redactions {
            self.redacted.insert(redaction.target.clone(), redaction.by.clone());
        }
        let stored = StoredPdu {
            pdu: applied.pdu.clone(),
            status: applied.status,
            outlier: applied.outlier,
            told: applied.told,
        };
        self.events.insert(id, Row { stored, before, after });
    }

    fn keep(&mut self, state: NewState) -> StateId {
        if let NewState::Same(id) = state {
            return id;
        }
        let Ok(map) = entries(self, &state);
        self.add_state(map)
    }

    /// Keeps a state that no event made.
    pub fn add_state(&mut self, state: StateMap) -> StateId {
        self.states.push(Arc::new(state));
        StateId(self.states.len() as i64 - 1)
    }

    /// Judges an event and saves it.
    pub fn receive(&mut self, checked: &CheckedPdu) -> Result<Outcome, RoomError<Infallible>> {
        let outcome = receive(self, checked)?;
        if let Outcome::Applied(applied) = &outcome {
            self.save(applied);
        }
        Ok(outcome)
    }

    /// Judges an event that must be new and complete, and saves it.
    pub fn accept(&mut self, checked: &CheckedPdu) -> Applied {
        match self.receive(checked).unwrap() {
            Outcome::Applied(applied) => *applied,
            outcome => panic!("{outcome:?}"),
        }
    }

    /// Builds an event of a test server and saves it.
    pub fn send(
        &mut self,
        server: &TestServer,
        room: &RoomId,
        draft: &Draft,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<CheckedPdu, BuildError<Infallible>> {
        let checked = build_event(self, room, draft, server.signer(), now)?;
        self.accept(&checked);
        Ok(checked)
    }

    /// Builds an event on top of any events held, whether the rules allow it or not. Nothing is saved.
    pub fn build_on(
        &self,
        server: &TestServer,
        room: &RoomId,
        prev: &[OwnedEventId],
        draft: &Draft,
        now: MilliSecondsSinceUnixEpoch,
    ) -> CheckedPdu {
        build_unauthorised(self, room, prev.to_vec(), draft, server.signer(), now).unwrap()
    }

    /// Makes a room and saves everything it starts with, a millisecond apart. All its events, in order.
    pub fn create(&mut self, server: &TestServer, request: &CreateRoom) -> (OwnedRoomId, Vec<CheckedPdu>) {
        let drafts = create_room(request).unwrap();
        let old_id = format!("!{}:{}", self.rooms.len(), server.name).try_into().unwrap();
        let start = 1 + 100 * self.rooms.len() as u32;
        let first = build_create(&drafts[0], &request.version, Some(old_id), server.signer(), at(start)).unwrap();
        let room = first.room_id().to_owned();
        self.accept(&first);
        let mut events = vec![first];
        for (draft, now) in drafts[1..].iter().zip(start + 1..) {
            events.push(self.send(server, &room, draft, at(now)).unwrap());
        }
        (room, events)
    }

    /// A room's current state, whole.
    pub fn state_of(&self, room: &RoomId) -> StateMap {
        let current = self.rooms[room].current.unwrap();
        (*self.state(current)).clone()
    }

    fn state(&self, state: StateId) -> Arc<StateMap> {
        let mut state = self.states[state.0 as usize].clone();
        for refuted in &self.refuted {
            refuted.correct(&mut state);
        }
        state
    }

    /// The state before an event, whole.
    pub fn state_before_event(&self, id: &EventId) -> Option<StateMap> {
        Some((*self.state(self.events[id].before?)).clone())
    }

    /// What redacted an event.
    pub fn redacted_by(&self, id: &EventId) -> Option<&EventId> {
        self.redacted.get(id).map(|by| &**by)
    }

    /// How many events are held.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The reads made since the last call.
    pub fn take_reads(&self) -> Reads {
        self.reads.take()
    }
}

impl RoomReader for MemoryRooms {
    type Error = Infallible;

    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, Infallible> {
        Ok(self.rooms.get(room).map(|room| room.version.clone()))
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, Infallible> {
        self.reads.borrow_mut().events += 1;
        Ok(self.events.get(id).map(|row| row.stored.clone()))
    }

    fn has_event(&self, id: &EventId) -> Result<bool, Infallible> {
        Ok(self.events.contains_key(id))
    }

    fn forward_extremities(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(self
            .rooms
            .get(room)
            .map(|room| room.extremities.clone())
            .unwrap_or_default())
    }

    fn has_successor(&self, id: &EventId) -> Result<bool, Infallible> {
        Ok(self.events.values().any(|row| {
            row.stored.status == crate::EventStatus::Accepted
                && !row.stored.outlier
                && row.stored.pdu.prev_events().iter().any(|prev| prev == id)
        }))
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(self.early_redactions.get(id).cloned().unwrap_or_default())
    }

    fn current_state(&self, room: &RoomId) -> Result<Option<StateId>, Infallible> {
        Ok(self.rooms.get(room).and_then(|room| room.current))
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Infallible> {
        Ok(self.events.get(id).and_then(|row| row.before))
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Infallible> {
        Ok(self.events.get(id).and_then(|row| row.after))
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Infallible> {
        self.reads.borrow_mut().entries += 1;
        let entry = self.states[state.0 as usize].get(key);
        Ok(
            match self.refuted.iter().find(|refuted| entry == Some(&refuted.event)) {
                Some(refuted) => refuted.instead.clone(),
                None => entry.cloned(),
            },
        )
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Infallible> {
        self.reads.borrow_mut().states += 1;
        Ok(self.state(state))
    }
}
