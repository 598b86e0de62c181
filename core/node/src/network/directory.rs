//! What kith-net wants to know and keep about servers, on the node's database. It verifies nothing: key documents come
//! verified, and addresses are hints.

use std::sync::Arc;

use async_trait::async_trait;
use kith_identity::KeyDocument;
use kith_net::{Directory, DirectoryError, Multiaddr, PeerAddresses};
use kith_store::{KnownAddresses, Store, StoreError};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use tokio::sync::watch;

use crate::clock::World;

/// The setting that holds the servers of the DHT that were met: a JSON array of PeerIds, each with its addresses.
const DHT_SERVERS: &str = "dht_servers";

/// The setting that names those with whom something was said last, the latest first: a JSON array.
const SPOKEN: &str = "spoken_last";

/// Servers met at the start at the most.
const MAX_CONTACTS: u32 = 256;

/// The directory of a node.
pub(crate) struct StoreDirectory {
    pub(crate) store: Store,
    pub(crate) world: World,
    pub(crate) own_document: watch::Receiver<Arc<KeyDocument>>,
}

#[async_trait]
impl Directory for StoreDirectory {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        self.world.now()
    }

    async fn own_document(&self) -> Result<KeyDocument, DirectoryError> {
        Ok(KeyDocument::clone(&self.own_document.borrow()))
    }

    async fn document(&self, server: &ServerName) -> Result<Option<KeyDocument>, DirectoryError> {
        let server = server.to_owned();
        self.store
            .read(move |txn| txn.key_document(&server))
            .await
            .map_err(failed)
    }

    async fn keep_document(&self, document: KeyDocument) -> Result<(), DirectoryError> {
        let kept = self.store.write(move |txn| txn.keep_key_document(&document)).await;
        kept.map(drop).map_err(failed)
    }

    async fn addresses(&self, server: &ServerName) -> Result<Vec<PeerAddresses>, DirectoryError> {
        let server = server.to_owned();
        let known = self
            .store
            .read(move |txn| txn.peer_addresses(&server))
            .await
            .map_err(failed)?;
        Ok(known.into_iter().filter_map(parse).collect())
    }

    async fn keep_addresses(&self, server: &ServerName, addresses: PeerAddresses) -> Result<(), DirectoryError> {
        let (server, now) = (server.to_owned(), self.world.now());
        let known = to_known(&addresses);
        let kept = self
            .store
            .write(move |txn| txn.keep_peer_addresses(&server, &known, now))
            .await;
        kept.map_err(failed)
    }

    async fn dht_servers(&self) -> Result<Vec<PeerAddresses>, DirectoryError> {
        let kept = self.store.read(|txn| txn.setting(DHT_SERVERS)).await.map_err(failed)?;
        let known: Vec<(String, Vec<String>)> = match kept {
            Some(json) => serde_json::from_str(&json).map_err(|error| DirectoryError(Box::new(error)))?,
            None => Vec::new(),
        };
        let known = known
            .into_iter()
            .map(|(peer_id, addresses)| KnownAddresses { peer_id, addresses });
        Ok(known.filter_map(parse).collect())
    }

    async fn keep_dht_servers(&self, servers: Vec<PeerAddresses>) -> Result<(), DirectoryError> {
        let known = servers.iter().map(to_known);
        let known: Vec<_> = known.map(|known| (known.peer_id, known.addresses)).collect();
        let json = serde_json::to_string(&known).map_err(|error| DirectoryError(Box::new(error)))?;
        let kept = self.store.write(move |txn| txn.set_setting(DHT_SERVERS, &json)).await;
        kept.map_err(failed)
    }

    async fn contacts(&self) -> Result<Vec<OwnedServerName>, DirectoryError> {
        let read = self
            .store
            .read(|txn| Ok::<_, StoreError>((txn.contacts(MAX_CONTACTS)?, txn.setting(SPOKEN)?)));
        let (mut contacts, spoken) = read.await.map_err(failed)?;
        let own = self.own_document.borrow().server_name();
        contacts.retain(|server| *server != own);
        // What cannot be read is an order that is lost, no more.
        let spoken: Vec<OwnedServerName> = spoken
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default();
        let place = |server: &OwnedServerName| spoken.iter().position(|spoken| spoken == server);
        contacts.sort_by_key(|server| place(server).unwrap_or(spoken.len()));
        Ok(contacts)
    }

    async fn keep_spoken(&self, servers: Vec<OwnedServerName>) -> Result<(), DirectoryError> {
        let json = serde_json::to_string(&servers).map_err(|error| DirectoryError(Box::new(error)))?;
        let kept = self.store.write(move |txn| txn.set_setting(SPOKEN, &json)).await;
        kept.map_err(failed)
    }
}

/// Addresses as the database keeps them.
pub(crate) fn to_known(addresses: &PeerAddresses) -> KnownAddresses {
    KnownAddresses {
        peer_id: addresses.peer_id.to_string(),
        addresses: addresses.addresses.iter().map(Multiaddr::to_string).collect(),
    }
}

/// What an older version of libp2p wrote and this one cannot read is left out: it is only a hint.
fn parse(known: KnownAddresses) -> Option<PeerAddresses> {
    Some(PeerAddresses {
        peer_id: known.peer_id.parse().ok()?,
        addresses: known
            .addresses
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect(),
    })
}

fn failed(error: StoreError) -> DirectoryError {
    DirectoryError(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    #[tokio::test]
    async fn those_with_whom_something_was_said_last_come_first_among_the_contacts() {
        let cluster = Cluster::start(1).await;
        let context = &cluster[0].hs.context;
        let directory = StoreDirectory {
            store: context.store.clone(),
            world: context.world.clone(),
            own_document: context.key_document.clone(),
        };
        let names = ["a", "b", "c", "d"].map(|name| OwnedServerName::try_from(name).unwrap());
        let [a, b, c, d] = &names;
        let (contacts, now) = (names.clone(), context.world.now());
        let added = context.store.write(move |txn| {
            for contact in &contacts {
                txn.add_contact(contact, now)?;
            }
            Ok::<_, StoreError>(())
        });
        added.await.unwrap();
        let check = async |expected: [&OwnedServerName; 4]| {
            let contacts = directory.contacts().await.unwrap();
            assert_eq!(contacts.iter().collect::<Vec<_>>(), expected);
        };
        check([a, b, c, d]).await;
        let stranger = OwnedServerName::try_from("stranger").unwrap();
        directory
            .keep_spoken(vec![c.clone(), stranger, b.clone()])
            .await
            .unwrap();
        check([c, b, a, d]).await;
        directory.keep_spoken(vec![d.clone()]).await.unwrap();
        check([d, a, b, c]).await;
    }
}
