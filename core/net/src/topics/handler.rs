//! gossipsub's end of one connection, which does nothing before the peer is known to be a member of a topic: a stream
//! that it opens until then waits unread.

use std::task::{Context, Poll};

use libp2p::{
    gossipsub,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, NetworkBehaviour, SubstreamProtocol,
        handler::{ConnectionEvent, FullyNegotiatedInbound, InboundUpgradeSend},
    },
};

/// gossipsub's own.
pub(super) type Gossip = <gossipsub::Behaviour as NetworkBehaviour>::ConnectionHandler;
type Inbound = <Gossip as ConnectionHandler>::InboundProtocol;
type Outbound = <Gossip as ConnectionHandler>::OutboundProtocol;

/// What gossipsub's handler tells its behaviour.
pub(super) type News = <Gossip as ConnectionHandler>::ToBehaviour;

/// What a connection's handler is told.
pub(crate) enum Order {
    /// The peer is a member.
    Start(Box<Gossip>),
    /// The peer is not to take part any more.
    Stop,
    /// For gossipsub's handler.
    Gossip(<Gossip as ConnectionHandler>::FromBehaviour),
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start(_) => f.write_str("Start"),
            Self::Stop => f.write_str("Stop"),
            Self::Gossip(order) => write!(f, "Gossip({order:?})"),
        }
    }
}

/// See the module.
pub(crate) struct Handler {
    /// How streams are accepted.
    protocol: Inbound,
    /// The stream that the peer opened too early; of several the last.
    early: Option<<Inbound as InboundUpgradeSend>::Output>,
    gossip: Option<Box<Gossip>>,
}

impl Handler {
    /// For a connection to whoever it may be. All handlers of gossipsub accept streams in the same way.
    pub(super) fn new(protocol: Inbound) -> Self {
        Self {
            protocol,
            early: None,
            gossip: None,
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = News;
    type InboundProtocol = Inbound;
    type OutboundProtocol = Outbound;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Inbound> {
        match &self.gossip {
            Some(gossip) => gossip.listen_protocol(),
            None => SubstreamProtocol::new(self.protocol.clone(), ()),
        }
    }

    fn connection_keep_alive(&self) -> bool {
        self.gossip
            .as_ref()
            .is_some_and(|gossip| gossip.connection_keep_alive())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Outbound, (), News>> {
        match &mut self.gossip {
            Some(gossip) => gossip.poll(cx),
            // The swarm polls after every order.
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match (order, &mut self.gossip) {
            (Order::Start(mut gossip), None) => {
                if let Some(protocol) = self.early.take() {
                    let early = FullyNegotiatedInbound { protocol, info: () };
                    gossip.on_connection_event(ConnectionEvent::FullyNegotiatedInbound(early));
                }
                self.gossip = Some(gossip);
            }
            (Order::Gossip(order), Some(gossip)) => gossip.on_behaviour_event(order),
            (Order::Stop, gossip) => *gossip = None,
            (Order::Start(_), Some(_)) | (Order::Gossip(_), None) => {}
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Inbound, Outbound>) {
        match (&mut self.gossip, event) {
            (Some(gossip), event) => gossip.on_connection_event(event),
            (None, ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. })) => {
                self.early = Some(protocol);
            }
            (None, _) => {}
        }
    }
}
