//! Whole nodes on loopback that share a larger room: what one says reaches all, though it is sent to a few only.
//! `KITH_ROOM_NODES=100 cargo test -p kith-node --lib topic_tests -- --nocapture` tries it with a hundred.

use futures::future::join_all;
use kith_engine::RoomReader;
use kith_store::{Direction, Seq};
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::SystemEntropy,
    contacts::Introduction,
    network::Network,
    testing::{Client, ManualClock, escape},
};

/// Nodes, unless another number is asked for.
const NODES: usize = 8;
/// So many know each other all; of more each knows the first and as many that were there before it.
const ACQUAINTED: usize = 8;
/// So many speak.
const SPEAKERS: usize = 8;

fn count() -> usize {
    let asked = std::env::var("KITH_ROOM_NODES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(NODES)
}

async fn start(data: &Path, clock: &ManualClock) -> Node {
    let mut config = Config::new(data);
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    (config.mdns, config.upnp, config.open_registration) = (false, false, true);
    let node = Node::open(config, World::new(clock.clone(), SystemEntropy))
        .await
        .unwrap();
    node.go_online().await.unwrap();
    node
}

/// Waits until a node has a text in a room.
async fn until_text(node: &Node, room: &OwnedRoomId, text: &str) {
    let store = &node.homeserver().context.store;
    let mut committed = store.committed();
    loop {
        committed.borrow_and_update();
        let (room, text) = (room.clone(), text.to_owned());
        let held = store.read(move |txn| {
            let timeline = txn.timeline(&room, Seq(i64::MIN), Direction::Forward, usize::MAX)?;
            let mut bodies = timeline.iter().filter_map(|event| event.pdu.content_as::<Value>().ok());
            Ok::<_, Error>(bodies.any(|content| content["body"] == text))
        });
        if held.await.unwrap() {
            return;
        }
        committed.changed().await.unwrap();
    }
}

/// Waits until all have one secret, and every node knows followers of its topic.
async fn until_common_topic(nodes: &[Node], room: &OwnedRoomId) {
    loop {
        let mut found = std::collections::BTreeSet::new();
        for node in nodes {
            let (hs, of) = (node.homeserver(), room.clone());
            let read = hs.context.store.read(move |txn| {
                let members = txn.joined_servers(&of)?.len();
                let heads = txn.forward_extremities(&of)?;
                Ok::<_, Error>((txn.topic(&of)?.map(|topic| topic.secret), members, heads))
            });
            let (secret, members, heads) = read.await.unwrap();
            let topic = secret.map(|secret| kith_identity::TopicSecret::from_bytes(&secret).public().name());
            let followers = node.inner.network.net().unwrap().followers().borrow().clone();
            let enough = topic
                .as_ref()
                .is_some_and(|name| followers.get(name).is_some_and(|count| *count >= 2));
            found.insert((topic.filter(|_| enough), members, heads));
        }
        if let (1, Some((Some(_), members, _))) = (found.len(), found.first())
            && *members == nodes.len()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_message_to_a_larger_room_leaves_its_sender_a_few_times_and_reaches_everybody() {
    let clock = ManualClock::starting_now();
    let folders: Vec<_> = (0..count()).map(|_| tempfile::tempdir().unwrap()).collect();
    let (mut nodes, mut clients) = (Vec::new(), Vec::new());
    for folder in &folders {
        let node = start(folder.path(), &clock).await;
        let before = nodes.iter().skip(1).rev().take(ACQUAINTED).chain(nodes.first());
        for other in before {
            let introduction = Introduction::Ticket(Box::new(Node::ticket(other).await.unwrap()));
            node.add_peer(&introduction).await.unwrap();
        }
        clients.push(Client::registered(crate::client_api::router(node.homeserver().clone()), "user").await);
        nodes.push(node);
    }
    let answer = clients[0]
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    let via = &nodes[0].homeserver().context.server_name;
    for client in &clients[1..] {
        let path = format!("/_matrix/client/v3/join/{}?via={via}", escape(room.as_str()));
        client.post_ok(&path, json!({})).await;
    }
    until_common_topic(&nodes, &room).await;
    clock.advance(Duration::from_secs(60));
    let (mut copies, mut times) = (Vec::new(), Vec::new());
    for (number, client) in clients.iter().enumerate().take(SPEAKERS) {
        let text = format!("from {number}");
        let path = format!(
            "/_matrix/client/v3/rooms/{}/send/m.room.message/{number}",
            escape(room.as_str())
        );
        let topics = &nodes[number].homeserver().topics;
        let (before, start) = (topics.figures(), std::time::Instant::now());
        client.put_ok(&path, json!({"msgtype": "m.text", "body": text})).await;
        let arrivals = nodes.iter().map(async |node| {
            until_text(node, &room, &text).await;
            start.elapsed()
        });
        times.extend(join_all(arrivals).await);
        let published = async {
            while topics.figures().messages == before.messages {
                tokio::task::yield_now().await;
            }
        };
        let published = tokio::time::timeout(Duration::from_secs(60), published).await;
        assert!(published.is_ok(), "it did not go over the topic");
        let after = topics.figures();
        copies.push(after.copies - before.copies);
    }
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    println!(
        "{} nodes: copies {copies:?}, p50 {:?}, p95 {:?}",
        nodes.len(),
        at(50),
        at(95)
    );
    assert!(copies.iter().all(|copies| (1..=5).contains(copies)), "{copies:?}");
    for node in &nodes {
        node.shutdown().await;
    }
}

/// kith-net comes and goes with the network; what is followed outlives it.
#[tokio::test]
async fn topics_are_followed_by_each_network_that_a_node_has() {
    let clock = ManualClock::starting_now();
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [one, other] = [
        start(folders[0].path(), &clock).await,
        start(folders[1].path(), &clock).await,
    ];
    let introduction = Introduction::Ticket(Box::new(Node::ticket(&one).await.unwrap()));
    other.add_peer(&introduction).await.unwrap();
    let topic = kith_identity::TopicSecret::from_bytes(&[7; 32]);
    let members = [&one, &other].map(|node| node.homeserver().context.server_name.clone());
    for node in [&one, &other] {
        node.inner.network.follow(topic.public(), members.to_vec()).await;
    }
    for round in 0..2_u8 {
        let mut followers = other.inner.network.net().unwrap().followers();
        let name = topic.public().name();
        let there = followers.wait_for(|topics| topics.get(&name) == Some(&1));
        tokio::time::timeout(Duration::from_secs(60), there)
            .await
            .unwrap()
            .unwrap();
        let mut messages = one.inner.network.topic_messages().unwrap();
        let message = topic.seal(&[round], &mut World::system().rng()).unwrap();
        let told = other.inner.network.publish(&topic.public(), message.into()).await;
        assert_eq!(told, Ok(1));
        let heard = tokio::time::timeout(Duration::from_secs(60), messages.recv()).await;
        assert_eq!(topic.open(&heard.unwrap().unwrap().message).unwrap(), [round]);
        other.suspend(false).await.unwrap();
        let message = topic.seal(&[round, 1], &mut World::system().rng()).unwrap();
        let offline = other.inner.network.publish(&topic.public(), message.into()).await;
        assert_eq!(offline, Err(crate::network::PublishError::Busy));
        other.resume().await.unwrap();
    }
    for node in [one, other] {
        node.shutdown().await;
    }
}
