//! How nodes come to know each other by hand: this node's ticket, and what others hand over. Nothing here proves who
//! anyone is; connections do.

use std::str::FromStr;

use kith_identity::{IdentityPublicKey, Ticket, TicketError};
use kith_net::{Multiaddr, Net, PeerAddresses, PeerId, peer_id_of};
use kith_store::StoreError;
use ruma::{IdParseError, MatrixUri, OwnedServerName, ServerName, matrix_uri::MatrixId};

use crate::{Node, network::directory::to_known, node::StartError, status::StatusError};

/// The setting that holds the addresses of the last ticket made while online, as a JSON array.
const ADDRESSES: &str = "ticket_addresses";

/// What the address of a place at a relay ends in.
const CIRCUIT: &str = "/p2p-circuit";

/// What one person hands another to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduction {
    /// A ticket: a node, and where it is.
    Ticket(Box<Ticket>),
    /// A `matrix:` URI: servers, to be found on the local network or where they were before.
    Servers(Vec<IdentityPublicKey>),
}

/// Why a text introduces nobody.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// It is no ticket, or a damaged one.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It is a damaged `matrix:` URI.
    #[error("the matrix: URI is not valid")]
    Uri(#[from] IdParseError),
    /// It is a `matrix:` URI in which no server is named by its key.
    #[error("the matrix: URI names no Kith node")]
    NoNode,
}

impl FromStr for Introduction {
    type Err = IntroductionError;

    fn from_str(text: &str) -> Result<Self, IntroductionError> {
        let text = text.trim();
        if !text.starts_with("matrix:") {
            return Ok(Self::Ticket(Box::new(Ticket::parse(text)?)));
        }
        let uri = MatrixUri::parse(text)?;
        let named: Option<&ServerName> = match uri.id() {
            MatrixId::User(user) => Some(user.server_name()),
            MatrixId::Room(room) => room.server_name(),
            MatrixId::RoomAlias(alias) => Some(alias.server_name()),
            _ => None,
        };
        let servers = named.into_iter().chain(uri.via().iter().map(|server| &**server));
        let mut nodes: Vec<_> = servers
            .filter_map(|name| IdentityPublicKey::from_server_name(name).ok())
            .collect();
        nodes.dedup();
        if nodes.is_empty() {
            Err(IntroductionError::NoNode)
        } else {
            Ok(Self::Servers(nodes))
        }
    }
}

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

    /// Adds other nodes by what their people handed over: they are kept as contacts, and dialled if this node is online.
    /// Returns at once; whether they are reached shows in the status.
    pub async fn add_peer(&self, introduction: &Introduction) -> Result<Vec<OwnedServerName>, AddPeerError> {
        let mut added = Vec::new();
        match introduction {
            Introduction::Ticket(ticket) => {
                let found = PeerAddresses {
                    peer_id: PeerId::from_bytes(&ticket.peer_id).map_err(|_| AddPeerError::Addresses)?,
                    addresses: addresses_in(ticket)?,
                };
                added.push(self.add_contact(ticket.identity, Some(found)).await?);
            }
            Introduction::Servers(servers) => {
                for server in servers.iter().filter(|server| **server != self.identity()) {
                    added.push(self.add_contact(*server, None).await?);
                }
            }
        }
        if added.is_empty() {
            Err(AddPeerError::Own)
        } else {
            Ok(added)
        }
    }

    async fn add_contact(
        &self,
        identity: IdentityPublicKey,
        found: Option<PeerAddresses>,
    ) -> Result<OwnedServerName, AddPeerError> {
        if identity == self.identity() {
            return Err(AddPeerError::Own);
        }
        let (server, context) = (identity.server_name(), &self.homeserver().context);
        let (known, now, contact) = (found.as_ref().map(to_known), context.world.now(), server.clone());
        context
            .store
            .write(move |txn| {
                txn.add_contact(&contact, now)?;
                known.map_or(Ok(()), |known| txn.keep_peer_addresses(&contact, &known, now))
            })
            .await?;
        if let Some(net) = self.inner.network.net() {
            if let Some(found) = found {
                net.add_addresses(&server, found.peer_id, &found.addresses).await;
            }
            net.dial_contact(&server).await;
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

#[cfg(test)]
mod tests {
    use kith_identity::IdentityKey;

    use super::*;

    #[test]
    fn introductions_are_tickets_or_matrix_uris_that_name_a_node() {
        let key = IdentityKey::from_bytes(&[1; 32]).public();
        let other = IdentityKey::from_bytes(&[2; 32]).public();
        let ticket = Ticket::new(key, vec![1; 38]);
        let servers = |keys: &[IdentityPublicKey]| Some(Introduction::Servers(keys.to_vec()));
        let cases = [
            (ticket.encode().unwrap(), Some(Introduction::Ticket(Box::new(ticket)))),
            (format!("matrix:u/alice:{key}"), servers(&[key])),
            (format!(" matrix:u/alice:{key}?action=chat\n"), servers(&[key])),
            (
                format!("matrix:r/room:{key}?via={key}&via={other}"),
                servers(&[key, other]),
            ),
            (
                format!("matrix:roomid/abc?via=matrix.org&via={other}"),
                servers(&[other]),
            ),
            ("matrix:u/alice:matrix.org".to_owned(), None),
            ("matrix:".to_owned(), None),
            (format!("https://matrix.to/#/@alice:{key}"), None),
            ("kith:AAAA".to_owned(), None),
            (String::new(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
