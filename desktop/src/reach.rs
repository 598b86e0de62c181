//! The node that a command is about: the one that runs over the data folder, or the folder's own, opened for the
//! command. Either way the command does not notice.

use std::path::Path;

use kith_node::{
    Multiaddr, Node, StartError,
    clock::World,
    contacts::Introduction,
    data_folder::{DataFolder, DataFolderError},
    doctor::Finding,
    relays::Relay,
};

use crate::{
    control::{Client, Report},
    error::CommandError,
    operations::{self, AddedPeer, AddedUser, TicketText},
    settings::Settings,
};

/// A node within reach.
pub(crate) enum Reach {
    /// It runs; asked over its socket.
    Running(Client),
    /// It does not run; its files are held until [`Reach::leave`].
    Opened(Node),
}

impl Reach {
    /// The node of a data folder, which must be there already.
    pub(crate) async fn find(data: &Path) -> Result<Self, CommandError> {
        if !DataFolder::database(data).exists() {
            return Err(CommandError::NoNode(data.to_owned()));
        }
        Self::find_or_make(data).await
    }

    /// The node of a data folder, which is made if need be.
    pub(crate) async fn find_or_make(data: &Path) -> Result<Self, CommandError> {
        if let Some(client) = Client::find(data).await? {
            return Ok(Self::Running(client));
        }
        match Node::open(Settings::read(data)?.config(data), World::system()).await {
            Ok(node) => Ok(Self::Opened(node)),
            // Somebody holds the folder but does not listen: too early or too late.
            Err(StartError::DataFolder(DataFolderError::Locked(_))) => match Client::find(data).await? {
                Some(client) => Ok(Self::Running(client)),
                None => Err(CommandError::Changing),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back what was opened for the command, with everything committed.
    pub(crate) async fn leave(&self) {
        if let Self::Opened(node) = self {
            node.shutdown().await;
        }
    }

    pub(crate) async fn status(&self) -> Result<Report, CommandError> {
        match self {
            Self::Running(client) => Ok(client.status().await?),
            Self::Opened(node) => Ok(Report {
                running: false,
                http: None,
                socket: None,
                node: node.status().await?,
            }),
        }
    }

    pub(crate) async fn ticket(&self) -> Result<TicketText, CommandError> {
        match self {
            Self::Running(client) => Ok(client.ticket().await?),
            Self::Opened(node) => Ok(operations::ticket(node).await?),
        }
    }

    pub(crate) async fn add_user(&self, name: &str, password: &str) -> Result<AddedUser, CommandError> {
        match self {
            Self::Running(client) => Ok(client.add_user(name, password).await?),
            Self::Opened(node) => Ok(operations::add_user(node, name, password).await?),
        }
    }

    pub(crate) async fn add_peer(&self, text: &str, introduction: Introduction) -> Result<AddedPeer, CommandError> {
        match self {
            Self::Running(client) => Ok(client.add_peer(text).await?),
            Self::Opened(node) => Ok(operations::add_peer(node, &introduction).await?),
        }
    }

    pub(crate) async fn examine(&self) -> Result<Vec<Finding>, CommandError> {
        match self {
            Self::Running(client) => Ok(client.examine().await?),
            Self::Opened(node) => Ok(operations::examine(node).await?),
        }
    }

    pub(crate) async fn relays(&self) -> Result<Vec<Relay>, CommandError> {
        match self {
            Self::Running(client) => Ok(client.relays().await?),
            Self::Opened(node) => Ok(operations::relays(node).await?),
        }
    }

    pub(crate) async fn add_relay(&self, relay: &Multiaddr) -> Result<(), CommandError> {
        match self {
            Self::Running(client) => client.add_relay(relay).await.map(drop).map_err(CommandError::from),
            Self::Opened(node) => operations::add_relay(node, relay)
                .await
                .map(drop)
                .map_err(CommandError::from),
        }
    }

    pub(crate) async fn remove_relay(&self, relay: &Multiaddr) -> Result<(), CommandError> {
        match self {
            Self::Running(client) => client.remove_relay(relay).await.map(drop).map_err(CommandError::from),
            Self::Opened(node) => operations::remove_relay(node, relay)
                .await
                .map(drop)
                .map_err(CommandError::from),
        }
    }

    pub(crate) async fn backup(&self, to: &Path) -> Result<(), CommandError> {
        match self {
            Self::Running(client) => client.backup(to).await.map(drop).map_err(CommandError::from),
            Self::Opened(node) => operations::backup(node, to).await.map(drop).map_err(CommandError::from),
        }
    }
}
