//! How the node reaches other nodes: one trait that it owns. `kith-net` stands behind it in a running node, memory in a
//! simulation. No Matrix route or body is known here.

pub(crate) mod directory;
pub(crate) mod libp2p;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kith_identity::{TopicKey, TopicName};
use ruma::{
    OwnedServerName, ServerName,
    api::error::{ErrorKind, RetryAfter},
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Why a request to another node got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// No path to the node is known or works now.
    #[error("{0} cannot be reached now")]
    Unreachable(OwnedServerName),
    /// The node did not answer within the deadline.
    #[error("{0} did not answer in time")]
    TimedOut(OwnedServerName),
    /// The connection broke, or the answer was not HTTP, too large or cut short.
    #[error("{server} broke off: {reason}")]
    Broken {
        /// The node.
        server: OwnedServerName,
        /// What went wrong.
        reason: String,
    },
    /// The node answered with an error.
    #[error("{server} refused with {status}: {message}")]
    Refused {
        /// The node.
        server: OwnedServerName,
        /// The HTTP status.
        status: u16,
        /// Its Matrix error; `M_UNKNOWN` if it sent none. Boxed: it is large, and errors travel far.
        kind: Box<ErrorKind>,
        /// Its message.
        message: String,
    },
}

impl NetworkError {
    /// Whether the node answered and meant it: asking it again would bring the same. False for silence, for a node that is
    /// busy or in trouble, and for garbage.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if (400..500).contains(status) && *status != 429)
    }

    /// How long the node asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Refused { kind, .. } = self else { return None };
        match &**kind {
            ErrorKind::LimitExceeded(data) => match data.retry_after {
                Some(RetryAfter::Delay(wait)) => Some(wait),
                _ => Some(Duration::ZERO),
            },
            _ => None,
        }
    }
}

/// How much one request may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the whole answer is here.
    pub deadline: Duration,
    /// Bytes of the answer.
    pub max_answer: usize,
    /// Whether the answer may be large: then it takes a stream of its own and holds up no other.
    pub bulk: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            max_answer: 16 * 1024 * 1024,
            bulk: false,
        }
    }
}

/// A peer was gained or lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// A connection to this server is up and its hello is verified.
    Up(OwnedServerName),
    /// The last connection to this server was ended because nothing was said on it. The server is there as far as is known; a
    /// request connects again.
    LetGo(OwnedServerName),
    /// The last connection to this server is gone, or one that was let go is out of reach by now.
    Down(OwnedServerName),
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerPath {
    /// On the local network, or this machine.
    Lan,
    /// Straight through the internet.
    Direct,
    /// Through a relay.
    Relayed,
}

impl PeerPath {
    /// As [`PeerPath`] is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }
}

/// A peer as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its server name.
    pub server_name: OwnedServerName,
    /// How it is reached: the best of its connections.
    pub path: PeerPath,
    /// The addresses in use, as text, the best first.
    pub addresses: Vec<String>,
}

/// A message on a topic, signed with the topic's key. Nothing more is known about who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMessage {
    /// The topic.
    pub topic: TopicName,
    /// Who passed it on to this node.
    pub from: OwnedServerName,
    /// What [`kith_identity::TopicSecret::open`] takes.
    pub message: Bytes,
}

/// Why a message went to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// This node does not follow the topic.
    #[error("the topic is not followed")]
    NotFollowed,
    /// No connected server follows the topic, as far as is known.
    #[error("nobody who is connected follows the topic")]
    NobodyThere,
    /// The message exceeds [`TopicKey::MAX_MESSAGE`], or the topic's key did not sign it.
    #[error("no message of this topic")]
    NotValid,
    /// The same message was published, or came in, a short while ago.
    #[error("the message was sent already")]
    Duplicate,
    /// Every follower has too much to take already, or there is no network now.
    #[error("there is no way to send now")]
    Busy,
}

/// Carries requests to other nodes by server name.
///
/// Requests that come *in* are not part of this trait: whoever runs the network hands them to
/// [`crate::federation::router`], with [`crate::federation::Peer`] in the request's extensions.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Sends a request, dialling if need be. The URI holds path and query only. Any complete answer is `Ok`, whatever its
    /// status.
    async fn request(
        &self,
        to: &ServerName,
        request: http::Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, NetworkError>;

    /// Peers coming and going, from now on. A lagging receiver misses events and must look at [`Network::peers`].
    fn events(&self) -> broadcast::Receiver<PeerEvent>;

    /// The peers connected now.
    fn peers(&self) -> Vec<PeerStatus>;

    /// Something was said with a server, by either side, that people would call so: whom to stay connected to follows from it.
    fn note_spoken(&self, server: &ServerName) {
        let _ = server;
    }

    /// Follows a topic among these servers: only they are listened to and told, and a few of them are kept connected. Once
    /// more with other members replaces them. A network that has no topics follows none.
    async fn follow(&self, topic: TopicKey, members: Vec<OwnedServerName>);

    /// Follows a topic no longer.
    async fn unfollow(&self, topic: &TopicName);

    /// Gives a message to a few connected followers, who pass it on; says to how many. It may reach anybody or nobody: a hint, never
    /// a delivery.
    async fn publish(&self, topic: &TopicKey, message: Bytes) -> Result<usize, PublishError>;

    /// Says that there was a message on a topic that this server had to be asked for, so that it can be told who passes nothing on.
    async fn missed(&self, topic: &TopicName, from: &ServerName);

    /// Whether there are topics at all.
    fn has_topics(&self) -> bool;

    /// Messages of the topics that are followed, from now on; never those published here. What a lagging receiver misses is
    /// lost. None from a network that has no topics.
    fn topic_messages(&self) -> Option<broadcast::Receiver<TopicMessage>>;
}
