//! The control protocol: how the command line talks to a node that runs over the same data folder. Small JSON over HTTP
//! on `DIR/kith.sock`, which only the owner's processes can open; none of it is on the HTTP address.

mod client;
mod server;

use std::{io, path::PathBuf};

use kith_node::{Multiaddr, status::Status};
use serde::{Deserialize, Serialize};

pub(crate) use client::Client;
pub(crate) use server::{Surface, routes};

/// The protocol's version stands in every path.
const BASE: &str = "/_kith/control/1";

/// Bytes of a request or answer at the most.
const MAX_BODY: usize = 4 << 20;

/// A node's status, with how it is reached on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether it runs, rather than being looked at in its files.
    pub(crate) running: bool,
    /// The URL for clients.
    pub(crate) http: Option<String>,
    /// The Unix socket for clients.
    pub(crate) socket: Option<PathBuf>,
    #[serde(flatten)]
    pub(crate) node: Status,
}

/// `POST users`.
#[derive(Serialize, Deserialize)]
struct AddUser {
    name: String,
    password: String,
}

/// `POST peers`.
#[derive(Debug, Serialize, Deserialize)]
struct AddPeer {
    ticket: String,
}

/// `POST relays` and `DELETE relays`.
#[derive(Debug, Serialize, Deserialize)]
struct NamedRelay {
    relay: Multiaddr,
}

/// `POST backup`.
#[derive(Debug, Serialize, Deserialize)]
struct Backup {
    /// An absolute path.
    to: PathBuf,
}

/// A refusal or failure.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
}

/// Why a running node did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// It said so.
    #[error("{0}")]
    Failed(String),
    /// The socket cannot be used.
    #[error("cannot reach the running node at {path}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It went away in the middle.
    #[error("the running node broke off")]
    Broken(#[source] hyper::Error),
    /// It is another version of the program.
    #[error("the running node does not understand this command; is it another version of kith?")]
    Version(#[source] Option<serde_json::Error>),
    /// The answer cannot be read.
    #[error("the running node's answer cannot be read")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}
