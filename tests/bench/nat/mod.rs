//! How soon people reach each other across routers, carriers and firewalls, and after what happens to networks: whole programs in
//! network namespaces, far enough apart that round trips count. Measures nothing where the system permits no namespaces.

mod changes;
mod pairs;
mod rest;
pub(crate) mod sleeper;
mod throughput;

use std::time::{Duration, Instant};

use kith_tests::{Access, Client, Host, Internet, LanError, Node, Quality, Relay, Router, within};
use serde_json::{Value, json};

use crate::Table;

/// One uplink. Two lie between any two hosts, so that a round trip takes 40 ms and a bit.
const UPLINK: Quality = Quality {
    delay: Duration::from_millis(10),
    jitter: Duration::from_millis(1),
    loss: 0.0,
};

/// Between two looks at how a node reaches another: each look starts a program.
const LOOK: Duration = Duration::from_millis(50);

/// A straight path that has not come by then does not come.
const STRAIGHT_BY: Duration = Duration::from_secs(30);

/// Until whoever has a place at a relay can be found by name: records are made and stored.
const PUBLISHED: Duration = Duration::from_secs(3);

/// Measures and tabulates.
pub(crate) async fn measure() -> Vec<Table> {
    let mut pairs = Table::new(
        "Sixteen pairs of networks, uplinks of 10 ms, one relay in common",
        &["who invites", "who is invited", "first message", "straight path"],
    );
    let mut reach = Table::new("Reaching each other", &["measured", "value", "aim"]);
    if let Err(reason) = measure_all(&mut pairs, &mut reach).await {
        reach.row(["not run: no network namespaces here", &reason.to_string(), ""]);
    }
    vec![pairs, reach]
}

async fn measure_all(pairs: &mut Table, reach: &mut Table) -> Result<(), LanError> {
    pairs::measure(pairs, reach).await?;
    pairs::holes(reach).await?;
    changes::relay_killed(reach).await?;
    changes::internet_cut(reach).await?;
    changes::uplink_switched(reach).await?;
    rest::measure(reach).await?;
    throughput::measure(reach).await
}

/// An internet of such uplinks with relays on it.
struct Lab {
    internet: Internet,
    relays: Vec<Relay>,
    // They end with the lab.
    hosts: Vec<Host>,
    routers: Vec<Router>,
}

impl Lab {
    async fn set_up(relays: usize, uplinks: Option<Quality>) -> Result<Self, LanError> {
        let mut internet = Internet::set_up().await?;
        if let Some(quality) = uplinks {
            internet.set_uplinks(quality);
        }
        let mut lab = Self {
            internet,
            relays: Vec::new(),
            hosts: Vec::new(),
            routers: Vec::new(),
        };
        for _ in 0..relays {
            let host = lab.internet.public_host().await?;
            lab.relays.push(Relay::start_at(&host).await);
            lab.hosts.push(host);
        }
        Ok(lab)
    }

    async fn host(&mut self, access: Access) -> Result<Host, LanError> {
        let (host, router) = self.internet.host(access).await?;
        self.routers.extend(router);
        Ok(host)
    }

    async fn node(&self, host: &Host) -> Node {
        Node::start_at(host, &self.relays.iter().collect::<Vec<_>>()).await
    }
}

/// Waits until every relay holds a place for the node.
async fn placed(node: &Node) {
    let placed = async {
        loop {
            let status = node.status().await;
            let relays = status["relays"].as_array().expect("a list");
            if relays.iter().all(|relay| relay["place"] == true) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within("places at relays", placed).await;
}

/// How long it takes until the node reaches the other like this, if it does.
async fn until_path(node: &Node, other: &Node, straight: fn(&Value) -> bool) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < STRAIGHT_BY {
        if node.peer(other).await.is_some_and(|peer| straight(&peer["path"])) {
            return Some(start.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
    None
}

fn is_straight(path: &Value) -> bool {
    path == "direct" || path == "lan"
}

/// From typing the invitation to the first message arriving. Returns the room, too.
async fn first_message(alice: &mut Client, bob: &mut Client) -> (String, Duration) {
    let start = Instant::now();
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]}))
        .await;
    while bob.invited().await != room {}
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let first = ["first".to_owned()];
    alice.send_text(&room, &first[0]).await;
    bob.texts_until(&room, &first).await;
    (room, start.elapsed())
}

/// From sending a text to its being there.
async fn delivery(from: &Client, to: &mut Client, room: &str, text: &str) -> Duration {
    let start = Instant::now();
    let text = [text.to_owned()];
    let ((), _) = futures::join!(
        async { drop(from.send_text(room, &text[0]).await) },
        to.texts_until(room, &text)
    );
    start.elapsed()
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
