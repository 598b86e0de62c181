//! Two nodes on loopback: how fast what one says is at the other.

use std::time::Instant;

use futures::{StreamExt, stream};
use kith_tests::{Client, Node, texts};
use serde_json::json;

use crate::{Table, percentile, sorted};

const DELIVERIES: usize = 200;
const BACKLOG: usize = 10_000;
const MISSED: usize = 10_000;

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new("Two Kith nodes on loopback", &["measured", "value"]);
    delivery(&mut table).await;
    backlog(&mut table).await;
    heal(&mut table).await;
    table
}

/// Two nodes, and a room with a client on each.
pub(crate) struct Pair {
    pub(crate) nodes: Vec<Node>,
    pub(crate) sender: Client,
    pub(crate) receiver: Client,
    pub(crate) room: String,
}

/// Has the first node's client invite the second's, and waits until a message has arrived.
pub(crate) async fn pair(nodes: Vec<Node>) -> Pair {
    let sender = nodes[0].client("alice").await;
    let mut receiver = nodes[1].client("bob").await;
    let room = sender
        .create_room(json!({"preset": "trusted_private_chat", "invite": [receiver.user_id]}))
        .await;
    assert_eq!(receiver.invited().await, room);
    receiver.post(&format!("/join/{room}"), json!({})).await.ok();
    let first = ["joined".to_owned()];
    sender.send_text(&room, &first[0]).await;
    receiver.texts_until(&room, &first).await;
    Pair {
        nodes,
        sender,
        receiver,
        room,
    }
}

/// From a client's send on one node to the answer of a long poll on the other.
async fn delivery(table: &mut Table) {
    let mut pair = pair(Node::start_connected(2).await).await;
    let mut times = Vec::with_capacity(DELIVERIES);
    for number in 0..DELIVERIES {
        let text = [format!("delivery {number}")];
        let start = Instant::now();
        let (_, _) = futures::join!(
            pair.sender.send_text(&pair.room, &text[0]),
            pair.receiver.texts_until(&pair.room, &text)
        );
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let times = sorted(times);
    table.row([
        "delivery, client to client, p50",
        &format!("{:.1} ms", percentile(&times, 50.0)),
    ]);
    table.row([
        "delivery, client to client, p99",
        &format!("{:.1} ms", percentile(&times, 99.0)),
    ]);
}

/// A node comes back to find many events waiting.
async fn backlog(table: &mut Table) {
    let mut pair = pair(Node::start_connected(2).await).await;
    pair.nodes[1].kill().await;
    let (sender, room) = (&pair.sender, pair.room.as_str());
    send_many(sender, room, "backlog", BACKLOG).await;
    // What is on its way to the killed node would wait until that is noticed.
    pair.nodes[0].loses(&pair.nodes[1]).await;
    let start = Instant::now();
    pair.nodes[1].restart().await;
    let last = [last_of("backlog", BACKLOG)];
    pair.receiver.texts_until(&pair.room, &last).await;
    let rate = BACKLOG as f64 / start.elapsed().as_secs_f64();
    table.row([
        "events per second accepted from a peer (10,000 waiting, start of the node included)",
        &format!("{rate:.0}"),
    ]);
}

/// A node comes back to what it missed, and only a member that wrote none of it is there: no outgoing queue helps, all of it
/// is found by comparing. Then a split with half as much on each side.
async fn heal(table: &mut Table) {
    let mut nodes = Node::start_connected(3).await;
    let alice = nodes[0].client("alice").await;
    let mut bob = nodes[1].client("bob").await;
    let mut carol = nodes[2].client("carol").await;
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "invite": [bob.user_id, carol.user_id]}))
        .await;
    for client in [&mut bob, &mut carol] {
        assert_eq!(client.invited().await, room);
        client.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    let together = ["together".to_owned()];
    alice.send_text(&room, &together[0]).await;
    bob.texts_until(&room, &together).await;
    carol.texts_until(&room, &together).await;

    nodes[2].kill().await;
    send_many(&alice, &room, "missed", MISSED).await;
    let last = [last_of("missed", MISSED)];
    bob.texts_until(&room, &last).await;
    nodes[0].kill().await;
    let start = Instant::now();
    nodes[2].restart().await;
    carol.texts_until(&room, &last).await;
    table.row([
        "heal of 10,000 missed events by a member that wrote none of them (start of the node included)",
        &format!("{:.1} s", start.elapsed().as_secs_f64()),
    ]);

    nodes[1].kill().await;
    send_many(&carol, &room, "one side", MISSED / 2).await;
    nodes[2].kill().await;
    nodes[1].restart().await;
    send_many(&bob, &room, "other side", MISSED / 2).await;
    let start = Instant::now();
    nodes[2].restart().await;
    let (one, other) = ([last_of("one side", MISSED / 2)], [last_of("other side", MISSED / 2)]);
    futures::join!(bob.texts_until(&room, &one), carol.texts_until(&room, &other));
    let seconds = start.elapsed().as_secs_f64();
    for client in [&bob, &carol] {
        assert_eq!(messages(client, &room).await, 1 + 2 * MISSED, "nothing is missing");
    }
    table.row([
        "heal of a split with 5,000 events on each side (start of a node included)",
        &format!("{seconds:.1} s"),
    ]);
}

/// How many messages a client finds in a room by paging back.
async fn messages(client: &Client, room: &str) -> usize {
    let (mut count, mut from) = (0, String::new());
    loop {
        let page = client
            .get(&format!("/rooms/{room}/messages?dir=b&limit=1000{from}"))
            .await
            .ok();
        count += texts(&page["chunk"]).len();
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return count,
        }
    }
}

/// The text of the last of `count` messages of [`send_many`].
fn last_of(text: &str, count: usize) -> String {
    format!("{text} {}", count - 1)
}

/// Sends numbered messages, sixteen at a time.
async fn send_many(sender: &Client, room: &str, text: &str, count: usize) {
    let sends = (0..count).map(|number| async move { sender.send_text(room, &format!("{text} {number}")).await });
    stream::iter(sends).buffered(16).collect::<Vec<_>>().await;
}
