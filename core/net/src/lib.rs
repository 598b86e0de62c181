//! Reaches other nodes by server name: libp2p connections, proved with a hello, carrying HTTP/2 requests both ways.
//! Moves bytes between peers and knows no room, no event and no database.
//!
//! [`Net::start`] gives a cheap handle. What comes in goes to an [`InboundService`]; what is known about other servers
//! comes from, and is kept by, a [`Directory`].

mod address;
mod book;
mod budget;
mod client;
mod coding;
mod config;
mod dht;
mod dial_back;
mod directory;
mod error;
mod gate;
mod gathering;
mod hello;
#[cfg(test)]
mod internet;
mod net;
mod owner;
mod peers;
pub mod probe;
mod reachability;
pub mod relay;
mod server;
mod session;
pub mod settings;
mod streams;
mod swarm;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topics;

pub use address::{circuit_address, relay_peer, split_peer_id};
pub use config::{Budget, ConnectionLimits, NetConfig, RequestLimits, Timing};
pub use dht::{Clock, DhtConfig, DhtStatus, PublishError, ServerConfig as DhtServerConfig, ShelfLimits};
pub use directory::{Directory, DirectoryError, PeerAddresses};
pub use error::{Break, RequestError, StartError};
pub use libp2p::{Multiaddr, PeerId};
pub use net::{AddressesSeen, Net, peer_id_of};
pub use peers::{ConnectionInfo, PeerEvent, PeerInfo};
pub use server::{Body, BoxError, InboundService};
pub use topics::{TellError, TopicMessage};
