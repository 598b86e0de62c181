//! A Kith node for Kotlin, Swift and Python: start, status, users, peers, stop. No decision is made here, and no panic of
//! the node reaches the app: uniffi turns what is left of them into errors.
//!
//! Calls block until they are done and may come from any thread; the node's own work runs on threads that it owns.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use kith_node::{
    Node as CoreNode, StartError,
    clock::World,
    config::Config,
    contacts::{AddPeerError, Introduction, IntroductionError},
    status::StatusError,
};
use tokio::runtime::{Builder, Runtime};

uniffi::setup_scaffolding!();

/// Threads for the node's own work. A phone has other things to do.
const WORKERS: usize = 2;

/// Why a call failed. Nothing was changed.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
pub enum KithError {
    /// An argument does not parse: an address or a ticket.
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
    /// Server names of the nodes connected now.
    pub peers: Vec<String>,
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
        let mut core = Config::new(PathBuf::from(&config.data));
        core.mdns = config.mdns;
        for text in &config.listen {
            let address = text.parse();
            core.listen
                .push(address.map_err(|_| KithError::Invalid(format!("{text} is not a multiaddr")))?);
        }
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
            peers: status
                .peers
                .into_iter()
                .map(|peer| peer.server_name.to_string())
                .collect(),
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

/// An error with its causes, in one line: the languages beyond have one string for it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

impl From<StartError> for KithError {
    fn from(error: StartError) -> Self {
        Self::Start(in_full(&error))
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
