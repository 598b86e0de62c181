//! How fast a file comes from another node: on a straight path, and through a relay. All of it on loopback, so that it is the
//! work of the programs that is measured, and no network.

use std::time::Instant;

use kith_tests::{Client, Node, NodeOptions, Relay};
use serde_json::Value;

use crate::{Table, percentile, sorted};

const MIB: usize = 1 << 20;
const FILE: usize = 32 * MIB;
const FILES: usize = 3;

/// A relay's settings without the limits that stand in the way here.
const UNLIMITED: &str = "[limits]\ncircuit_mib = 1000000\n";

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new(
        "A file of 32 MiB from another node, loopback",
        &["path", "MiB/s, median of 3", "slowest"],
    );
    let rates = fetch(&Node::start_connected(2).await, "lan").await;
    row(&mut table, "direct (QUIC)", &rates);
    let relay = Relay::start_with(UNLIMITED).await;
    let rates = fetch(&behind(&relay).await, "relayed").await;
    row(
        &mut table,
        "through a relay (QUIC to the relay; noise and yamux inside)",
        &rates,
    );
    table
}

fn row(table: &mut Table, path: &str, rates: &[f64]) {
    let rate = |percent| format!("{:.0}", percentile(rates, percent));
    table.row([path.to_owned(), rate(50.0), rate(0.0)]);
}

/// Two nodes that listen nowhere but at the relay, so that no straight path can be made between them.
async fn behind(relay: &Relay) -> Vec<Node> {
    let at_relay = || NodeOptions {
        listen: relay
            .addresses
            .iter()
            .map(|address| format!("{address}/p2p-circuit"))
            .collect(),
        ..NodeOptions::default()
    };
    let first = Node::start(at_relay()).await;
    let second = Node::start(NodeOptions {
        peers: vec![first.ready.ticket.clone()],
        ..at_relay()
    })
    .await;
    vec![first, second]
}

/// Has the second node fetch files of the first one, and says at which rates they came, the slowest first.
async fn fetch(nodes: &[Node], path: &str) -> Vec<f64> {
    let (owner, reader) = (nodes[0].client("alice").await, nodes[1].client("bob").await);
    let mut rates = Vec::new();
    for number in 0..FILES {
        let media = upload(&owner, number).await;
        let start = Instant::now();
        let file = reader.download(&media).await;
        rates.push((FILE / MIB) as f64 / start.elapsed().as_secs_f64());
        assert_eq!(file.len(), FILE);
    }
    let (_, status, _) = nodes[1].kith(&["status", "--json"], "").await;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["peers"][0]["path"], path);
    sorted(rates)
}

/// Uploads a file that no other is like; gives its server name and media id.
async fn upload(client: &Client, number: usize) -> String {
    let bytes = (0..FILE / 8).flat_map(|place| {
        ((place * FILES + number) as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()
    });
    client.upload(bytes.collect()).await
}
