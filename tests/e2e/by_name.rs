//! Two nodes that have nothing in common but a relay.

use kith_tests::{Node, NodeOptions, Relay};
use serde_json::json;

#[tokio::test]
async fn a_user_id_in_the_invite_box_reaches_that_person_through_nothing_but_a_relay() {
    let relay = Relay::start().await;
    let start = || {
        Node::start(NodeOptions {
            arguments: relay.arguments(),
            ..NodeOptions::default()
        })
    };
    let (first, second) = (start().await, start().await);
    let mut alice = first.client("alice").await;
    let mut bob = second.client("bob").await;

    // Whichever comes first: an invitation to a node that is not in the DHT yet waits until it is.
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let texts = ["hello, whoever you are".to_owned(), "and back".to_owned()];
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    assert_eq!(alice.texts_until(&room, &texts).await, texts);
}
