//! Nodes on the hosts of an internet, and how they say they reach each other. Knows no room.

use serde_json::Value;

use crate::{Host, Node, NodeOptions, Relay, within};

impl Node {
    /// Starts a node that knows nothing but relays, each by its first address.
    pub async fn start_at(host: &Host, relays: &[&Relay]) -> Self {
        Self::start(Self::options_at(host, relays)).await
    }

    /// What [`Node::start_at`] starts a node with.
    pub fn options_at(host: &Host, relays: &[&Relay]) -> NodeOptions {
        let relays = relays.iter().map(|relay| relay.addresses[0].clone());
        NodeOptions {
            listen: vec!["/ip4/0.0.0.0/udp/0/quic-v1".to_owned(), "/ip4/0.0.0.0/tcp/0".to_owned()],
            arguments: relays.flat_map(|relay| ["--relay".to_owned(), relay]).collect(),
            through: host.on(),
            ..NodeOptions::default()
        }
    }

    /// What `kith status --json` says.
    pub async fn status(&self) -> Value {
        let (done, status, error) = self.kith(&["status", "--json"], "").await;
        assert!(done.success(), "{error}");
        serde_json::from_str(&status).expect("JSON")
    }

    /// What this node says of another among its peers: `{"server_name": …, "path": "direct", "addresses": […]}`.
    pub async fn peer(&self, other: &Self) -> Option<Value> {
        let status = self.status().await;
        let mut peers = status["peers"].as_array().expect("a list").iter();
        let peer = peers.find(|peer| peer["server_name"] == other.ready.server_name.as_str());
        peer.cloned()
    }

    /// Waits until this node reaches another in this way: `lan`, `direct` or `relayed`.
    pub async fn reaches(&self, other: &Self, path: &str) {
        let reached = async { while self.peer(other).await.is_none_or(|peer| peer["path"] != path) {} };
        within(&format!("a path that is {path}"), reached).await;
    }

    /// Waits until this node has noticed that another is gone.
    pub async fn loses(&self, other: &Self) {
        let lost = async { while self.peer(other).await.is_some() {} };
        within("the loss of a peer", lost).await;
    }

    /// Has this node know another by its ticket.
    pub async fn know(&self, other: &Self) {
        let (done, _, error) = self.kith(&["peer", "add", &other.ready.ticket], "").await;
        assert!(done.success(), "{error}");
    }
}
