//! What an embedder may set, with the defaults. Nothing here reads a file or an environment variable.

use std::path::PathBuf;

use kith_net::{ConnectionLimits, DhtConfig, Multiaddr, Timing};
use serde::Deserialize;

/// What kind of machine a node runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Few connections and long intervals: what is spared is battery.
    Phone,
    /// Many connections, and a life sign on each twice a minute.
    #[default]
    Desktop,
}

/// Settings of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder: database, media and, unless the embedder keeps them elsewhere, keys.
    pub data: PathBuf,
    /// Where other nodes reach this one. Empty: every interface, QUIC and TCP, on a port that is chosen at the first start
    /// and kept, so that addresses in tickets stay true.
    pub listen: Vec<Multiaddr>,
    /// Relays to ask for a place, each ending in `/p2p/RELAY`.
    pub relays: Vec<Multiaddr>,
    /// Addresses under which others reach this node though no interface has them.
    pub external: Vec<Multiaddr>,
    /// Whether to look for nodes on the local network, and be found there.
    pub mdns: bool,
    /// Whether to ask the local router for a way in (UPnP).
    pub upnp: bool,
    /// What this node does in the DHT. The relays are servers to begin with too.
    pub dht: DhtConfig,
    /// How much other nodes may cost.
    pub limits: ConnectionLimits,
    /// How long things may take, and how often connections give a sign of life.
    pub timing: Timing,
    /// From so many other servers in a room on, its events are told a few of them, who pass them on, instead of each by itself.
    pub gossip_from: usize,
    /// Whether `POST /register` works without a registration token. For tests.
    pub open_registration: bool,
    /// The largest upload accepted, in bytes.
    pub max_upload_bytes: u64,
    /// How many bytes of other servers' media are kept; what was fetched longest ago goes first.
    pub max_fetched_media_bytes: u64,
    /// The largest JSON request body accepted from a client, in bytes.
    pub max_body_bytes: usize,
}

impl Config {
    /// The defaults for a data folder.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            listen: Vec::new(),
            relays: Vec::new(),
            external: Vec::new(),
            mdns: true,
            dht: DhtConfig::desktop(),
            upnp: true,
            limits: ConnectionLimits::desktop(),
            timing: Timing::default(),
            gossip_from: 4,
            open_registration: false,
            max_upload_bytes: 100 * 1024 * 1024,
            max_fetched_media_bytes: 1024 * 1024 * 1024,
            max_body_bytes: 1024 * 1024,
        }
    }

    /// The same with the limits and intervals of a profile.
    pub fn with_profile(self, profile: Profile) -> Self {
        let (limits, timing, dht) = match profile {
            Profile::Phone => (ConnectionLimits::phone(), Timing::phone(), DhtConfig::phone()),
            Profile::Desktop => (ConnectionLimits::desktop(), Timing::default(), DhtConfig::desktop()),
        };
        let servers = self.dht.servers;
        Self {
            limits,
            timing,
            dht: DhtConfig { servers, ..dht },
            ..self
        }
    }
}
