//! What every service stands on: the store, the world's clock, the node's own name and keys, and the way to other nodes.

use std::sync::Arc;

use kith_identity::{KeyDocument, NodeKey};
use kith_store::Store;
use ruma::{OwnedServerName, ServerName, UserId};
use tokio::sync::watch;

use crate::{clock::World, config::Config, network::Network};

/// Shared ground of the services. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The node's settings.
    pub config: Arc<Config>,
    /// The database.
    pub store: Store,
    /// Time and randomness.
    pub world: World,
    /// The way to other nodes.
    pub network: Arc<dyn Network>,
    /// This node's server name.
    pub server_name: OwnedServerName,
    /// This node's key: signs events.
    pub node_key: Arc<NodeKey>,
    /// This identity's newest key document, which lists `node_key`. The embedder replaces it.
    pub key_document: watch::Receiver<Arc<KeyDocument>>,
}

impl Context {
    /// Whether a user's home is this node.
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.server_name
    }

    /// The key document to show now.
    pub fn key_document(&self) -> Arc<KeyDocument> {
        Arc::clone(&self.key_document.borrow())
    }

    /// Whether a server name is this node's.
    pub fn is_self(&self, server: &ServerName) -> bool {
        server == self.server_name
    }
}
