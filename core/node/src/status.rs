//! What a node says of itself: to its owner's command line, page or app. It changes nothing.

use kith_identity::TicketError;
use kith_store::{ReadTxn, Report, Seq, StoreError};
use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::{
    Error, Node,
    network::{Network, PeerEvent, PeerPath},
    relays::Relay,
};

/// Rooms listed at the most.
const MAX_ROOMS: usize = 200;
/// Reports listed at the most.
const MAX_REPORTS: u32 = 50;

/// A node at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of Kith.
    pub version: String,
    /// The node's name.
    pub server_name: OwnedServerName,
    /// Whether it is on the network.
    pub online: bool,
    /// Its PeerId, as text.
    pub peer_id: String,
    /// The addresses that it listens on.
    pub listen: Vec<String>,
    /// Its ticket.
    pub ticket: String,
    /// The people whose node it is.
    pub users: Vec<OwnedUserId>,
    /// The servers connected now.
    pub peers: Vec<Peer>,
    /// The relays that it uses.
    pub relays: Vec<Relay>,
    /// The servers that it keeps in touch with, connected or not.
    pub contacts: Vec<OwnedServerName>,
    /// How many rooms its users are in.
    pub room_count: usize,
    /// These rooms, the first 200.
    pub rooms: Vec<Room>,
    /// What its users have reported, the newest 50, newest first.
    pub reports: Vec<Report>,
}

/// A server that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub server_name: OwnedServerName,
    /// How it is reached.
    pub path: PeerPath,
    /// The addresses in use, the best first.
    pub addresses: Vec<String>,
}

/// A room that a user of the node is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Its id.
    pub room_id: OwnedRoomId,
    /// Its name or alias, if it has one.
    pub name: Option<String>,
    /// How many users are joined.
    pub members: u64,
    /// How many servers they are of.
    pub servers: usize,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The ticket cannot be made.
    #[error("the ticket cannot be made")]
    Ticket(#[from] TicketError),
    /// The transport key cannot be read.
    #[error(transparent)]
    Keys(#[from] crate::keystore::KeystoreError),
    /// The transport key is unusable.
    #[error(transparent)]
    PeerId(#[from] kith_net::StartError),
    /// The database failed.
    #[error("the database cannot be read")]
    Store(#[from] StoreError),
    /// A service failed.
    #[error("the accounts cannot be read")]
    Homeserver(#[source] Box<Error>),
}

/// Tells when a status may have changed.
pub struct Changes {
    committed: watch::Receiver<Seq>,
    peers: broadcast::Receiver<PeerEvent>,
}

impl Changes {
    /// Waits for the next event or peer. May end without a change that shows.
    pub async fn next(&mut self) {
        // An error says that the node stops, or that several changes were missed: a change in any case.
        tokio::select! {
            _ = self.committed.changed() => {}
            _ = self.peers.recv() => {}
        }
    }
}

impl Node {
    /// Changes from now on.
    pub fn changes(&self) -> Changes {
        let mut committed = self.homeserver().context.store.committed();
        committed.mark_unchanged();
        Changes {
            committed,
            peers: self.inner.network.events(),
        }
    }

    /// What the node is and does now.
    pub async fn status(&self) -> Result<Status, StatusError> {
        let context = &self.homeserver().context;
        let (net, name) = (self.inner.network.net(), context.server_name.clone());
        let ticket = self.ticket().await?.encode_fitting()?;
        let (contacts, rooms) = context
            .store
            .read(move |txn| {
                let mut contacts = txn.contacts(u32::MAX)?;
                contacts.retain(|server| *server != name);
                Ok::<_, StoreError>((contacts, txn.rooms_of_server(&name)?))
            })
            .await?;
        let room_count = rooms.len();
        let read_rooms = move |txn: &ReadTxn<'_>| rooms.iter().take(MAX_ROOMS).map(|id| room(txn, id)).collect();
        let rooms = context.store.read(read_rooms).await?;
        let reports = context.store.read(|txn| txn.reports(MAX_REPORTS)).await?;
        let peers = self.inner.network.peers().into_iter().map(|peer| Peer {
            server_name: peer.server_name,
            path: peer.path,
            addresses: peer.addresses,
        });
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server_name: context.server_name.clone(),
            online: net.is_some(),
            peer_id: self.peer_id()?.to_string(),
            listen: net
                .map(|net| net.listen_addrs())
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            ticket,
            users: self.users().await?,
            peers: peers.collect(),
            relays: self.relays().await?,
            contacts,
            room_count,
            rooms,
            reports,
        })
    }

    /// The users who can log in here.
    pub(crate) async fn users(&self) -> Result<Vec<OwnedUserId>, StatusError> {
        let users = self.homeserver().accounts.users().await;
        let users = users.map_err(|error| StatusError::Homeserver(Box::new(error)))?;
        Ok(users
            .into_iter()
            .filter(|user| !user.deactivated)
            .map(|user| user.user_id)
            .collect())
    }
}

fn room(txn: &ReadTxn<'_>, room_id: &RoomId) -> Result<Room, StoreError> {
    // Only texts of a bearable length are shown; whoever named the room may be anyone.
    let text = |kind: StateEventType, key: &str| -> Result<Option<String>, StoreError> {
        let event = txn.current_state_event(room_id, &kind, "")?;
        let content = event.and_then(|event| event.content_as::<serde_json::Map<_, _>>().ok());
        let text = content.and_then(|content: serde_json::Map<String, serde_json::Value>| {
            content
                .get(key)?
                .as_str()
                .map(|text| text.chars().take(100).collect::<String>())
        });
        Ok(text.filter(|text| !text.trim().is_empty()))
    };
    let name = match text(StateEventType::RoomName, "name")? {
        Some(name) => Some(name),
        None => text(StateEventType::RoomCanonicalAlias, "alias")?,
    };
    Ok(Room {
        room_id: room_id.to_owned(),
        name,
        members: txn.member_count(room_id, &MembershipState::Join)?,
        servers: txn.joined_servers(room_id)?.len(),
    })
}
