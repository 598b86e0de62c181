//! What commands ask of a node, whether it runs elsewhere or was opened for one command.

use std::path::Path;

use kith_node::{
    Multiaddr, Node,
    contacts::{AddPeerError, Introduction, IntroductionError},
    doctor::{DoctorError, Finding},
    identity::TicketError,
    relays::{Relay, RelayError},
    status::StatusError,
    store::{BackupError, StoreError},
};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

/// Why a node did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperationError {
    #[error(transparent)]
    Homeserver(#[from] kith_node::Error),
    #[error(transparent)]
    AddPeer(#[from] AddPeerError),
    #[error("this is no ticket")]
    Introduction(#[from] IntroductionError),
    #[error("the ticket cannot be made")]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("the database cannot be read")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Backup(#[from] BackupError),
}

impl OperationError {
    /// Whether the one who asked can help it.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Homeserver(error) => matches!(error, kith_node::Error::Refused { .. }),
            Self::AddPeer(error) => !matches!(error, AddPeerError::Store(_)),
            Self::Introduction(_) => true,
            Self::Backup(error) => matches!(error, BackupError::Exists(_) | BackupError::File { .. }),
            Self::Relay(error) => !matches!(error, RelayError::Store(_)),
            Self::Ticket(_) | Self::Status(_) | Self::Doctor(_) | Self::Store(_) => false,
        }
    }
}

/// A user that was added.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddedUser {
    pub(crate) user_id: String,
}

/// Nodes that were added.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddedPeer {
    pub(crate) servers: Vec<OwnedServerName>,
}

/// A ticket as text.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TicketText {
    pub(crate) ticket: String,
}

/// Something was done that has no outcome to tell.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {}

pub(crate) async fn add_user(node: &Node, name: &str, password: &str) -> Result<AddedUser, OperationError> {
    let user_id = node.homeserver().accounts.create_user(name, password).await?;
    Ok(AddedUser {
        user_id: user_id.to_string(),
    })
}

pub(crate) async fn add_peer(node: &Node, introduction: &Introduction) -> Result<AddedPeer, OperationError> {
    let servers = node.add_peer(introduction).await?;
    Ok(AddedPeer { servers })
}

pub(crate) async fn ticket(node: &Node) -> Result<TicketText, OperationError> {
    let ticket = node.ticket().await?.encode_fitting()?;
    Ok(TicketText { ticket })
}

pub(crate) async fn backup(node: &Node, to: &Path) -> Result<Done, OperationError> {
    node.backup(to).await?;
    Ok(Done {})
}

pub(crate) async fn examine(node: &Node) -> Result<Vec<Finding>, OperationError> {
    Ok(node.examine().await?)
}

pub(crate) async fn relays(node: &Node) -> Result<Vec<Relay>, OperationError> {
    Ok(node.relays().await?)
}

pub(crate) async fn add_relay(node: &Node, relay: &Multiaddr) -> Result<Done, OperationError> {
    node.add_relay(relay).await?;
    Ok(Done {})
}

pub(crate) async fn remove_relay(node: &Node, relay: &Multiaddr) -> Result<Done, OperationError> {
    node.remove_relay(relay).await?;
    Ok(Done {})
}
