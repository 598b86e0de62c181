//! Typing and receipts of rooms that have a topic: one message for all, proven to be their sender's.

use std::sync::Arc;

use kith_identity::{TopicSecret, Vouched};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    Batch,
    tests::{SENDS, room_with_topic, until_nothing_waits},
};
use crate::testing::{
    Client, Cluster, Node, escape,
    rooms::{eventually, say, texts, until_alike},
};

fn at(room: &OwnedRoomId, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room.as_str()))
}

fn user(client: &Client) -> OwnedUserId {
    client.user_id.as_str().try_into().unwrap()
}

async fn read(client: &Client, room: &OwnedRoomId, event: &str) {
    let path = at(room, &format!("receipt/m.read/{}", escape(event)));
    client.post_ok(&path, json!({})).await;
}

async fn types(client: &Client, room: &OwnedRoomId, typing: bool) {
    let path = at(room, &format!("typing/{}", escape(&client.user_id)));
    client
        .put_ok(&path, json!({"typing": typing, "timeout": 100_000}))
        .await;
}

/// Waits until a node has a user's receipt at an event.
async fn until_read(node: &Node, room: &OwnedRoomId, user: &OwnedUserId, event: &str) {
    let (room, user, event) = (room.clone(), user.clone(), event.to_owned());
    eventually(node, move |txn| {
        let receipt = txn.receipt(&room, &user, false, &ruma::events::receipt::ReceiptThread::Unthreaded)?;
        Ok(receipt.filter(|receipt| *receipt == event).map(drop))
    })
    .await;
}

/// Waits until a node shows these users typing, and no others.
async fn until_typing(node: &Node, room: &OwnedRoomId, users: &[OwnedUserId]) {
    let mut changes = node.hs.passing.watch();
    while node.hs.ephemeral.typing_in(room) != users {
        changes.changed().await.unwrap();
    }
}

/// The room's last event, which all nodes have, once nothing is under way any more.
async fn event_at_rest(cluster: &Cluster, room: &OwnedRoomId, client: &Client, text: &str) -> String {
    say(client, room, text).await;
    until_alike(&cluster.nodes.iter().collect::<Vec<_>>(), room).await;
    for node in &cluster.nodes {
        let (of, text) = (room.clone(), text.to_owned());
        eventually(node, move |txn| Ok(texts(txn, &of)?.contains(&text).then_some(()))).await;
        until_nothing_waits(node).await;
    }
    let of = room.clone();
    let store = &cluster[0].hs.context.store;
    let heads = store.read(move |txn| kith_engine::RoomReader::forward_extremities(txn, &of));
    heads.await.unwrap()[0].to_string()
}

async fn secret(node: &Node, room: &OwnedRoomId) -> Arc<TopicSecret> {
    let room = room.clone();
    let topic = node.hs.context.store.read(move |txn| txn.topic(&room)).await.unwrap();
    Arc::new(TopicSecret::from_bytes(&topic.unwrap().secret))
}

async fn publish(node: &Node, secret: &TopicSecret, batch: &Batch) {
    let content = serde_json::to_vec(batch).unwrap();
    let message = secret.seal(&content, &mut node.hs.context.world.rng()).unwrap();
    let network = &node.hs.context.network;
    network.publish(&secret.public(), message.into()).await.unwrap();
}

#[tokio::test]
async fn a_larger_rooms_typing_and_receipts_go_over_its_topic() {
    let (cluster, room, clients, _) = room_with_topic(6).await;
    let event = event_at_rest(&cluster, &room, &clients[0], "read me").await;
    let before = (cluster.wires.published().len(), cluster.wires.requests(SENDS));
    read(&clients[2], &room, &event).await;
    types(&clients[3], &room, true).await;
    for node in &cluster.nodes {
        until_read(node, &room, &user(&clients[2]), &event).await;
        until_typing(node, &room, &[user(&clients[3])]).await;
    }
    let after = (cluster.wires.published().len(), cluster.wires.requests(SENDS));
    assert_eq!(after, (before.0 + 2, before.1));
    let waits = cluster[2].hs.context.store.read(|txn| txn.outbox_len()).await;
    assert_eq!(waits.unwrap(), 0);
}

#[tokio::test]
async fn what_comes_soon_after_is_told_together_and_only_the_newest() {
    let (cluster, room, clients, _) = room_with_topic(6).await;
    let first = event_at_rest(&cluster, &room, &clients[0], "first").await;
    let second = event_at_rest(&cluster, &room, &clients[0], "second").await;
    let before = cluster.wires.published().len();
    read(&clients[1], &room, &first).await;
    until_read(&cluster[0], &room, &user(&clients[1]), &first).await;
    types(&clients[1], &room, true).await;
    types(&clients[1], &room, false).await;
    read(&clients[1], &room, &second).await;
    for node in &cluster.nodes {
        until_read(node, &room, &user(&clients[1]), &second).await;
    }
    assert_eq!(cluster.wires.published().len(), before + 2);
}

/// Any member can seal messages of the topic, so the topic proves nothing of whose an EDU is.
#[tokio::test]
async fn no_member_can_speak_for_another() {
    let (cluster, room, clients, _) = room_with_topic(6).await;
    let (mallory, victim) = (&cluster[1], &cluster[2]);
    let secret = secret(mallory, &room).await;
    let typing = |who: &Client, typing: bool| -> Value {
        json!([{"edu_type": "m.typing", "content": {"room_id": room, "user_id": who.user_id, "typing": typing}}])
    };
    let sign = |origin: &Node, topic: &TopicSecret, content: &Value| {
        let context = &mallory.hs.context;
        let (name, now) = (topic.public().name(), context.world.now());
        let content = to_raw_value(content).unwrap();
        Vouched::sign(&context.node_key, &name, origin.name.clone(), now, content).unwrap()
    };
    let elsewhere = TopicSecret::from_bytes(&[9; 32]);
    let mut as_victim = sign(victim, &secret, &typing(&clients[2], true));
    as_victim.key_id = victim.hs.context.node_key.key_id().clone();
    let attempts = [
        (
            "another's user in its own name",
            sign(mallory, &secret, &typing(&clients[2], true)),
        ),
        ("another's name", sign(victim, &secret, &typing(&clients[2], true))),
        ("another's name and key", as_victim),
        (
            "its own word of another topic",
            sign(mallory, &elsewhere, &typing(&clients[1], true)),
        ),
    ];
    for (_, vouched) in attempts {
        let batch = Batch {
            pdus: Vec::new(),
            edus: Some(vouched),
        };
        publish(mallory, &secret, &batch).await;
    }
    // What it says of itself is heard, after all that.
    types(&clients[1], &room, true).await;
    for node in &cluster.nodes {
        until_typing(node, &room, &[user(&clients[1])]).await;
    }
    // Nor can it say once more what another one said before.
    types(&clients[2], &room, true).await;
    until_typing(mallory, &room, &[user(&clients[1]), user(&clients[2])]).await;
    let (_, message) = cluster.wires.published().pop().unwrap();
    let batch: Batch = serde_json::from_slice(&secret.open(&message).unwrap()).unwrap();
    types(&clients[2], &room, false).await;
    until_typing(mallory, &room, &[user(&clients[1])]).await;
    publish(mallory, &secret, &batch).await;
    types(&clients[1], &room, false).await;
    for node in &cluster.nodes {
        until_typing(node, &room, &[]).await;
    }
}

/// Nothing waits for those who are away: they are told when they are back.
#[tokio::test]
async fn who_was_away_is_told_of_receipts_by_whose_they_are() {
    let (cluster, room, clients, _) = room_with_topic(6).await;
    let event = event_at_rest(&cluster, &room, &clients[0], "read me").await;
    cluster[5].go_down();
    read(&clients[2], &room, &event).await;
    for node in &cluster.nodes[..5] {
        until_read(node, &room, &user(&clients[2]), &event).await;
    }
    let waits = cluster[2].hs.context.store.read(|txn| txn.outbox_len()).await;
    assert_eq!(waits.unwrap(), 0);
    cluster[5].come_up();
    until_read(&cluster[5], &room, &user(&clients[2]), &event).await;
}

#[tokio::test]
async fn where_a_topic_reaches_nobody_every_server_is_told_of_receipts() {
    let (cluster, room, clients, topic) = room_with_topic(5).await;
    let event = event_at_rest(&cluster, &room, &clients[0], "read me").await;
    for node in &cluster.nodes[1..] {
        node.hs.context.network.unfollow(&topic).await;
    }
    types(&clients[0], &room, true).await;
    read(&clients[0], &room, &event).await;
    for node in &cluster.nodes {
        until_typing(node, &room, &[user(&clients[0])]).await;
        until_read(node, &room, &user(&clients[0]), &event).await;
    }
}
