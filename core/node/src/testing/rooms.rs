//! What tests say of rooms that several nodes share: opening one, talking in it, and waiting until nodes agree.

use std::collections::BTreeSet;

use kith_engine::RoomReader;
use kith_store::{Direction, ReadTxn, Seq};
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Value, json};

use super::{Client, Cluster, Node, escape};
use crate::Error;

/// Waits until a node's database shows what is waited for. It looks once after every commit.
pub(crate) async fn eventually<T: Send + 'static>(
    node: &Node,
    look: impl Fn(&ReadTxn<'_>) -> Result<Option<T>, Error> + Clone + Send + 'static,
) -> T {
    let store = node.hs.context.store.clone();
    let mut committed = store.committed();
    loop {
        committed.borrow_and_update();
        let look = look.clone();
        if let Some(found) = store.read(move |txn| look(txn)).await.unwrap() {
            return found;
        }
        committed.changed().await.unwrap();
    }
}

/// The texts of a room's timeline as a node has it, oldest first.
pub(crate) fn texts(txn: &ReadTxn<'_>, room: &RoomId) -> Result<Vec<String>, Error> {
    let timeline = txn.timeline(room, Seq(i64::MIN), Direction::Forward, usize::MAX)?;
    Ok(timeline
        .iter()
        .filter_map(|event| {
            let content: Value = event.pdu.content_as().ok()?;
            content["body"].as_str().map(str::to_owned)
        })
        .collect())
}

/// Waits until a node has this text, and gives all texts that it has then.
pub(crate) async fn until_text(node: &Node, room: &OwnedRoomId, text: &str) -> Vec<String> {
    let (room, text) = (room.clone(), text.to_owned());
    eventually(node, move |txn| {
        let texts = texts(txn, &room)?;
        Ok(texts.contains(&text).then_some(texts))
    })
    .await
}

/// Waits until all these nodes have the same forward extremities. Events that clients are not shown move no position that
/// could be waited on, so it looks again and again.
pub(crate) async fn until_alike(nodes: &[&Node], room: &OwnedRoomId) {
    loop {
        let mut found = BTreeSet::new();
        for node in nodes {
            let room = room.clone();
            let read = node.hs.context.store.read(move |txn| txn.forward_extremities(&room));
            found.insert(BTreeSet::from_iter(read.await.unwrap()));
        }
        if found.len() == 1 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until nothing waits for other servers any more, in memory and in the database.
pub(crate) async fn until_delivered(node: &Node) {
    let mut waiting = node.hs.outbox.waiting();
    waiting.wait_for(|waiting| *waiting == 0).await.unwrap();
    let left = node.hs.context.store.read(|txn| txn.outbox_len()).await;
    assert_eq!(left.unwrap(), 0);
}

pub(crate) async fn say(client: &Client, room: &RoomId, text: &str) {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/{}",
        escape(room.as_str()),
        escape(text)
    );
    client.put_ok(&path, json!({"msgtype": "m.text", "body": text})).await;
}

pub(crate) async fn join(client: &Client, room: &RoomId, via: &Node) {
    let path = format!("/_matrix/client/v3/join/{}?via={}", escape(room.as_str()), via.name);
    client.post_ok(&path, json!({})).await;
}

/// A public room of alice on the first node, in which a user of each other node is too.
pub(crate) async fn common_room(cluster: &Cluster) -> (OwnedRoomId, Vec<Client>) {
    common_room_with(cluster, json!({"preset": "public_chat"})).await
}

/// A public room of alice on the first node that bob on the second one has joined; whoever else is there is not in it.
pub(crate) async fn room_of_two(cluster: &Cluster) -> (OwnedRoomId, Client, Client) {
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    (room, alice, bob)
}

async fn create(client: &Client, body: Value) -> OwnedRoomId {
    let answer = client.post_ok("/_matrix/client/v3/createRoom", body).await;
    answer["room_id"].as_str().unwrap().try_into().unwrap()
}

pub(crate) async fn common_room_with(cluster: &Cluster, body: Value) -> (OwnedRoomId, Vec<Client>) {
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, body).await;
    let mut clients = vec![alice];
    for (number, node) in cluster.nodes.iter().enumerate().skip(1) {
        let client = node.register(&format!("user{number}")).await;
        join(&client, &room, &cluster[0]).await;
        clients.push(client);
    }
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    until_alike(&nodes, &room).await;
    (room, clients)
}

pub(crate) fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| format!("n{number}")).collect()
}
