//! A Kith node for Kotlin, Swift and Python: start, status, users, peers, relays, rest, stop. No decision is made here, and no panic of
//! the node reaches the app: uniffi turns what is left of them into errors.
//!
//! Calls block until they are done and may come from any thread; the node's own work runs on threads that it owns.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use kith_node::{
    Multiaddr, Node as CoreNode, StartError,
    clock::World,
    config::{self, Config},
    contacts::{AddPeerError, Introduction, IntroductionError},
    network::PeerPath,
    relays::RelayError,
    status::{self, StatusError},
};
use tokio::runtime::{Builder, Runtime};

uniffi::setup_scaffolding!();

/// Threads for the node's own work. A phone has other things to do.
const WORKERS: usize = 2;

/// Why a call failed. Nothing was changed.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
pub enum KithError {
    /// An argument does not parse: an address, a relay's address or a ticket.
    #[error("{0}")]
    Invalid(String),
    /// The node cannot start: the data folder is in use or unusable, the database damaged or newer, a port taken.
    #[error("{0}")]
    Start(String),
    /// The node refused, for instance a user name that is taken.
    #[error("{0}")]
    Refused(String),
    /// The node was stopped.
    #[error("the node is stopped")]
    Stopped,
}

/// How to start a node.
#[derive(Debug, Clone, uniffi::Record)]
pub struct NodeConfig {
    /// The data folder, for this node alone; made if absent.
    pub data: String,
    /// Where to serve the Matrix client-server API, as `ADDRESS:PORT`. Port 0 takes a free port; see [`NodeStatus::http`].
    pub http: String,
    /// libp2p listen addresses, for instance `/ip4/0.0.0.0/udp/0/quic-v1`. Empty: all interfaces, QUIC and TCP.
    pub listen: Vec<String>,
    /// Whether to find and be found by nodes on the LAN.
    pub mdns: bool,
    /// What kind of machine this is.
    #[uniffi(default = None)]
    pub profile: Option<Profile>,
    /// Relays to use besides those that were added with [`Node::add_relay`]; each ends in `/p2p/RELAY`.
    #[uniffi(default = [])]
    pub relays: Vec<String>,
}

/// What kind of machine a node runs on.
#[derive(Debug, Clone, Copy, uniffi::Enum)]
pub enum Profile {
    /// Few connections and long intervals: what is spared is battery.
    Phone,
    /// Many connections, and a life sign on each twice a minute. What a node is that was told nothing.
    Desktop,
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, uniffi::Enum)]
pub enum Path {
    /// On the local network, or this machine.
    Lan,
    /// Straight through the internet.
    Direct,
    /// Through a relay.
    Relayed,
}

/// A node that is connected now.
#[derive(Debug, Clone, uniffi::Record)]
pub struct Peer {
    /// Its server name.
    pub server_name: String,
    /// How it is reached: the best of its connections.
    pub path: Path,
    /// The addresses in use, the best first.
    pub addresses: Vec<String>,
}

/// A relay that the node uses.
#[derive(Debug, Clone, uniffi::Record)]
pub struct Relay {
    /// Its address; ends in `/p2p/RELAY`.
    pub address: String,
    /// Whether [`NodeConfig::relays`] names it; then [`Node::remove_relay`] does not remove it.
    pub configured: bool,
    /// Whether it holds a place for this node now, so that others get here through it.
    pub place: bool,
}

/// What a node says of itself.
#[derive(Debug, Clone, uniffi::Record)]
pub struct NodeStatus {
    /// The Matrix server name: 52 characters.
    pub server_name: String,
    /// The base URL for Matrix clients.
    pub http: String,
    /// What to show another node, so that it finds this one: `kith:…`.
    pub ticket: String,
    /// The libp2p addresses listened on.
    pub listen: Vec<String>,
    /// The nodes connected now.
    pub peers: Vec<Peer>,
    /// The relays in use, those of the configuration first.
    pub relays: Vec<Relay>,
    /// The users of this node, as full Matrix ids.
    pub users: Vec<String>,
    /// Rooms that a user of this node is in.
    pub room_count: u64,
}

/// A running node. Stop it with [`Node::stop`]; one that is merely forgotten is stopped too, after finishing its commits.
#[derive(uniffi::Object)]
pub struct Node {
    runtime: Runtime,
    node: CoreNode,
    http: String,
}

#[uniffi::export]
impl Node {
    /// Starts a node and returns once it is on the network and serves clients.
    #[uniffi::constructor]
    pub fn new(config: NodeConfig) -> Result<Arc<Self>, KithError> {
        let address: SocketAddr = config
            .http
            .parse()
            .map_err(|_| KithError::Invalid(format!("{} is not an ADDRESS:PORT", config.http)))?;
        let profile = config.profile.unwrap_or(Profile::Desktop);
        let mut core = Config::new(PathBuf::from(&config.data)).with_profile(profile.into());
        core.mdns = config.mdns;
        core.listen = multiaddrs(&config.listen)?;
        core.relays = multiaddrs(&config.relays)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("kith")
            .enable_all()
            .build()
            .map_err(|error| KithError::Start(format!("cannot start threads: {error}")))?;
        let (node, bound) = runtime.block_on(start(core, address))?;
        Ok(Arc::new(Self {
            runtime,
            node,
            http: format!("http://{bound}"),
        }))
    }

    /// What the node says of itself now.
    pub fn status(&self) -> Result<NodeStatus, KithError> {
        let status = self.runtime.block_on(self.node.status())?;
        Ok(NodeStatus {
            server_name: status.server_name.to_string(),
            http: self.http.clone(),
            ticket: status.ticket,
            listen: status.listen,
            peers: status.peers.into_iter().map(Peer::from).collect(),
            relays: status.relays.into_iter().map(Relay::from).collect(),
            users: status.users.into_iter().map(|user| user.to_string()).collect(),
            room_count: status.room_count.try_into().unwrap_or(u64::MAX),
        })
    }

    /// Adds a user with a password and returns the full Matrix id.
    pub fn add_user(&self, localpart: String, password: String) -> Result<String, KithError> {
        let accounts = &self.node.homeserver().accounts;
        let user = self.runtime.block_on(accounts.create_user(&localpart, &password))?;
        Ok(user.to_string())
    }

    /// Adds other nodes by a ticket (`kith:…`) or a `matrix:` URI, and returns their server names. They are dialled in the
    /// background.
    pub fn add_peer(&self, introduction: String) -> Result<Vec<String>, KithError> {
        let introduction: Introduction = introduction
            .parse()
            .map_err(|error: IntroductionError| KithError::Invalid(in_full(&error)))?;
        let servers = self.runtime.block_on(self.node.add_peer(&introduction))?;
        Ok(servers.into_iter().map(|server| server.to_string()).collect())
    }

    /// Uses a relay from now on, also after a restart. Its address ends in `/p2p/RELAY`; one that is known already stays.
    pub fn add_relay(&self, address: String) -> Result<(), KithError> {
        let address = multiaddr(&address)?;
        Ok(self.runtime.block_on(self.node.add_relay(&address))?)
    }

    /// Uses a relay no longer that was added with [`Node::add_relay`].
    pub fn remove_relay(&self, address: String) -> Result<(), KithError> {
        let address = multiaddr(&address)?;
        Ok(self.runtime.block_on(self.node.remove_relay(&address))?)
    }

    /// Rests, as an app does that goes to the background; returns within a second. If `wakeable`, and a relay holds a place
    /// for this node, one connection to that relay stays, through which others get here; else nothing stays. Clients on
    /// this device are served as before, and what they send waits.
    pub fn suspend(&self, wakeable: bool) -> Result<(), KithError> {
        Ok(self.runtime.block_on(self.node.suspend(wakeable))?)
    }

    /// Ends [`Node::suspend`]: the network is back when this returns, and contacts and relays are being dialled.
    pub fn resume(&self) -> Result<(), KithError> {
        Ok(self.runtime.block_on(self.node.resume())?)
    }

    /// Ends the node: answers what is under way, leaves the network, finishes every commit. Calls after it fail.
    pub fn stop(&self) {
        self.runtime.block_on(self.node.shutdown());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn start(config: Config, address: SocketAddr) -> Result<(CoreNode, SocketAddr), KithError> {
    let node = CoreNode::open(config, World::system()).await?;
    let served = async {
        node.go_online().await?;
        node.serve_http(address, Default::default()).await
    };
    match served.await {
        Ok(bound) => Ok((node, bound)),
        Err(error) => {
            node.shutdown().await;
            Err(error.into())
        }
    }
}

fn multiaddr(text: &str) -> Result<Multiaddr, KithError> {
    text.parse()
        .map_err(|_| KithError::Invalid(format!("{text} is not a multiaddr")))
}

fn multiaddrs(texts: &[String]) -> Result<Vec<Multiaddr>, KithError> {
    texts.iter().map(|text| multiaddr(text)).collect()
}

/// An error with its causes, in one line: the languages beyond have one string for it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

impl From<Profile> for config::Profile {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Phone => Self::Phone,
            Profile::Desktop => Self::Desktop,
        }
    }
}

impl From<status::Peer> for Peer {
    fn from(peer: status::Peer) -> Self {
        Self {
            server_name: peer.server_name.to_string(),
            path: match peer.path {
                PeerPath::Lan => Path::Lan,
                PeerPath::Direct => Path::Direct,
                PeerPath::Relayed => Path::Relayed,
            },
            addresses: peer.addresses,
        }
    }
}

impl From<kith_node::relays::Relay> for Relay {
    fn from(relay: kith_node::relays::Relay) -> Self {
        Self {
            address: relay.address,
            configured: relay.configured,
            place: relay.place,
        }
    }
}

impl From<StartError> for KithError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::ShutDown => Self::Stopped,
            other => Self::Start(in_full(&other)),
        }
    }
}

impl From<RelayError> for KithError {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Address(_) => Self::Invalid(in_full(&error)),
            other => Self::Refused(in_full(&other)),
        }
    }
}

impl From<StatusError> for KithError {
    fn from(error: StatusError) -> Self {
        Self::Refused(in_full(&error))
    }
}

impl From<AddPeerError> for KithError {
    fn from(error: AddPeerError) -> Self {
        Self::Refused(in_full(&error))
    }
}

impl From<kith_node::Error> for KithError {
    fn from(error: kith_node::Error) -> Self {
        match error {
            kith_node::Error::Store(kith_node::store::StoreError::Closed) => Self::Stopped,
            other => Self::Refused(in_full(&other)),
        }
    }
}
