//! What an embedder may set, with the defaults. Nothing here reads a file or an environment variable.

use std::path::PathBuf;

use kith_net::{ConnectionLimits, DhtConfig, Multiaddr};

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
    /// What this node does in the DHT; [`DhtConfig::phone`] for a phone. The relays are servers to begin with too.
    pub dht: DhtConfig,
    /// How much other nodes may cost; [`ConnectionLimits::phone`] for a phone.
    pub limits: ConnectionLimits,
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
            limits: ConnectionLimits::desktop(),
            open_registration: false,
            max_upload_bytes: 100 * 1024 * 1024,
            max_fetched_media_bytes: 1024 * 1024 * 1024,
            max_body_bytes: 1024 * 1024,
        }
    }
}
