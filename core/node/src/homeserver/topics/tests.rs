//! Rooms of several servers that speak over their topic, and what becomes of it when somebody leaves.

use std::{collections::BTreeSet, time::Duration};

use kith_identity::TopicName;
use kith_store::{NewTopic, ReadTxn};
use ruma::OwnedRoomId;
use serde_json::json;

use super::{SETTLED, ToldTopic};
use crate::{
    Error,
    testing::{
        Client, Cluster, Node, escape,
        rooms::{common_room, join, say, until_alike, until_text},
    },
};

pub(super) const SENDS: &str = "/federation/v1/send/";

/// Waits until all these nodes follow the same topic, one that is not among `but`, and others at the most for a while.
async fn until_common_topic(cluster: &Cluster, nodes: &[&Node], room: &OwnedRoomId, but: &[TopicName]) -> TopicName {
    let used = async |node: &Node| {
        let room = room.clone();
        let topic = node.hs.context.store.read(move |txn| txn.topic(&room)).await.unwrap();
        topic.map(|topic| kith_identity::TopicSecret::from_bytes(&topic.secret).public().name())
    };
    let mut changes = cluster.wires.changes();
    loop {
        let mut names = BTreeSet::new();
        for node in nodes {
            let name = used(node).await;
            let followed = name
                .as_ref()
                .is_some_and(|name| cluster.wires.followed(&node.name).contains(name));
            names.insert(name.filter(|_| followed));
        }
        if let (1, Some(Some(name))) = (names.len(), names.first())
            && !but.contains(name)
        {
            return name.clone();
        }
        changes.changed().await.unwrap();
    }
}

/// A room of so many nodes whose topic is in use.
pub(super) async fn room_with_topic(count: usize) -> (Cluster, OwnedRoomId, Vec<Client>, TopicName) {
    let cluster = Cluster::start(count).await;
    let (room, clients) = common_room(&cluster).await;
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    let topic = until_common_topic(&cluster, &nodes, &room, &[]).await;
    cluster.clock.advance(SETTLED);
    (cluster, room, clients, topic)
}

/// Waits until a node's database shows what is waited for. It looks whenever something was sent or followed: secrets move no
/// position that could be waited on.
async fn until<T: Send + 'static>(
    cluster: &Cluster,
    node: &Node,
    look: impl Fn(&ReadTxn<'_>) -> Result<Option<T>, Error> + Clone + Send + 'static,
) -> T {
    let mut changes = cluster.wires.changes();
    loop {
        let look = look.clone();
        if let Some(found) = node.hs.context.store.read(move |txn| look(txn)).await.unwrap() {
            return found;
        }
        changes.changed().await.unwrap();
    }
}

pub(super) async fn until_nothing_waits(node: &Node) {
    loop {
        // What is forgotten moves no position, so there is nothing to wait on.
        let waiting = node.hs.context.store.read(|txn| txn.outbox_len()).await;
        if waiting.unwrap() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_larger_room_speaks_over_its_topic() {
    let (cluster, room, clients, _) = room_with_topic(6).await;
    for node in &cluster.nodes {
        until_nothing_waits(node).await;
    }
    let before = (cluster.wires.published().len(), cluster.wires.requests(SENDS));
    say(&clients[2], &room, "to all").await;
    for node in &cluster.nodes {
        until_text(node, &room, "to all").await;
    }
    let after = (cluster.wires.published().len(), cluster.wires.requests(SENDS));
    assert_eq!(after, (before.0 + 1, before.1));
    // Nothing of it can be read on the way.
    let (author, message) = cluster.wires.published().pop().unwrap();
    assert_eq!(author, cluster[2].name);
    assert!(!message.windows(6).any(|bytes| bytes == b"to all"));
    // Two others were to keep it in any case; they show that they do, and it is not sent once more.
    until_nothing_waits(&cluster[2]).await;
}

#[tokio::test]
async fn what_a_topic_loses_is_found_all_the_same() {
    let (cluster, room, clients, topic) = room_with_topic(6).await;
    cluster.wires.lose_gossip(true);
    let before = cluster.wires.published().len();
    say(&clients[1], &room, "lost").await;
    for node in &cluster.nodes {
        until_text(node, &room, "lost").await;
    }
    assert_eq!(cluster.wires.published().len(), before + 1);
    until_alike(&cluster.nodes.iter().collect::<Vec<_>>(), &room).await;
    // Whoever had to fetch it says so: those who should have passed it on may be to blame.
    let mut changes = cluster.wires.changes();
    while cluster.wires.missed().is_empty() {
        changes.changed().await.unwrap();
    }
    assert!(cluster.wires.missed().iter().all(|(_, missed)| *missed == topic));
}

/// Whoever follows no topic, as one that was not told its secret yet, gets what is published from others.
#[tokio::test]
async fn where_a_topic_reaches_nobody_everybody_is_sent_to() {
    let (cluster, room, clients, topic) = room_with_topic(5).await;
    for node in &cluster.nodes[1..] {
        node.hs.context.network.unfollow(&topic).await;
    }
    let before = cluster.wires.published().len();
    say(&clients[0], &room, "direct").await;
    for node in &cluster.nodes {
        until_text(node, &room, "direct").await;
    }
    assert_eq!(cluster.wires.published().len(), before);
    until_nothing_waits(&cluster[0]).await;
}

#[tokio::test]
async fn who_leaves_or_is_removed_has_no_part_in_the_next_secret() {
    let (cluster, room, clients, first) = room_with_topic(7).await;
    let at = |what: &str| format!("/_matrix/client/v3/rooms/{}/{what}", escape(room.as_str()));
    clients[6].post_ok(&at("leave"), json!({})).await;
    let nodes: Vec<&Node> = cluster.nodes[..6].iter().collect();
    let second = until_common_topic(&cluster, &nodes, &room, std::slice::from_ref(&first)).await;
    clients[0]
        .post_ok(&at("kick"), json!({"user_id": clients[5].user_id}))
        .await;
    let nodes = &nodes[..5];
    let third = until_common_topic(&cluster, nodes, &room, &[first, second]).await;
    for gone in &cluster.nodes[5..] {
        let of = room.clone();
        until(&cluster, gone, move |txn| Ok(txn.topics(&of)?.is_empty().then_some(()))).await;
        assert!(!cluster.wires.followed(&gone.name).contains(&third));
    }
    cluster.clock.advance(SETTLED);
    let before = cluster.wires.published().len();
    say(&clients[1], &room, "among us").await;
    for node in nodes {
        until_text(node, &room, "among us").await;
    }
    assert_eq!(cluster.wires.published().len(), before + 1);
}

#[tokio::test]
async fn only_members_tell_secrets_and_the_later_one_counts_in_any_order() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let answer = alice
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    let told = |generation: u64, byte: u8| -> ToldTopic {
        let secret = ruma::serde::Base64::<ruma::serde::base64::UrlSafe>::new(vec![byte; 32]);
        serde_json::from_value(json!({"generation": generation, "secret": secret})).unwrap()
    };
    let used = async || {
        let room = room.clone();
        let topic = cluster[0].hs.context.store.read(move |txn| txn.topic(&room)).await;
        topic.unwrap().map(|topic| (topic.generation, topic.secret[0]))
    };
    let hear = async |from: &Node, told: ToldTopic| {
        let told = [(room.clone(), told)].into();
        cluster[0].hs.topics.handle_told(&from.name, told).await.unwrap();
    };
    hear(&cluster[2], told(9, 9)).await;
    assert_eq!(used().await, None);
    let secrets = [(1, 1), (1, 2), (2, 0)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for number in order {
            let (generation, byte) = secrets[number];
            hear(&cluster[1], told(generation, byte)).await;
        }
        assert_eq!(used().await, Some((2, 0)), "{order:?}");
        let room = room.clone();
        let forgotten = cluster[0].hs.context.store.write(move |txn| {
            txn.forget_topics(&room)?;
            Ok::<_, Error>(())
        });
        forgotten.await.unwrap();
    }
    // Of two that were made at once, the maker of the one that lost passes on the one that won.
    let (own, now) = (room.clone(), cluster[0].hs.context.world.now());
    let made = cluster[0].hs.context.store.write(move |txn| {
        let new = NewTopic {
            generation: 1,
            secret: [1; 32],
            gone: None,
            now,
        };
        Ok::<_, Error>(txn.adopt_topic(&own, &new)?)
    });
    made.await.unwrap();
    hear(&cluster[1], told(1, 2)).await;
    let of = room.clone();
    let passed_on = until(&cluster, &cluster[1], move |txn| {
        Ok(txn.topic(&of)?.map(|topic| topic.secret[0]))
    });
    assert_eq!(passed_on.await, 2);
}

/// A member that names the highest generation there is would keep others from ever making a later one.
#[tokio::test]
async fn nobody_names_a_generation_that_cannot_be_surpassed() {
    let (cluster, room, clients, first) = room_with_topic(7).await;
    let now = u64::from(cluster[0].hs.context.world.now().get()) / 1_000;
    let told = |generation: u64, byte: u8| -> ToldTopic {
        let secret = ruma::serde::Base64::<ruma::serde::base64::UrlSafe>::new(vec![byte; 32]);
        serde_json::from_value(json!({"generation": generation, "secret": secret})).unwrap()
    };
    let tell = async |from: &Node, to: &Node, told: ToldTopic| {
        let told = [(room.clone(), told)].into();
        to.hs.topics.handle_told(&from.name, told).await.unwrap();
    };
    let nodes: Vec<&Node> = cluster.nodes[..6].iter().collect();
    // Two liars: one is not believed at all, the other says the most that is.
    for node in &nodes[2..] {
        tell(&cluster[0], node, told((1 << 53) - 1, 9)).await;
        tell(&cluster[0], node, told(now + 2 * 24 * 60 * 60, 8)).await;
    }
    assert_eq!(until_common_topic(&cluster, &nodes, &room, &[]).await, first);
    let highest = now + 24 * 60 * 60;
    for (number, node) in nodes.iter().enumerate() {
        // Each is told of another one.
        tell(
            &cluster[(number + 1) % 6],
            node,
            told(highest, if number % 2 == 0 { 7 } else { 6 }),
        )
        .await;
    }
    let second = until_common_topic(&cluster, &nodes, &room, std::slice::from_ref(&first)).await;
    assert_eq!(second, kith_identity::TopicSecret::from_bytes(&[7; 32]).public().name());
    // When somebody leaves, there is a further one all the same.
    cluster.clock.advance(SETTLED);
    let leave = format!("/_matrix/client/v3/rooms/{}/leave", escape(room.as_str()));
    clients[6].post_ok(&leave, json!({})).await;
    until_common_topic(&cluster, &nodes, &room, &[first, second]).await;
}

/// A database may hold what an earlier version believed.
#[tokio::test]
async fn a_generation_that_is_not_believed_any_more_is_surpassed_by_any() {
    let (cluster, room, clients, first) = room_with_topic(7).await;
    for node in &cluster.nodes {
        let disk = rusqlite::Connection::open(node.database()).unwrap();
        disk.execute("UPDATE topics SET generation = ? WHERE replaced_at IS NULL", [i64::MAX])
            .unwrap();
    }
    let leave = format!("/_matrix/client/v3/rooms/{}/leave", escape(room.as_str()));
    clients[6].post_ok(&leave, json!({})).await;
    let nodes: Vec<&Node> = cluster.nodes[..6].iter().collect();
    until_common_topic(&cluster, &nodes, &room, &[first]).await;
}
