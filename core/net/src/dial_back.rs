//! Keeps a relay from dialling, for a stranger who asks whether he is reachable, into the relay's own network. Dials nobody and
//! refuses nobody who dials us.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};

use crate::address;

/// The address is none that a stranger may have a relay dial.
#[derive(Debug, thiserror::Error)]
#[error("addresses of local networks and host names are not dialled for strangers")]
struct NotPublic;

/// Lets public addresses pass, and local ones only at a relay that is itself reached by nothing else.
pub(crate) struct Behaviour {
    local: bool,
}

impl Behaviour {
    /// For a relay that is reached at these addresses.
    pub(crate) fn new(reached_at: &[Multiaddr]) -> Self {
        Self {
            local: reached_at.iter().all(address::is_lan),
        }
    }

    fn may_dial(&self, address: &Multiaddr) -> bool {
        address::ip(address).is_some() && (self.local || !address::is_lan(address)) && !address::is_relayed(address)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match addresses.iter().all(|address| self.may_dial(address)) {
            true => Ok(Vec::new()),
            false => Err(ConnectionDenied::new(NotPublic)),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_relay_dials_public_addresses_only() {
        let address = |text: &str| text.parse::<Multiaddr>().unwrap();
        let public = Behaviour::new(&[address("/ip4/10.0.0.1/tcp/1"), address("/ip4/8.8.8.8/tcp/1")]);
        let local = Behaviour::new(&[address("/ip4/10.0.0.1/tcp/1")]);
        let cases = [
            ("/ip4/1.1.1.1/udp/1/quic-v1", true, true),
            ("/ip6/2001:db8::1/tcp/1", true, true),
            ("/ip4/127.0.0.1/tcp/1", false, true),
            ("/ip4/169.254.169.254/tcp/80", false, true),
            ("/ip6/fd00::1/tcp/1", false, true),
            ("/dns4/localhost/tcp/1", false, false),
        ];
        for (text, by_public, by_local) in cases {
            let address = address(text);
            assert_eq!(
                (public.may_dial(&address), local.may_dial(&address)),
                (by_public, by_local),
                "{text}"
            );
        }
    }
}
