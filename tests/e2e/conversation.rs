//! Two and three nodes talk.

use kith_tests::Node;
use serde_json::json;

use crate::a_room_of_three;

#[tokio::test]
async fn two_nodes_exchange_messages_both_ways() {
    let nodes = Node::start_connected(2).await;
    let mut alice = nodes[0].client("alice").await;
    let mut bob = nodes[1].client("bob").await;

    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();

    let from_alice: Vec<String> = (0..5).map(|n| format!("hello {n}")).collect();
    for text in &from_alice {
        alice.send_text(&room, text).await;
    }
    assert_eq!(bob.texts_until(&room, &from_alice).await, from_alice);

    let from_bob: Vec<String> = (0..5).map(|n| format!("hi {n}")).collect();
    for text in &from_bob {
        bob.send_text(&room, text).await;
    }
    let seen = alice.texts_until(&room, &from_bob).await;
    assert_eq!(seen, [from_alice, from_bob].concat());
}

#[tokio::test]
async fn a_room_of_three_nodes_reaches_everyone() {
    let nodes = Node::start_connected(3).await;
    let (mut clients, room) = a_room_of_three(&nodes).await;
    let mut all = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        let text = format!("from {index}");
        client.send_text(&room, &text).await;
        all.push(text);
    }
    for client in &mut clients {
        let mut seen = client.texts_until(&room, &all).await;
        seen.sort();
        assert_eq!(seen, all);
    }
}
