//! Opens and accepts streams of our own protocols, connection by connection. Never reads or writes one.
//!
//! Whoever owns a connection gets an [`Opener`] and a queue of the streams that the peer opened. Streams are opened in
//! parallel and without passing the swarm's loop; every queue is short, and a stream that finds it full is reset.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    InboundUpgrade, Multiaddr, OutboundUpgrade, PeerId, Stream,
    core::{Endpoint, UpgradeInfo, connection::ConnectedPoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
        StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Streams that wait to be opened, per connection.
const OPEN_QUEUE: usize = 64;

/// Streams being opened at once, per connection.
const MAX_OPENING: usize = 32;

/// Streams that the peer opened and nobody took yet, per connection.
const ACCEPT_QUEUE: usize = 16;

/// Until a stream is open.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// The protocols that streams can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `/kith/hello/1`: who is there. See `hello.rs`.
    Hello,
    /// `/kith/http/2`: HTTP/2, the opener being the client.
    Http,
    /// libp2p's ping, which relays answer. Never accepted here.
    Ping,
}

impl AsRef<str> for Protocol {
    fn as_ref(&self) -> &str {
        match self {
            Self::Hello => "/kith/hello/1",
            Self::Http => "/kith/http/2",
            Self::Ping => "/ipfs/ping/1.0.0",
        }
    }
}

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the connection is closed")]
    Closed,
    #[error("the peer did not open the stream in time")]
    TimedOut,
    #[error("the peer does not speak the protocol")]
    Unsupported,
    #[error("the stream could not be opened")]
    Io(#[source] std::io::Error),
}

#[derive(Debug)]
enum Command {
    Open(Protocol, oneshot::Sender<Result<Stream, OpenError>>),
    KeepAlive(bool),
}

/// Opens streams on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Opener(mpsc::Sender<Command>);

impl Opener {
    /// Opens a stream. The protocol counts as agreed at once; a peer that does not speak it ends the stream.
    pub(crate) async fn open(&self, protocol: Protocol) -> Result<Stream, OpenError> {
        let (reply, stream) = oneshot::channel();
        self.0
            .send(Command::Open(protocol, reply))
            .await
            .map_err(|_| OpenError::Closed)?;
        stream.await.map_err(|_| OpenError::Closed)?
    }

    /// Says whether the connection is to stay up while no stream is open.
    pub(crate) async fn keep_alive(&self, keep: bool) {
        // A closed connection needs no keeping.
        let _ = self.0.send(Command::KeepAlive(keep)).await;
    }
}

/// A connection that is up.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) peer_id: PeerId,
    pub(crate) endpoint: ConnectedPoint,
    pub(crate) opener: Opener,
    /// Streams that the peer opened. Ends when the connection does.
    pub(crate) accepted: mpsc::Receiver<(Protocol, Stream)>,
}

/// Hands out a [`Connection`] for each connection that comes up.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Connections that another behaviour may still refuse.
    pending: HashMap<ConnectionId, (Opener, mpsc::Receiver<(Protocol, Stream)>)>,
    events: VecDeque<Connection>,
}

impl Behaviour {
    fn handler(&mut self, id: ConnectionId) -> Handler {
        let (opener, commands) = mpsc::channel(OPEN_QUEUE);
        let (accept, accepted) = mpsc::channel(ACCEPT_QUEUE);
        self.pending.insert(id, (Opener(opener), accepted));
        Handler {
            commands,
            accept,
            opening: 0,
            keep_alive: false,
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Connection;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                if let Some((opener, accepted)) = self.pending.remove(&established.connection_id) {
                    self.events.push_back(Connection {
                        id: established.connection_id,
                        peer_id: established.peer_id,
                        endpoint: established.endpoint.clone(),
                        opener,
                        accepted,
                    });
                }
            }
            FromSwarm::DialFailure(failure) => {
                self.pending.remove(&failure.connection_id);
            }
            FromSwarm::ListenFailure(failure) => {
                self.pending.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Events come only from `on_swarm_event`, after which the swarm polls anyway: no waker is needed.
        match self.events.pop_front() {
            Some(connection) => Poll::Ready(ToSwarm::GenerateEvent(connection)),
            None => Poll::Pending,
        }
    }
}

/// The end of one connection's queues inside libp2p's connection task.
pub(crate) struct Handler {
    commands: mpsc::Receiver<Command>,
    accept: mpsc::Sender<(Protocol, Stream)>,
    opening: usize,
    keep_alive: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, OpenError>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        SubstreamProtocol::new(Accept, ()).with_timeout(OPEN_DEADLINE)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Open, Self::OutboundOpenInfo, Infallible>> {
        while self.opening < MAX_OPENING {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Open(protocol, reply))) => {
                    self.opening += 1;
                    let protocol = SubstreamProtocol::new(Open(protocol), reply).with_timeout(OPEN_DEADLINE);
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Poll::Ready(Some(Command::KeepAlive(keep))) => self.keep_alive = keep,
                Poll::Ready(None) => {
                    self.keep_alive = false;
                    break;
                }
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Open, (), Self::OutboundOpenInfo>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                let taken = self.accept.try_send(protocol);
                if taken.is_err() {
                    tracing::debug!("a stream was reset: too many wait");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.opening -= 1;
                // Whoever asked may have given up; then the stream is dropped, which resets it.
                let _ = info.send(Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.opening -= 1;
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::TimedOut,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Io(error) => OpenError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Accepts a stream of any of our protocols.
pub(crate) struct Accept;

impl UpgradeInfo for Accept {
    type Info = Protocol;
    type InfoIter = [Protocol; 2];

    fn protocol_info(&self) -> Self::InfoIter {
        [Protocol::Hello, Protocol::Http]
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Protocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: Protocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

/// Opens a stream of one protocol.
pub(crate) struct Open(Protocol);

impl UpgradeInfo for Open {
    type Info = Protocol;
    type InfoIter = [Protocol; 1];

    fn protocol_info(&self) -> Self::InfoIter {
        [self.0]
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: Protocol) -> Self::Future {
        ready(Ok(stream))
    }
}
