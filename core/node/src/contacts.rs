//! How nodes come to know each other by hand: this node's ticket, and the tickets of others. Nothing here proves who
//! anyone is; connections do.

use kith_identity::Ticket;
use kith_net::{Multiaddr, Net, PeerAddresses, PeerId, peer_id_of};
use kith_store::StoreError;
use ruma::OwnedServerName;

use crate::{Node, network::directory::to_known, node::StartError, status::StatusError};

/// The setting that holds the addresses of the last ticket made while online, as a JSON array.
const ADDRESSES: &str = "ticket_addresses";

/// What the address of a place at a relay ends in.
const CIRCUIT: &str = "/p2p-circuit";

/// Why a ticket's node was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddPeerError {
    /// The ticket is this node's own.
    #[error("this ticket is this node's own")]
    Own,
    /// The PeerId or an address in the ticket means nothing to libp2p.
    #[error("the ticket's addresses are not valid")]
    Addresses,
    /// The database failed.
    #[error("the contact cannot be kept")]
    Store(#[from] StoreError),
}

impl Node {
    /// The ticket with which others find this node now. Offline, it names the addresses of the last time online.
    pub async fn ticket(&self) -> Result<Ticket, StatusError> {
        let mut ticket = Ticket::new(self.identity(), self.peer_id()?.to_bytes());
        let addresses = match self.inner.network.net() {
            Some(net) => texts(&net),
            None => self.remembered_addresses().await?,
        };
        for address in addresses {
            let (list, address) = match address.strip_suffix(CIRCUIT) {
                Some(relay) => (&mut ticket.relays, relay),
                None => (&mut ticket.addrs, address.as_str()),
            };
            list.extend(address.parse().map(|address: Multiaddr| address.to_vec()));
        }
        // Of a node with several people on it, the ticket cannot say whose it is.
        if let [only] = self.users().await?.as_slice() {
            ticket.user = Some(only.localpart().to_owned());
        }
        Ok(ticket)
    }

    /// Adds another node by its ticket: it is kept as a contact, and dialled if this node is online. Returns at once;
    /// whether the other is reached shows in the status.
    pub async fn add_peer(&self, ticket: &Ticket) -> Result<OwnedServerName, AddPeerError> {
        if ticket.identity == self.identity() {
            return Err(AddPeerError::Own);
        }
        let (server, context) = (ticket.server_name(), &self.homeserver().context);
        let found = PeerAddresses {
            peer_id: PeerId::from_bytes(&ticket.peer_id).map_err(|_| AddPeerError::Addresses)?,
            addresses: addresses_in(ticket)?,
        };
        let (known, now, contact) = (to_known(&found), context.world.now(), server.clone());
        context
            .store
            .write(move |txn| {
                txn.add_contact(&contact, now)?;
                txn.keep_peer_addresses(&contact, &known, now)
            })
            .await?;
        if let Some(net) = self.inner.network.net() {
            net.add_addresses(&server, found.peer_id, &found.addresses).await;
            let dialled = server.clone();
            tokio::spawn(async move {
                if let Err(error) = net.connect(&dialled).await {
                    tracing::info!(%error, "a new contact is not reached yet");
                }
            });
        }
        Ok(server)
    }

    /// This node's PeerId: of the running network, or the one that it would start with.
    pub(crate) fn peer_id(&self) -> Result<PeerId, StatusError> {
        if let Some(net) = self.inner.network.net() {
            return Ok(net.local_peer_id());
        }
        let key = self.inner.keystore.transport_key(&self.homeserver().context.world)?;
        Ok(peer_id_of(&key)?)
    }

    /// Keeps the addresses for tickets that are made while offline.
    pub(crate) async fn remember_addresses(&self) -> Result<(), StartError> {
        let Some(net) = self.inner.network.net() else {
            return Ok(());
        };
        let addresses = serde_json::json!(texts(&net)).to_string();
        if self.setting(ADDRESSES).await?.as_ref() == Some(&addresses) {
            return Ok(());
        }
        let store = &self.homeserver().context.store;
        Ok(store.write(move |txn| txn.set_setting(ADDRESSES, &addresses)).await?)
    }

    async fn remembered_addresses(&self) -> Result<Vec<String>, StoreError> {
        let json = self.setting(ADDRESSES).await?;
        Ok(json
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default())
    }

    async fn setting(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.homeserver().context.store.read(move |txn| txn.setting(name)).await
    }
}

fn texts(net: &Net) -> Vec<String> {
    net.ticket_addrs().iter().map(Multiaddr::to_string).collect()
}

fn addresses_in(ticket: &Ticket) -> Result<Vec<Multiaddr>, AddPeerError> {
    let parse = |bytes: &Vec<u8>| Multiaddr::try_from(bytes.clone()).map_err(|_| AddPeerError::Addresses);
    let mut addresses = ticket.addrs.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    for relay in &ticket.relays {
        addresses.push(kith_net::circuit_address(&parse(relay)?).ok_or(AddPeerError::Addresses)?);
    }
    Ok(addresses)
}
