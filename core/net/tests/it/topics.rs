//! Topics among whole networks.

use bytes::Bytes;
use kith_identity::{TopicKey, TopicSecret};
use kith_net::{TellError, TopicMessage};
use rand::rngs::OsRng;
use ruma::OwnedServerName;
use tokio::sync::broadcast;

use crate::node::{Node, Setup, soon};

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
