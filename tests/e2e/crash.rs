//! Nodes that die without a warning, and what must survive it.

use kith_tests::Node;
use serde_json::json;

#[tokio::test]
async fn what_was_acknowledged_arrives_once_and_in_order_after_kills_on_both_sides() {
    let mut nodes = Node::start_connected(2).await;
    let mut alice = nodes[0].client("alice").await;
    let mut bob = nodes[1].client("bob").await;
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let before = vec!["before".to_owned()];
    alice.send_text(&room, &before[0]).await;
    bob.texts_until(&room, &before).await;

    nodes[1].kill().await;
    let during: Vec<String> = (0..20).map(|n| format!("while away {n}")).collect();
    for text in &during {
        alice.send_text(&room, text).await;
    }
    // The sender dies too, with everything still in its outbox.
    nodes[0].kill().await;
    nodes[0].restart().await;
    nodes[1].restart().await;
    assert_eq!(bob.texts_until(&room, &during).await, during);

    let after = vec!["and back".to_owned()];
    bob.send_text(&room, &after[0]).await;
    alice.texts_until(&room, &after).await;
    for node in &mut nodes {
        assert!(node.stop().await.success());
        let (status, _, stderr) = node.kith(&["check"], "").await;
        assert!(status.success(), "{stderr}");
    }
}
