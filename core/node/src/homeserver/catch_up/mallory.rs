//! A hostile member, for tests, and what honest ones must come to in spite of it.

use http::{Method, StatusCode};
use kith_engine::{RoomReader, json::parse_object, rules};
use ruma::{
    CanonicalJsonValue, OwnedRoomId, RoomVersionId,
    events::StateEventType,
    signatures::{hash_and_sign_event, reference_hash},
};
use serde_json::{Value, json};

use crate::{
    Error,
    homeserver::Context,
    testing::{
        Client, Cluster, Node,
        rooms::{common_room_with, until_alike},
    },
};

/// A hostile member of a room: it signs whatever it likes, and sends it to whom it likes.
pub(super) struct Mallory<'a> {
    node: &'a Node,
    client: &'a Client,
    room: &'a OwnedRoomId,
}

impl<'a> Mallory<'a> {
    pub(super) fn new(node: &'a Node, client: &'a Client, room: &'a OwnedRoomId) -> Self {
        Self { node, client, room }
    }

    /// What every event of this member holds, as its own node sees the room.
    pub(super) async fn base(&self) -> Value {
        let (room, user) = (self.room.clone(), self.client.user_id.clone());
        let read = self.node.hs.context.store.read(move |txn| {
            let state = |kind: StateEventType, key: &str| -> Result<Value, Error> {
                let event = txn.current_state_event(&room, &kind, key)?.unwrap();
                Ok(json!(event.event_id()))
            };
            let mut auth = vec![
                state(StateEventType::RoomPowerLevels, "")?,
                state(StateEventType::RoomMember, &user)?,
            ];
            if txn.room_version(&room)?.unwrap() != RoomVersionId::V12 {
                auth.push(state(StateEventType::RoomCreate, "")?);
            }
            Ok::<_, Error>(json!({
                "room_id": room,
                "sender": user,
                "type": "m.room.message",
                "content": {"msgtype": "m.text", "body": "evil"},
                "origin_server_ts": 1_700_000_000_000_u64,
                "depth": txn.head_depth(&room)? + 1,
                "prev_events": txn.forward_extremities(&room)?,
                "auth_events": auth,
            }))
        });
        read.await.unwrap()
    }

    /// [`Mallory::base`] of an event that says that this member is in the room, under some name.
    pub(super) async fn own_base(&self) -> Value {
        let mut base = self.base().await;
        let room = self.room.clone();
        let read = self.node.hs.context.store.read(move |txn| {
            let rules = txn
                .current_state_event(&room, &StateEventType::RoomJoinRules, "")?
                .unwrap();
            Ok::<_, Error>(json!(rules.event_id()))
        });
        base["auth_events"].as_array_mut().unwrap().push(read.await.unwrap());
        base["type"] = json!("m.room.member");
        base["state_key"] = json!(self.client.user_id);
        base["content"] = json!({"membership": "join"});
        base
    }

    /// [`Mallory::own_base`] with a name, signed.
    pub(super) fn renamed(&self, own_base: &Value, name: &str) -> (String, Value) {
        self.forge(
            own_base,
            json!({"content": {"membership": "join", "displayname": name}}),
        )
    }

    /// Signs an event; returns its id and what is sent. Of all room versions that are known, the same is signed.
    fn sign(&self, event: &Value) -> (String, Value) {
        signed(&self.node.hs.context, event)
    }

    /// `base` with other fields, signed.
    pub(super) fn forge(&self, base: &Value, fields: Value) -> (String, Value) {
        let mut event = base.clone();
        for (name, value) in fields.as_object().unwrap() {
            event[name] = value.clone();
        }
        self.sign(&event)
    }

    pub(super) async fn send(&self, to: &Node, txn: &str, pdus: &[Value]) -> Value {
        for (number, chunk) in pdus.chunks(50).enumerate() {
            let path = format!("/_matrix/federation/v1/send/{txn}-{number}");
            let body = json!({"origin": self.node.name, "origin_server_ts": 1, "pdus": chunk});
            let (status, answer) = self.node.ask(to, Method::PUT, &path, body).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            if pdus.len() <= 50 {
                return answer["pdus"].clone();
            }
        }
        Value::Null
    }
}

/// Has every node show the same heads and the same state.
pub(super) async fn until_same(nodes: &[&Node], room: &OwnedRoomId) {
    until_alike(nodes, room).await;
    let mut states = Vec::new();
    for node in nodes {
        let room = room.clone();
        let read = node.hs.context.store.read(move |txn| {
            let state = txn.current_state(&room)?.unwrap();
            txn.full_state(state)
        });
        states.push(read.await.unwrap());
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]));
}

pub(super) async fn heads(node: &Node, room: &OwnedRoomId) -> usize {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| txn.forward_extremities(&room));
    read.await.unwrap().len()
}

/// Two honest nodes and a hostile one, which is silent but for what it sends by hand.
pub(super) async fn with_mallory() -> (Cluster, OwnedRoomId, Vec<Client>) {
    with_mallory_in(json!({"preset": "public_chat"})).await
}

/// [`with_mallory`] in a room that is made like this.
pub(super) async fn with_mallory_in(body: Value) -> (Cluster, OwnedRoomId, Vec<Client>) {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room_with(&cluster, body).await;
    cluster[2].hs.catch_up.shutdown().await;
    cluster[2].hs.outbox.shutdown().await;
    (cluster, room, clients)
}

/// An event signed by a node, whoever sends it; its id and what is sent. Room versions 11 and 12 sign the same.
pub(super) fn signed(context: &Context, event: &Value) -> (String, Value) {
    let mut object = parse_object(&event.to_string()).unwrap();
    let rules = rules(&RoomVersionId::V12).unwrap();
    hash_and_sign_event(
        context.server_name.as_str(),
        &*context.node_key,
        &mut object,
        &rules.redaction,
    )
    .unwrap();
    let id = format!("${}", reference_hash(&object, &rules).unwrap());
    let json = serde_json::to_string(&CanonicalJsonValue::Object(object)).unwrap();
    (id, serde_json::from_str(&json).unwrap())
}
