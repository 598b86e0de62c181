//! What can go wrong at this crate's boundary. Faults inside a connection have their own types beside their code.

use libp2p::Multiaddr;
use ruma::OwnedServerName;

use crate::DirectoryError;

/// Why the network did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on: in use, not ours, or not supported.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the transport said.
        reason: String,
    },
    /// A relay's address does not end in `/p2p/RELAY`, with or without `/p2p-circuit`.
    #[error(
        "{0} is no relay's address: it must name the relay's peer id, as in /ip4/1.2.3.4/udp/4433/quic-v1/p2p/PEER"
    )]
    RelayAddress(Multiaddr),
    /// The transport cannot be set up.
    #[error("cannot set up the transport")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Our own key document cannot be had, or is not ours.
    #[error("our own key document cannot be used")]
    Document(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<DirectoryError> for StartError {
    fn from(error: DirectoryError) -> Self {
        Self::Document(Box::new(error))
    }
}

impl StartError {
    /// The transports' errors say little themselves and keep the reason as their source.
    pub(crate) fn listen(address: &Multiaddr, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let text = error.to_string();
            if reason.is_empty() {
                reason = text;
            } else if !text.is_empty() && !reason.ends_with(&text) {
                reason = format!("{reason}: {text}");
            }
            source = error.source();
        }
        Self::Listen {
            address: address.clone(),
            reason,
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// No address is known, or none answers. Nothing was sent.
    #[error("{0} cannot be reached now")]
    Unreachable(OwnedServerName),
    /// The whole answer was not here by the deadline. The request may have been carried out.
    #[error("{0} did not answer in time")]
    TimedOut(OwnedServerName),
    /// The exchange broke off.
    #[error("{server} broke off: {reason}")]
    Broken {
        /// The other server.
        server: OwnedServerName,
        /// How.
        reason: Break,
    },
}

/// How an exchange broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// The connection or stream ended before the answer did. The request may have been carried out.
    #[error("the connection ended before the answer")]
    Connection,
    /// The answer's body is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    AnswerTooLarge(usize),
    /// The answer's body is compressed in a way that nobody asked for, or damaged.
    #[error("the answer cannot be decompressed")]
    AnswerCoding,
    /// The request is not one that HTTP/2 can carry.
    #[error("the request cannot be sent")]
    Request,
    /// Too many requests to this server wait already. Nothing was sent.
    #[error("too many requests are waiting for this server")]
    Busy,
    /// The network is shutting down. Nothing was sent.
    #[error("the network is shutting down")]
    ShuttingDown,
}
