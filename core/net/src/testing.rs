//! A directory in memory, for tests and measurements: they put things there, and look into it afterwards.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use kith_identity::KeyDocument;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};

use crate::{Clock, Directory, DirectoryError, PeerAddresses, peers::lock};

/// Keeps everything, with nothing in it at first.
pub struct MemoryDirectory {
    /// This server's document. Where it is none, asking for it fails.
    pub own: Mutex<Option<KeyDocument>>,
    /// The newest documents of others.
    pub documents: Mutex<HashMap<OwnedServerName, KeyDocument>>,
    /// The last addresses of each PeerId.
    pub addresses: Mutex<HashMap<OwnedServerName, Vec<PeerAddresses>>>,
    /// Whom to dial of oneself.
    pub contacts: Mutex<Vec<OwnedServerName>>,
    /// With whom something was said, as kept last.
    pub spoken: Mutex<Vec<OwnedServerName>>,
    /// Servers of the DHT, as kept last.
    pub dht_servers: Mutex<Vec<PeerAddresses>>,
    clock: Clock,
}

impl MemoryDirectory {
    /// The directory of the server with this document, and with this clock.
    pub fn new(own: Option<KeyDocument>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            own: Mutex::new(own),
            documents: Mutex::default(),
            addresses: Mutex::default(),
            contacts: Mutex::default(),
            spoken: Mutex::default(),
            dht_servers: Mutex::default(),
            clock,
        })
    }
}

#[async_trait]
impl Directory for MemoryDirectory {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        (self.clock)()
    }

    async fn own_document(&self) -> Result<KeyDocument, DirectoryError> {
        let own = lock(&self.own).clone();
        own.ok_or_else(|| DirectoryError("no document of its own".into()))
    }

    async fn document(&self, server: &ServerName) -> Result<Option<KeyDocument>, DirectoryError> {
        Ok(lock(&self.documents).get(server).cloned())
    }

    async fn keep_document(&self, document: KeyDocument) -> Result<(), DirectoryError> {
        let mut documents = lock(&self.documents);
        let held = documents.get(&document.server_name());
        if held.is_none_or(|held| document.supersedes(held)) {
            documents.insert(document.server_name(), document);
        }
        Ok(())
    }

    async fn addresses(&self, server: &ServerName) -> Result<Vec<PeerAddresses>, DirectoryError> {
        Ok(lock(&self.addresses).get(server).cloned().unwrap_or_default())
    }

    async fn keep_addresses(&self, server: &ServerName, addresses: PeerAddresses) -> Result<(), DirectoryError> {
        let mut all = lock(&self.addresses);
        let known = all.entry(server.to_owned()).or_default();
        known.retain(|known| known.peer_id != addresses.peer_id);
        known.push(addresses);
        Ok(())
    }

    async fn dht_servers(&self) -> Result<Vec<PeerAddresses>, DirectoryError> {
        Ok(lock(&self.dht_servers).clone())
    }

    async fn keep_dht_servers(&self, servers: Vec<PeerAddresses>) -> Result<(), DirectoryError> {
        *lock(&self.dht_servers) = servers;
        Ok(())
    }

    async fn contacts(&self) -> Result<Vec<OwnedServerName>, DirectoryError> {
        Ok(lock(&self.contacts).clone())
    }

    async fn keep_spoken(&self, servers: Vec<OwnedServerName>) -> Result<(), DirectoryError> {
        *lock(&self.spoken) = servers;
        Ok(())
    }
}
