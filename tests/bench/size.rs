//! What a node costs the device it lives on: start, memory, size.

use std::time::Instant;

use futures::{StreamExt, stream};
use kith_tests::{Node, NodeOptions, binary};
use serde_json::json;

use crate::{Table, percentile, process::resident_mb, sorted};

const STARTS: usize = 10;
const ROOMS: usize = 50;
const EVENTS: usize = 100_000;

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new("One Kith node", &["measured", "value"]);
    let size = std::fs::metadata(binary("kith")).expect("a built program").len();
    table.row([
        "size of the stripped `kith` program",
        &format!("{:.1} MB", size as f64 / 1e6),
    ]);
    starts(&mut table).await;
    memory(&mut table).await;
    table
}

async fn starts(table: &mut Table) {
    let mut fresh = Vec::new();
    let mut again = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let mut node = Node::start(NodeOptions::default()).await;
        fresh.push(start.elapsed().as_secs_f64() * 1000.0);
        assert!(node.stop().await.success());
        let start = Instant::now();
        node.restart().await;
        again.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    table.row([
        "start to ready, new data folder, median",
        &format!("{:.0} ms", percentile(&sorted(fresh), 50.0)),
    ]);
    table.row([
        "start to ready, existing data folder, median",
        &format!("{:.0} ms", percentile(&sorted(again), 50.0)),
    ]);
}

async fn memory(table: &mut Table) {
    let mut node = Node::start(NodeOptions::default()).await;
    table.row([
        "resident memory, new node, idle",
        &format!("{:.1} MB", resident_mb(node.pid())),
    ]);
    let mut client = node.client("alice").await;
    let mut rooms = Vec::new();
    for number in 0..ROOMS {
        rooms.push(
            client
                .create_room(json!({"preset": "private_chat", "name": format!("Room {number}")}))
                .await,
        );
    }
    let sender = &client;
    let sends = (0..EVENTS).map(|number| {
        let room = &rooms[number % ROOMS];
        async move { sender.send_text(room, &format!("message number {number}")).await }
    });
    stream::iter(sends).buffer_unordered(32).collect::<Vec<_>>().await;
    client.sync(0).await;
    table.row([
        "resident memory after sending 100,000 events in 50 rooms",
        &format!("{:.1} MB", resident_mb(node.pid())),
    ]);
    assert!(node.stop().await.success());
    node.restart().await;
    client.sync(0).await;
    table.row([
        "resident memory with those after a restart and a sync",
        &format!("{:.1} MB", resident_mb(node.pid())),
    ]);
    let file = std::fs::metadata(node.data().join("kith.db")).map_or(0, |file| file.len());
    table.row([
        "database file with 100,000 events",
        &format!("{:.1} MB", file as f64 / 1e6),
    ]);
}
