//! What a [`crate::Net`] is started with. Plain data: nothing here reads a file or the environment.

use std::{sync::Arc, time::Duration};

use kith_identity::{NodeKey, TransportKey};
use libp2p::Multiaddr;
use ruma::OwnedServerName;

use crate::{DhtConfig, Directory, InboundService};

/// Everything that [`crate::Net::start`] needs.
pub struct NetConfig {
    /// Our own server name.
    pub server_name: OwnedServerName,
    /// The secret behind our PeerId.
    pub transport_key: TransportKey,
    /// Signs our hellos.
    pub node_key: Arc<NodeKey>,
    /// Where key documents and addresses are looked up and kept.
    pub directory: Arc<dyn Directory>,
    /// Answers what verified peers ask.
    pub service: InboundService,
    /// Addresses to listen on. One that ends in `/p2p/RELAY/p2p-circuit` reserves a place at that relay.
    pub listen: Vec<Multiaddr>,
    /// Relays to reserve a place at, each ending in `/p2p/RELAY`; several addresses of one relay are one relay. Two places
    /// are held, the others step in.
    pub relays: Vec<Multiaddr>,
    /// Addresses under which others reach us though no interface has them (a forwarded port, a public name).
    pub external: Vec<Multiaddr>,
    /// Whether to look for other nodes on the local network, and be found there.
    pub mdns: bool,
    /// What this node does in the DHT.
    pub dht: DhtConfig,
    /// Whether to ask the local router for a way in (UPnP).
    pub upnp: bool,
    /// How much other peers may cost.
    pub limits: ConnectionLimits,
    /// How long things may take.
    pub timing: Timing,
}

/// How much other peers may cost.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections at once. A quarter of them is kept for those that we dial.
    pub connections: u32,
    /// Connections that are not up yet, each way.
    pub pending: u32,
    /// Bytes of memory of this process beyond which no connection is made or taken.
    pub memory: usize,
    /// Requests in flight with one server, each way.
    pub requests_per_peer: usize,
    /// Requests in flight from a peer without a valid hello. They are all refused.
    pub requests_per_stranger: usize,
    /// Connections of strangers from one host at once. A stranger is known, or gone, within [`Timing::hello`].
    pub strangers_per_host: usize,
    /// Requests that wait for their turn or for a connection, per server; more are refused at once.
    pub waiting_per_peer: usize,
    /// Bytes of a request that comes in.
    pub request_body: usize,
    /// Peers found on the local network that are dialled to learn who they are.
    pub lan_peers: usize,
    /// Which connections stay while nothing is said on them.
    pub budget: Budget,
}

impl ConnectionLimits {
    /// For a phone.
    pub fn phone() -> Self {
        Self {
            connections: 64,
            pending: 32,
            memory: 256 << 20,
            lan_peers: 16,
            budget: Budget::phone(),
            ..Self::desktop()
        }
    }

    /// For a desktop; the default.
    pub fn desktop() -> Self {
        Self {
            connections: 512,
            pending: 128,
            memory: 2 << 30,
            requests_per_peer: 32,
            requests_per_stranger: 4,
            strangers_per_host: 16,
            waiting_per_peer: 1024,
            request_body: 16 << 20,
            lan_peers: 64,
            budget: Budget::desktop(),
        }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::desktop()
    }
}

/// Which connections to servers stay while nothing is said on them. The others are let go: both ends know that the other one is
/// still there, neither dials again for the sake of being connected, and whoever has something to say does.
///
/// A connection costs about as much to make as to keep for three quarters of an hour (some 8 KB), so one on which something was said is
/// worth keeping for a part of that.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Servers that stay connected: contacts and others with whom something was said, whoever spoke last first. Members of topics, as far
    /// as they are needed, come on top.
    pub idle: usize,
    /// How long even these stay while nothing is said; none: for ever.
    pub keep: Option<Duration>,
    /// How long another one stays after something was said ...
    pub linger: Duration,
    /// ... and after it fell silent, if nothing was: time for heads to be compared and for what waits to be delivered.
    pub visit: Duration,
    /// Servers that may be connected besides the idle ones for contacts to be met, when all of them are.
    pub visits: usize,
    /// Contacts that are met after a start, or after the network changed.
    pub contacts: usize,
    /// Members of a topic that are to be connected. As many again may come by themselves and stay.
    pub company: usize,
    /// How often a contact that is lost or not reached is dialled again, with pauses that double. Then it is for the contact, for something to
    /// say, or for a change of network to reconnect.
    pub redials: u32,
}

impl Budget {
    /// For a phone. After half an hour of silence its places at relays are all that it keeps, and what topics need.
    pub fn phone() -> Self {
        Self {
            idle: 2,
            keep: Some(Duration::from_secs(30 * 60)),
            linger: Duration::from_secs(10 * 60),
            visit: Duration::from_secs(10),
            // Relays open thirty circuits a minute for one node.
            visits: 4,
            contacts: 64,
            company: 2,
            redials: 6,
        }
    }

    /// For a desktop.
    pub fn desktop() -> Self {
        Self {
            idle: 64,
            keep: None,
            linger: Duration::from_secs(30 * 60),
            visit: Duration::from_secs(60),
            visits: 32,
            contacts: 256,
            company: 4,
            redials: 12,
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone)]
pub struct Timing {
    /// An idle connection sends one packet this often. The default keeps most NATs' mappings; 55 s halves the cost.
    pub keep_alive: Duration,
    /// A connection on which nothing arrives for this long is closed. More than twice `keep_alive`.
    pub idle_timeout: Duration,
    /// While an answer is awaited, a ping is sent after this long without a byte ...
    pub active_ping: Duration,
    /// ... and the connection is closed when the ping is not answered within this.
    pub active_ping_timeout: Duration,
    /// The transport's handshake.
    pub handshake: Duration,
    /// A request shares the attempt to reach its server if it comes within this of its beginning. One that comes later has another
    /// attempt if that one fails: the server may have come up meanwhile.
    pub shared_attempt: Duration,
    /// From the connection being up until both hellos are accepted.
    pub hello: Duration,
    /// Until the service must have answered a request that came in.
    pub answer: Duration,
    /// A peer that neither takes nor gives a byte of a body for this long is cut off.
    pub stall: Duration,
    /// The first pause before a lost peer is dialled again, or a lost relay asked again; doubled each time, up to an hour.
    pub redial: Duration,
    /// A connection that nothing needs is closed after this.
    pub unused: Duration,
}

impl Timing {
    /// For a relay. It leaves it to the nodes to keep their connections alive, as often as each has to: a life sign of its own would come
    /// before a phone's.
    pub fn relay() -> Self {
        Self {
            keep_alive: Duration::from_secs(70),
            idle_timeout: Duration::from_secs(150),
            ..Self::default()
        }
    }

    /// For a phone: a life sign every 55 seconds instead of 25. Most NATs keep a mapping for a minute and more.
    pub fn phone() -> Self {
        Self {
            keep_alive: Duration::from_secs(55),
            idle_timeout: Duration::from_secs(120),
            ..Self::default()
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            active_ping: Duration::from_secs(2),
            active_ping_timeout: Duration::from_secs(4),
            handshake: Duration::from_secs(5),
            shared_attempt: Duration::from_secs(1),
            hello: Duration::from_secs(10),
            answer: Duration::from_secs(180),
            stall: Duration::from_secs(30),
            redial: Duration::from_secs(1),
            unused: Duration::from_secs(30),
        }
    }
}

/// What one request may cost.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Until the whole answer is here, dialling included.
    pub deadline: Duration,
    /// Bytes of the answer's body.
    pub max_answer: usize,
    /// Whether the answer may be large: then it takes a stream of its own and blocks no other. Large requests do so
    /// anyway.
    pub bulk: bool,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            max_answer: 16 << 20,
            bulk: false,
        }
    }
}
