//! Refuses connections from a host that has too many strangers here already: whoever floods shuts out itself. Counts only
//! those who dialled us and have not said who they are; judges no address otherwise.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
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

/// A host has too many strangers here.
#[derive(Debug, thiserror::Error)]
#[error("too many strangers from one host")]
pub(crate) struct TooManyStrangers;

/// Counts strangers by host. What comes through relays counts as one host, because nobody can tell.
pub(crate) struct Behaviour {
    per_host: usize,
    strangers: HashMap<ConnectionId, Option<IpAddr>>,
    hosts: HashMap<Option<IpAddr>, usize>,
}

impl Behaviour {
    pub(crate) fn new(per_host: usize) -> Self {
        Self {
            per_host,
            strangers: HashMap::new(),
            hosts: HashMap::new(),
        }
    }

    /// The peer said who it is, or is gone.
    pub(crate) fn forget(&mut self, id: ConnectionId) {
        let Some(host) = self.strangers.remove(&id) else { return };
        if let Some(count) = self.hosts.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&host);
            }
        }
    }
}

/// One host may have any address of its IPv6 network.
pub(crate) fn host(address: &Multiaddr) -> Option<IpAddr> {
    match address::ip(address)? {
        IpAddr::V4(ip) => Some(ip.into()),
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let host = host(remote);
        let count = self.hosts.entry(host).or_default();
        if *count >= self.per_host {
            return Err(ConnectionDenied::new(TooManyStrangers));
        }
        *count += 1;
        self.strangers.insert(id, host);
        Ok(())
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

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.forget(closed.connection_id),
            FromSwarm::ListenFailure(failure) => self.forget(failure.connection_id),
            _ => {}
        }
    }

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
    fn strangers_are_counted_by_host_until_they_are_known_or_gone() {
        let mut gate = Behaviour::new(2);
        let mut next = 0;
        let local: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let mut knock = |gate: &mut Behaviour, remote: &str| {
            next += 1;
            let id = ConnectionId::new_unchecked(next);
            let remote = remote.parse().unwrap();
            gate.handle_pending_inbound_connection(id, &local, &remote).map(|()| id)
        };
        let cases = [
            (
                "/ip4/192.0.2.1/tcp/1",
                "/ip4/192.0.2.1/udp/2/quic-v1",
                "/ip4/192.0.2.2/tcp/1",
            ),
            (
                "/ip6/2001:db8::1/tcp/1",
                "/ip6/2001:db8::ffff:2/tcp/1",
                "/ip6/2001:db8:0:1::1/tcp/1",
            ),
            (
                "/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
                "/memory/1",
                "/ip4/192.0.2.3/tcp/1",
            ),
        ];
        for (host, same_host, other_host) in cases {
            let first = knock(&mut gate, host).unwrap();
            knock(&mut gate, same_host).unwrap();
            assert!(knock(&mut gate, host).is_err() && knock(&mut gate, same_host).is_err());
            let other = knock(&mut gate, other_host).unwrap();
            gate.forget(other);
            gate.forget(first);
            gate.forget(first);
            knock(&mut gate, same_host).unwrap();
            assert!(knock(&mut gate, host).is_err());
        }
        let all: Vec<_> = gate.strangers.keys().copied().collect();
        all.into_iter().for_each(|id| gate.forget(id));
        assert!(gate.hosts.is_empty(), "nothing is kept of those who are gone");
    }
}
