//! Connections to relays, and through them. A relay is dialled at every address that it may have, and used only once it has
//! told us (identify) from where we come: hole punching needs to know that from the start.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{Later, Owner};
use crate::address::{self, Path};

/// Straight addresses get this much of a start ...
const CIRCUIT_PAUSE: Duration = Duration::from_millis(250);

/// ... and this much more where one of them answers, for the hello.
const HELLO_PAUSE: Duration = Duration::from_secs(1);

/// QUIC alone has this long to reach a relay.
const TCP_PAUSE: Duration = Duration::from_secs(1);

/// A relay that does not identify itself is used after this all the same.
const IDENTIFY_PATIENCE: Duration = Duration::from_secs(3);

/// Relays through which one peer is dialled, each by all of its addresses.
pub(super) const MAX_CIRCUITS: usize = 3;

/// Circuits that are being opened through one relay at once. libp2p drops what goes beyond ten on one connection, at either end.
const MAX_OPENING: usize = 8;

/// What waits for a relay, or is on its way to it.
#[derive(Default)]
pub(super) struct Circuits {
    /// Dials through relays that are not started yet.
    prepared: HashMap<ConnectionId, Circuit>,
    /// Dials through relays that are under way, by relay.
    opening: HashMap<ConnectionId, PeerId>,
    /// Dials of relays.
    relay_dials: HashMap<ConnectionId, PeerId>,
    /// Relays that are dialled over QUIC, and where they may be over TCP.
    fallbacks: HashMap<PeerId, Vec<Multiaddr>>,
    /// Connections whose other end has identified itself, or had the time to.
    identified: HashSet<ConnectionId>,
    /// How often holes were punched again for peers that are connected through relays.
    pub(super) punched: HashMap<PeerId, usize>,
}

impl Circuits {
    /// Whether the other end of a connection has identified itself.
    pub(super) fn is_identified(&self, id: ConnectionId) -> bool {
        self.identified.contains(&id)
    }
}

/// A dial through a relay.
struct Circuit {
    peer_id: PeerId,
    relay: PeerId,
    /// Where the relay may be.
    ways: Vec<Multiaddr>,
    options: DialOpts,
    /// A straight connection was up and was waited for.
    waited: bool,
    /// Straight addresses have had their start: only the relay is waited for.
    due: bool,
}

impl Owner {
    /// Prepares to dial a peer through a relay: `addresses` end in `/p2p/RELAY/p2p-circuit`, with the same relay. Gives what to
    /// wait for, if they are such addresses.
    pub(super) fn prepare_circuit(
        &mut self,
        peer_id: PeerId,
        addresses: &[Multiaddr],
        later: bool,
    ) -> Option<ConnectionId> {
        let relay = address::relay_peer(addresses.first()?)?;
        let ways = addresses
            .iter()
            .filter_map(address::relay_of)
            .map(|(_, way)| way)
            .collect();
        if relay == peer_id || relay == *self.swarm.local_peer_id() {
            return None;
        }
        let options = DialOpts::peer_id(peer_id)
            .condition(PeerCondition::Always)
            // The relay is connected by then: which of its addresses this names does not matter.
            .addresses(addresses[..1].to_vec())
            .build();
        let id = options.connection_id();
        let circuit = Circuit {
            peer_id,
            relay,
            ways,
            options,
            waited: false,
            due: false,
        };
        self.circuits.prepared.insert(id, circuit);
        self.start_circuit_after(id, if later { CIRCUIT_PAUSE } else { Duration::ZERO });
        Some(id)
    }

    fn start_circuit_after(&mut self, id: ConnectionId, pause: Duration) {
        self.later.spawn(async move {
            tokio::time::sleep(pause).await;
            Later::Circuit(id)
        });
    }

    /// Dials through a relay once it has room for it, or dials the relay first. Nothing is dialled for a peer that was reached
    /// meanwhile.
    pub(super) fn start_circuit(&mut self, id: ConnectionId) {
        if !self.dialling.is_wanted(id) {
            self.circuits.prepared.remove(&id);
            self.dialling.forget(id);
            return;
        }
        let Some(circuit) = self.circuits.prepared.get(&id) else {
            return;
        };
        let straight = self.straight_connections(circuit.peer_id).next().is_some();
        let Some(circuit) = self.circuits.prepared.get_mut(&id) else {
            return;
        };
        if straight && !circuit.waited {
            circuit.waited = true;
            self.start_circuit_after(id, HELLO_PAUSE);
            return;
        }
        circuit.due = true;
        let (relay, ways) = (circuit.relay, circuit.ways.clone());
        if self.relay_is_ready(relay) {
            self.dial_circuits(relay);
        } else {
            self.dial_relay(relay, &ways);
        }
    }

    /// Dials as many of those that are due as the relay has room for: first where a request waits, then in the order in which
    /// they were prepared.
    fn dial_circuits(&mut self, relay: PeerId) {
        while self.circuits.opening.values().filter(|by| **by == relay).count() < MAX_OPENING {
            let due = self.circuits.prepared.iter();
            let due = due.filter(|(_, circuit)| circuit.relay == relay && circuit.due);
            let next = due
                .map(|(id, _)| *id)
                .min_by_key(|id| (!self.dialling.is_awaited(*id), *id));
            let Some(circuit) = next.and_then(|id| self.circuits.prepared.remove(&id)) else {
                return;
            };
            let id = circuit.options.connection_id();
            if !self.dialling.is_wanted(id) {
                self.dialling.forget(id);
                continue;
            }
            match self.swarm.dial(circuit.options) {
                Ok(()) => drop(self.circuits.opening.insert(id, relay)),
                Err(error) => self.handle_dial_error(id, error),
            }
        }
    }

    /// A dial is over, for good or ill: if it was one through a relay, another has its room.
    pub(super) fn circuit_ended(&mut self, id: ConnectionId) {
        if let Some(relay) = self.circuits.opening.remove(&id)
            && self.relay_is_ready(relay)
        {
            self.dial_circuits(relay);
        }
    }

    /// Whether a connection to the relay is up and identified.
    pub(super) fn relay_is_ready(&self, relay: PeerId) -> bool {
        self.straight_connections(relay)
            .any(|id| self.circuits.identified.contains(&id))
    }

    /// The connections to a relay or another peer that can be used and go through no relay.
    pub(super) fn straight_connections(&self, peer_id: PeerId) -> impl Iterator<Item = ConnectionId> {
        let straight = |entry: &&super::Entry| entry.session.path() != Path::Relayed && entry.session.is_usable();
        let sessions = self.sessions.values().filter(straight);
        sessions
            .filter(move |entry| entry.session.peer_id == peer_id)
            .map(|entry| entry.session.id)
    }

    /// Connects to a relay, unless that is done or under way. TCP is for where QUIC leads nowhere: holes can be punched only
    /// where both ends know how they look over the same of the two.
    pub(super) fn dial_relay(&mut self, relay: PeerId, addresses: &[Multiaddr]) {
        if self.straight_connections(relay).next().is_some() || self.is_dialling_relay(relay) {
            return;
        }
        let ways = address::ways_to_relay(addresses).into_iter();
        let (quic, tcp): (Vec<_>, Vec<_>) = ways.partition(|way| Path::of(way) == Path::Quic);
        if quic.is_empty() {
            self.start_relay_dial(relay, tcp);
            return;
        }
        self.circuits.fallbacks.insert(relay, tcp);
        self.later.spawn(async move {
            tokio::time::sleep(TCP_PAUSE).await;
            Later::RelayOverTcp(relay)
        });
        self.start_relay_dial(relay, quic);
    }

    fn is_dialling_relay(&self, relay: PeerId) -> bool {
        self.circuits.relay_dials.values().any(|dialled| *dialled == relay)
    }

    fn start_relay_dial(&mut self, relay: PeerId, ways: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(relay)
            .condition(PeerCondition::Always)
            .addresses(ways)
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => drop(self.circuits.relay_dials.insert(id, relay)),
            Err(error) => {
                tracing::debug!(%relay, %error, "the relay was not dialled");
                self.relay_dial_failed(relay);
            }
        }
    }

    /// A relay that was dialled over QUIC alone has had its time.
    pub(super) fn dial_relay_over_tcp(&mut self, relay: PeerId) {
        if let Some(ways) = self.circuits.fallbacks.remove(&relay) {
            self.start_relay_dial(relay, ways);
        }
    }

    /// A connection came up; if to a relay, it has a while to say who it is.
    pub(super) fn note_relay_connected(&mut self, id: ConnectionId) {
        if let Some(relay) = self.circuits.relay_dials.remove(&id) {
            self.circuits.fallbacks.remove(&relay);
            self.later.spawn(async move {
                tokio::time::sleep(IDENTIFY_PATIENCE).await;
                Later::Identified(id)
            });
        }
    }

    /// The other end of a connection has said who it is. What waited for a relay goes on.
    pub(super) fn handle_identified(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get(&id) else { return };
        if entry.session.path() == Path::Relayed || !self.circuits.identified.insert(id) {
            return;
        }
        let relay = entry.session.peer_id;
        self.dial_circuits(relay);
        self.reserve_at(relay);
    }

    fn waiting_for(&self, relay: PeerId) -> Vec<ConnectionId> {
        let prepared = self.circuits.prepared.iter();
        prepared
            .filter(|(_, circuit)| circuit.relay == relay)
            .map(|(id, _)| *id)
            .collect()
    }

    /// A dial failed; says whether it was one of a relay.
    pub(super) fn handle_relay_dial_error(&mut self, id: ConnectionId) -> bool {
        let relay = self.circuits.relay_dials.remove(&id);
        if let Some(relay) = relay {
            self.relay_dial_failed(relay);
        }
        relay.is_some()
    }

    fn relay_dial_failed(&mut self, relay: PeerId) {
        if self.circuits.fallbacks.contains_key(&relay) {
            self.dial_relay_over_tcp(relay);
        } else if !self.is_dialling_relay(relay) && self.straight_connections(relay).next().is_none() {
            self.relay_failed(relay);
        }
    }

    /// A connection that may have been to a relay is gone.
    pub(super) fn handle_relay_closed(&mut self, id: ConnectionId, relay: PeerId) {
        self.circuits.identified.remove(&id);
        if self.straight_connections(relay).next().is_none() {
            self.relay_failed(relay);
        }
    }

    /// There is no connection to a relay: what waited for it waits in vain.
    fn relay_failed(&mut self, relay: PeerId) {
        for id in self.waiting_for(relay) {
            self.circuits.prepared.remove(&id);
            self.dialling.forget(id);
            self.dial_ended(id);
        }
        self.relay_lost(relay);
    }
}
