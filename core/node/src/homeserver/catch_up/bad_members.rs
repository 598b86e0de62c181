//! Members that do on purpose what nobody does by accident. Honest members stay equal, and what it costs them is bounded.

use http::{Method, StatusCode};
use kith_engine::{RoomReader, json::parse_object, rules};
use ruma::{
    CanonicalJsonValue, OwnedRoomId,
    events::StateEventType,
    signatures::{hash_and_sign_event, reference_hash},
};
use serde_json::{Value, json};

use crate::{
    Error,
    testing::{
        Client, Cluster, Node, escape,
        rooms::{common_room, eventually, say, texts, until_alike, until_text},
    },
};

/// A hostile member of a room: it signs whatever it likes, and sends it to whom it likes.
struct Mallory<'a> {
    node: &'a Node,
    client: &'a Client,
    room: &'a OwnedRoomId,
}

impl<'a> Mallory<'a> {
    fn new(node: &'a Node, client: &'a Client, room: &'a OwnedRoomId) -> Self {
        Self { node, client, room }
    }

    /// What every event of this member holds, as its own node sees the room.
    async fn base(&self) -> Value {
        let (room, user) = (self.room.clone(), self.client.user_id.clone());
        let read = self.node.hs.context.store.read(move |txn| {
            let state = |kind: StateEventType, key: &str| -> Result<Value, Error> {
                let event = txn.current_state_event(&room, &kind, key)?.unwrap();
                Ok(json!(event.event_id()))
            };
            Ok::<_, Error>(json!({
                "room_id": room,
                "sender": user,
                "type": "m.room.message",
                "content": {"msgtype": "m.text", "body": "evil"},
                "origin_server_ts": 1_700_000_000_000_u64,
                "depth": txn.head_depth(&room)? + 1,
                "prev_events": txn.forward_extremities(&room)?,
                "auth_events": [
                    state(StateEventType::RoomPowerLevels, "")?,
                    state(StateEventType::RoomMember, &user)?,
                ],
            }))
        });
        read.await.unwrap()
    }

    /// Signs an event; returns its id and what is sent.
    fn sign(&self, event: &Value) -> (String, Value) {
        let mut object = parse_object(&event.to_string()).unwrap();
        let rules = rules(&ruma::RoomVersionId::V12).unwrap();
        let context = &self.node.hs.context;
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

    /// `base` with other fields, signed.
    fn forge(&self, base: &Value, fields: Value) -> (String, Value) {
        let mut event = base.clone();
        for (name, value) in fields.as_object().unwrap() {
            event[name] = value.clone();
        }
        self.sign(&event)
    }

    async fn send(&self, to: &Node, txn: &str, pdus: &[Value]) -> Value {
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
async fn until_same(nodes: &[&Node], room: &OwnedRoomId) {
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

async fn heads(node: &Node, room: &OwnedRoomId) -> usize {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| txn.forward_extremities(&room));
    read.await.unwrap().len()
}

/// Two honest nodes and a hostile one, which is silent but for what it sends by hand.
async fn with_mallory() -> (Cluster, OwnedRoomId, Vec<Client>) {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    cluster[2].hs.catch_up.shutdown().await;
    cluster[2].hs.outbox.shutdown().await;
    (cluster, room, clients)
}

#[tokio::test]
async fn forks_told_to_some_and_not_to_others_meet_and_are_joined() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let forks: Vec<Value> = (0..80)
        .map(|number| {
            mallory
                .forge(&base, json!({"content": {"body": format!("fork {number}")}}))
                .1
        })
        .collect();
    // Whom a member tells what: the two never see the same from it.
    mallory.send(a, "odd", &forks[..40]).await;
    mallory.send(b, "even", &forks[40..]).await;
    evil.go_down();
    until_same(&[a, b], &room).await;
    assert_eq!(heads(a, &room).await, 80);
    // Either joins them when it has waited long enough; clients see nothing of it.
    while heads(a, &room).await > kith_engine::limits::MAX_EXTREMITIES {
        a.hs.rooms.join_heads(&room).await.unwrap();
    }
    until_same(&[a, b], &room).await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=200",
        escape(room.as_str())
    );
    for client in &clients[..2] {
        let page = client.get_ok(&path).await;
        let of_kind = |kind: &str| {
            page["chunk"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|event| event["type"] == kind)
                .count()
        };
        assert_eq!((of_kind("m.room.message"), of_kind("org.matrix.dummy_event")), (80, 0));
    }
    let joined = heads(a, &room).await;
    a.hs.rooms.join_heads(&room).await.unwrap();
    assert_eq!(heads(a, &room).await, joined, "few heads are left alone");
}

#[tokio::test]
async fn times_and_depths_that_are_lies_part_nobody() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let deepest = (1_u64 << 53) - 1;
    let lies = [
        json!({"depth": 1, "origin_server_ts": 1}),
        json!({"depth": deepest, "content": {"body": "deepest"}}),
        json!({"origin_server_ts": deepest, "content": {"body": "latest"}}),
    ];
    let forged: Vec<Value> = lies.into_iter().map(|lie| mallory.forge(&base, lie).1).collect();
    mallory.send(a, "lies", &forged).await;
    evil.go_down();
    until_same(&[a, b], &room).await;
    // The room goes on, also where only pulls bring what is said.
    cluster.wires.lose("/federation/v1/send/");
    say(&clients[0], &room, "still here").await;
    until_text(b, &room, "still here").await;
    say(&clients[1], &room, "me too").await;
    until_text(a, &room, "me too").await;
    until_same(&[a, b], &room).await;
}

#[tokio::test]
async fn events_built_on_nothing_are_not_waited_for() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let nothing = |letter: &str| format!("${}", letter.repeat(43));
    let orphans: Vec<Value> = ["b", "c", "d"]
        .iter()
        .map(|letter| mallory.forge(&base, json!({"prev_events": [nothing(letter)]})).1)
        .collect();
    let position = *a.hs.context.store.committed().borrow();
    let answer = mallory.send(a, "orphans", &orphans).await;
    assert!(
        answer
            .as_object()
            .unwrap()
            .values()
            .all(|verdict| verdict["error"].is_string()),
        "{answer}"
    );
    // Nobody has them, so that asking ends.
    while !a.hs.catch_up.is_idle() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*a.hs.context.store.committed().borrow(), position);
    let asked = cluster.wires.requests("/org.kith/");
    say(&clients[0], &room, "undisturbed").await;
    until_text(b, &room, "undisturbed").await;
    until_same(&[a, b], &room).await;
    assert!(asked < 60, "{asked} requests for three events that are not there");
}

/// A moderator forks the room before it was demoted, to take its power back.
#[tokio::test]
async fn power_that_was_taken_is_not_taken_back_by_a_fork() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let levels = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.power_levels/",
        escape(room.as_str())
    );
    let mut content = clients[0].get_ok(&levels).await;
    content["users"] = json!({&clients[2].user_id: 50});
    clients[0].put_ok(&levels, content.clone()).await;
    until_same(&[a, b, evil], &room).await;
    let mallory = Mallory::new(evil, &clients[2], &room);
    // From here on the hostile node hears nothing: this is what it builds upon.
    let base = mallory.base().await;
    content["users"] = json!({});
    clients[0].put_ok(&levels, content.clone()).await;
    until_same(&[a, b], &room).await;
    let mut usurped = content.clone();
    usurped["users"] = json!({&clients[2].user_id: 50});
    usurped["events_default"] = json!(50);
    let state = |kind: &str, content: Value| json!({"type": kind, "state_key": "", "content": content});
    let (_, power) = mallory.forge(&base, state("m.room.power_levels", usurped));
    let (_, topic) = mallory.forge(&base, state("m.room.topic", json!({"topic": "mine now"})));
    let kick = json!({
        "type": "m.room.member", "state_key": clients[1].user_id, "content": {"membership": "leave"},
    });
    let mut kick_base = base.clone();
    let (wanted, user) = (room.clone(), clients[1].user_id.clone());
    let read = evil.hs.context.store.read(move |txn| {
        let member = txn
            .current_state_event(&wanted, &StateEventType::RoomMember, &user)?
            .unwrap();
        Ok::<_, Error>(member.event_id().to_string())
    });
    kick_base["auth_events"]
        .as_array_mut()
        .unwrap()
        .push(json!(read.await.unwrap()));
    let (_, kick) = mallory.forge(&kick_base, kick);
    mallory.send(a, "usurp", &[power.clone(), topic.clone()]).await;
    mallory.send(b, "usurp", &[kick, topic, power]).await;
    evil.go_down();
    // Those who obey the rules speak on, and agree.
    say(&clients[0], &room, "order").await;
    until_text(b, &room, "order").await;
    say(&clients[1], &room, "still a member").await;
    until_text(a, &room, "still a member").await;
    until_same(&[a, b], &room).await;
    for client in &clients[..2] {
        assert_eq!(client.get_ok(&levels).await["users"], json!({}));
    }
    let members = clients[0]
        .get_ok(&format!(
            "/_matrix/client/v3/rooms/{}/joined_members",
            escape(room.as_str())
        ))
        .await;
    assert_eq!(members["joined"].as_object().unwrap().len(), 3);
}

/// A state that is larger than any honest one: it is kept like any other, and told.
#[tokio::test]
async fn much_state_at_once_is_borne() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let levels = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.power_levels/",
        escape(room.as_str())
    );
    let mut content = clients[0].get_ok(&levels).await;
    content["users"] = json!({&clients[2].user_id: 50});
    clients[0].put_ok(&levels, content).await;
    until_same(&[a, b, evil], &room).await;
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let mut events = Vec::new();
    for number in 0..100 {
        let fields = json!({"type": "org.example.junk", "state_key": number.to_string(), "content": {"n": number}});
        events.push(mallory.forge(&base, fields).1);
    }
    mallory.send(a, "junk", &events).await;
    evil.go_down();
    say(&clients[0], &room, "above it all").await;
    until_text(b, &room, "above it all").await;
    until_same(&[a, b], &room).await;
    let seen = eventually(b, move |txn| Ok(Some(texts(txn, &room)?)));
    assert_eq!(seen.await, ["above it all"]);
}
