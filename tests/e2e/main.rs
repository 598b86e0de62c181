//! End to end over real processes, real QUIC and real SQLite, by plain requests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod backup;
mod by_name;
mod conversation;
mod crash;
mod far;
mod full_disk;
mod kills;
mod lan;
mod nat;
mod quiet;

use kith_tests::{Client, Node};
use serde_json::json;

/// Three people, each on a node of their own, and a private room in which they all are.
async fn a_room_of_three(nodes: &[Node]) -> (Vec<Client>, String) {
    let mut clients = Vec::new();
    for (node, name) in nodes.iter().zip(["alice", "bob", "carol"]) {
        clients.push(node.client(name).await);
    }
    let invite = [&clients[1].user_id, &clients[2].user_id];
    let room = clients[0]
        .create_room(json!({"preset": "private_chat", "invite": invite}))
        .await;
    for client in &mut clients[1..] {
        assert_eq!(client.invited().await, room);
        client.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    (clients, room)
}
