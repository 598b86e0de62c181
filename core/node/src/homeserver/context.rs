//! What every service stands on: the store, the world's clock, the node's own name and the way to other nodes.

use std::sync::Arc;

use kith_store::Store;
use ruma::{OwnedServerName, ServerName, UserId};

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
}

impl Context {
    /// Whether a user's home is this node.
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.server_name
    }

    /// Whether a server name is this node's.
    pub fn is_self(&self, server: &ServerName) -> bool {
        server == self.server_name
    }
}
