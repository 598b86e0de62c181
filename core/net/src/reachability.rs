//! Learns at which of our addresses strangers reach us: AutoNAT v2, whose servers relays are. It asks only for a while after
//! it was woken, because each probe costs tens of kilobytes; it never asks on its own.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

/// AutoNAT's client, asleep unless woken.
#[derive(Default)]
pub(crate) struct Behaviour {
    client: client::Behaviour,
    candidates: VecDeque<Multiaddr>,
    awake: bool,
    /// The client has news to tell though it sleeps.
    stirred: bool,
}

impl Behaviour {
    /// From now on, addresses that were not tested yet are.
    pub(crate) fn wake(&mut self) {
        self.awake = true;
    }

    /// Probes that are under way end; none is started.
    pub(crate) fn doze(&mut self) {
        self.awake = false;
    }

    /// Somebody saw us come from this address. Identify tells libp2p the port that we listen on instead of the one that was
    /// seen, which is wrong behind routers that choose another.
    pub(crate) fn note_observed(&mut self, address: Multiaddr) {
        self.candidates.push_back(address);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <client::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.client
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.client
            .handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.client.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.stirred = true;
        self.client.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(address) = self.candidates.pop_front() {
            return Poll::Ready(ToSwarm::NewExternalAddrCandidate(address));
        }
        if !self.awake && !self.stirred {
            return Poll::Pending;
        }
        let next = self.client.poll(cx);
        self.stirred = next.is_ready();
        next
    }
}
