//! Two nodes on one local network, which know nothing of each other.

use kith_tests::{Lan, Node, NodeOptions, lab};
use serde_json::json;

/// Starts a node on a machine as a user would who gives it no address, no ticket and no peer.
async fn node_on(lan: &Lan, machine: usize) -> Node {
    Node::start(NodeOptions {
        listen: vec!["/ip4/0.0.0.0/udp/0/quic-v1".to_owned()],
        mdns: true,
        through: lan.on(machine),
        ..NodeOptions::default()
    })
    .await
}

#[tokio::test]
async fn nodes_on_one_local_network_find_each_other_and_talk() {
    let set_up = lab("nodes_on_one_local_network_find_each_other_and_talk", Lan::set_up());
    let Some(lan) = set_up.await else { return };
    let (first, second) = (node_on(&lan, 0).await, node_on(&lan, 1).await);
    let mut alice = first.client_over_socket("alice").await;
    let mut bob = second.client_over_socket("bob").await;

    // Whichever comes first: an invitation to a node that is not found yet waits until it is.
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let texts = ["hello over the LAN".to_owned(), "and back".to_owned()];
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    assert_eq!(alice.texts_until(&room, &texts).await, texts);
}
