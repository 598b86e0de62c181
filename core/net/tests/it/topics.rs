//! Topics among whole networks.

use bytes::Bytes;
use futures::future::join_all;
use kith_identity::{TopicKey, TopicSecret};
use kith_net::{TellError, TopicMessage};
use rand::rngs::OsRng;
use ruma::OwnedServerName;
use tokio::sync::broadcast;

use crate::node::{Node, Setup, connections, soon};

fn seal(topic: &TopicSecret, content: &str) -> Bytes {
    topic.seal(content.as_bytes(), &mut OsRng).unwrap().into()
}

fn names(nodes: &[&Node]) -> Vec<OwnedServerName> {
    nodes.iter().map(|node| node.name()).collect()
}

/// Waits until so many connected nodes are known to follow the topic.
async fn followers(node: &Node, topic: TopicKey, count: usize) {
    let mut followers = node.net.followers();
    let wanted = followers.wait_for(|topics| topics.get(&topic.name()) == Some(&count));
    soon(wanted).await.unwrap();
}

async fn next(messages: &mut broadcast::Receiver<TopicMessage>) -> TopicMessage {
    soon(messages.recv()).await.unwrap()
}

#[tokio::test]
async fn a_message_reaches_members_who_are_not_connected_to_its_sender() {
    let (alice, bob, carol) = (
        Setup::new().start().await,
        Setup::new().start().await,
        Setup::new().start().await,
    );
    let topic = TopicSecret::generate(&mut OsRng);
    alice.learn(&bob).await;
    carol.learn(&bob).await;
    // Following is enough: members are dialled.
    for node in [&alice, &bob, &carol] {
        node.net.follow(topic.public(), names(&[&alice, &bob, &carol])).await;
    }
    followers(&bob, topic.public(), 2).await;
    followers(&alice, topic.public(), 1).await;

    let [mut to_alice, mut to_bob, mut to_carol] = [&alice, &bob, &carol].map(|node| node.net.topic_messages());
    let message = seal(&topic, "hello");
    assert_eq!(alice.net.tell(&topic.public(), message.clone()).await, Ok(1));
    for (messages, from) in [(&mut to_bob, &alice), (&mut to_carol, &bob)] {
        let got = next(messages).await;
        assert_eq!((got.topic, got.from), (topic.public().name(), from.name()));
        assert_eq!(topic.open(&got.message).unwrap(), b"hello");
    }
    assert_eq!(
        alice.net.tell(&topic.public(), message).await,
        Err(TellError::Duplicate)
    );
    // Nothing comes back to its sender: what comes first is the answer.
    carol.net.tell(&topic.public(), seal(&topic, "answer")).await.unwrap();
    assert_eq!(topic.open(&next(&mut to_alice).await.message).unwrap(), b"answer");
}

#[tokio::test]
async fn what_goes_to_nobody_says_why() {
    let alice = Setup::new().start().await;
    let [topic, other] = [(); 2].map(|()| TopicSecret::generate(&mut OsRng));
    let check = async |message, expected| {
        assert_eq!(alice.net.tell(&topic.public(), message).await, Err(expected));
    };
    check(seal(&topic, "early"), TellError::NotFollowed).await;
    alice.net.follow(topic.public(), names(&[&alice])).await;
    check(seal(&topic, "alone"), TellError::NobodyThere).await;
    check(seal(&other, "elsewhere"), TellError::NotValid).await;
    alice.net.unfollow(&topic.public().name()).await;
    check(seal(&topic, "late"), TellError::NotFollowed).await;
    alice.net.shutdown().await;
    check(seal(&topic, "too late"), TellError::ShuttingDown).await;
}

/// Nodes that follow a topic among all of them, and know where everybody is.
async fn room(count: usize, topic: &TopicSecret) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Setup::new().start().await);
    }
    for node in &nodes {
        for other in &nodes {
            node.learn(other).await;
        }
    }
    let members = names(&nodes.iter().collect::<Vec<_>>());
    for node in &nodes {
        node.net.follow(topic.public(), members.clone()).await;
    }
    nodes
}

/// Waits until at least so many connected nodes are known to follow the topic.
async fn company(node: &Node, topic: &TopicSecret, least: usize) {
    let name = topic.public().name();
    let mut followers = node.net.followers();
    let enough = followers.wait_for(|topics| topics.get(&name).is_some_and(|count| *count >= least));
    soon(enough).await.unwrap();
}

#[tokio::test]
async fn a_few_members_are_kept_connected_and_replaced_when_they_go() {
    let topic = TopicSecret::generate(&mut OsRng);
    let mut nodes = room(12, &topic).await;
    for node in &nodes {
        company(node, &topic, 4).await;
    }
    // Whom it dialled, and not all who are there.
    let dialled = |node: &Node| {
        let peers = node.net.peers();
        let ours = peers
            .iter()
            .filter(|peer| peer.connections.iter().any(|connection| connection.dialled));
        ours.count()
    };
    assert!(nodes.iter().all(|node| dialled(node) <= 4));

    let mut arrivals: Vec<_> = nodes.iter().map(|node| node.net.topic_messages()).collect();
    nodes[0].net.tell(&topic.public(), seal(&topic, "first")).await.unwrap();
    for messages in &mut arrivals[1..] {
        assert_eq!(topic.open(&next(messages).await.message).unwrap(), b"first");
    }
    // Eight of twelve go: the four who stay find each other.
    let gone = nodes.split_off(4);
    join_all(gone.iter().map(|node| node.net.shutdown())).await;
    for node in &nodes {
        company(node, &topic, 1).await;
    }
    for node in &nodes {
        connections(node, |peers| peers.len() == 3).await;
    }
}

#[tokio::test]
async fn a_node_that_rests_dials_nobody_for_its_topics_until_it_wakes() {
    let topic = TopicSecret::generate(&mut OsRng);
    let nodes = room(2, &topic).await;
    company(&nodes[0], &topic, 1).await;
    nodes[0].net.doze().await;
    connections(&nodes[0], <[_]>::is_empty).await;
    let mut followers = nodes[0].net.followers();
    soon(followers.wait_for(|topics| topics[&topic.public().name()] == 0))
        .await
        .unwrap();
    nodes[0].net.wake().await;
    company(&nodes[0], &topic, 1).await;
}
