//! The command line's side of the control protocol: one connection and one request a command.

use std::{io, path::Path, path::PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use kith_node::{Multiaddr, data_folder::DataFolder, doctor::Finding, relays::Relay};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{AddPeer, AddUser, BASE, Backup, ControlError, Failure, MAX_BODY, NamedRelay, Report};
use crate::operations::{AddedPeer, AddedUser, Done, TicketText};

/// A node that runs.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The node that runs over a data folder, if one does.
    pub(crate) async fn find(data: &Path) -> Result<Option<Self>, ControlError> {
        let socket = DataFolder::socket(data);
        match UnixStream::connect(&socket).await {
            Ok(_) => Ok(Some(Self { socket })),
            Err(error) => match error.kind() {
                // The second is what a killed node leaves behind.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(ControlError::Socket {
                    path: socket,
                    source: error,
                }),
            },
        }
    }

    pub(crate) async fn status(&self) -> Result<Report, ControlError> {
        self.ask(Method::GET, "status", None::<&Done>).await
    }

    pub(crate) async fn ticket(&self) -> Result<TicketText, ControlError> {
        self.ask(Method::GET, "ticket", None::<&Done>).await
    }

    pub(crate) async fn add_user(&self, name: &str, password: &str) -> Result<AddedUser, ControlError> {
        let user = AddUser {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        self.ask(Method::POST, "users", Some(&user)).await
    }

    pub(crate) async fn add_peer(&self, ticket: &str) -> Result<AddedPeer, ControlError> {
        let ticket = ticket.to_owned();
        self.ask(Method::POST, "peers", Some(&AddPeer { ticket })).await
    }

    pub(crate) async fn examine(&self) -> Result<Vec<Finding>, ControlError> {
        self.ask(Method::GET, "doctor", None::<&Done>).await
    }

    pub(crate) async fn relays(&self) -> Result<Vec<Relay>, ControlError> {
        self.ask(Method::GET, "relays", None::<&Done>).await
    }

    pub(crate) async fn add_relay(&self, relay: &Multiaddr) -> Result<Done, ControlError> {
        let relay = relay.clone();
        self.ask(Method::POST, "relays", Some(&NamedRelay { relay })).await
    }

    pub(crate) async fn remove_relay(&self, relay: &Multiaddr) -> Result<Done, ControlError> {
        let relay = relay.clone();
        self.ask(Method::DELETE, "relays", Some(&NamedRelay { relay })).await
    }

    pub(crate) async fn backup(&self, to: &Path) -> Result<Done, ControlError> {
        let to = to.to_owned();
        self.ask(Method::POST, "backup", Some(&Backup { to })).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        name: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ControlError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ControlError::Socket {
                path: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ControlError::Broken)?;
        // Ends with the answer; what goes wrong shows in the answer.
        let connection = tokio::spawn(connection);
        let json = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| ControlError::Answer(Box::new(error)))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{BASE}/{name}"))
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(json)))
            .map_err(|error| ControlError::Answer(Box::new(error)))?;
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(ControlError::Broken)?
            .into_parts();
        let body = Limited::new(body, MAX_BODY)
            .collect()
            .await
            .map_err(ControlError::Answer)?
            .to_bytes();
        drop(sender);
        connection.abort();
        read(head.status, &body)
    }
}

fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, ControlError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(|error| ControlError::Version(Some(error)));
    }
    match serde_json::from_slice::<Failure>(body) {
        // Unknown routes answer as Matrix does, with another version's names in it.
        Ok(failure) if status != StatusCode::NOT_FOUND => Err(ControlError::Failed(failure.error)),
        _ => Err(ControlError::Version(None)),
    }
}
