//! What the network must know about other servers, and wants kept: key documents and addresses. The node implements it
//! on its database; nothing is stored here.

use async_trait::async_trait;
use kith_identity::KeyDocument;
use libp2p::{Multiaddr, PeerId};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};

/// The directory could not be read or written. Nobody is to blame but this node, so no peer is treated as a liar.
#[derive(Debug, thiserror::Error)]
#[error("the directory of servers failed")]
pub struct DirectoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// How to reach one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddresses {
    /// Its PeerId. Peers renew theirs weekly, so the addresses may still be right when it is not.
    pub peer_id: PeerId,
    /// Where it was reached or said that it listens, without `/p2p` at the end.
    pub addresses: Vec<Multiaddr>,
}

impl PeerAddresses {
    /// Puts addresses together by whose they are, in the order in which peers come first.
    pub(crate) fn grouped(addresses: impl IntoIterator<Item = (PeerId, Multiaddr)>) -> Vec<Self> {
        let mut peers: Vec<Self> = Vec::new();
        for (peer_id, address) in addresses {
            match peers.iter_mut().find(|known| known.peer_id == peer_id) {
                Some(known) => known.addresses.push(address),
                None => peers.push(Self {
                    peer_id,
                    addresses: vec![address],
                }),
            }
        }
        peers
    }
}

/// Looks up and keeps what outlives a connection.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The time, for hellos' expiry.
    fn now(&self) -> MilliSecondsSinceUnixEpoch;

    /// Our own key document, as new as there is.
    async fn own_document(&self) -> Result<KeyDocument, DirectoryError>;

    /// The newest key document of `server` that we hold.
    async fn document(&self, server: &ServerName) -> Result<Option<KeyDocument>, DirectoryError>;

    /// Keeps a verified document, unless a newer one is held. Returns once it is kept.
    async fn keep_document(&self, document: KeyDocument) -> Result<(), DirectoryError>;

    /// Remembered addresses of `server`, the most useful first.
    async fn addresses(&self, server: &ServerName) -> Result<Vec<PeerAddresses>, DirectoryError>;

    /// Remembers how a node of `server` is reached now. Replaces what was remembered for that PeerId.
    async fn keep_addresses(&self, server: &ServerName, addresses: PeerAddresses) -> Result<(), DirectoryError>;

    /// Servers of the DHT that were met, the most useful first.
    async fn dht_servers(&self) -> Result<Vec<PeerAddresses>, DirectoryError>;

    /// Remembers servers of the DHT in place of those that were remembered.
    async fn keep_dht_servers(&self, servers: Vec<PeerAddresses>) -> Result<(), DirectoryError>;

    /// The servers to meet at the start, the most important first, so that each notices that we are back.
    async fn contacts(&self) -> Result<Vec<OwnedServerName>, DirectoryError>;

    /// Remembers with whom something was said last, the latest first, in place of what was remembered: they come first among the
    /// contacts from now on.
    async fn keep_spoken(&self, servers: Vec<OwnedServerName>) -> Result<(), DirectoryError>;
}
