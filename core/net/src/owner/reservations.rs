//! Keeps places at relays: two of those that we were told to use, so that losing one loses nothing. When one is lost, another
//! relay steps in at once, and the lost one is asked again after a pause: libp2p renews a place that lives, and forgets one
//! that died with its relay.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol};

use super::{Later, Owner, dialling::pause};
use crate::{PeerAddresses, address};

/// Places to hold, and while this node rests.
const PLACES: usize = 2;
const RESTING_PLACES: usize = 1;

/// The longest pause before a relay is asked again.
const MAX_REST: Duration = Duration::from_secs(10 * 60);

/// One relay.
struct Relay {
    peer_id: PeerId,
    /// Its addresses, without `/p2p`.
    addresses: Vec<Multiaddr>,
    place: Place,
    failures: u32,
}

/// What we have at a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing, and it may be asked.
    None,
    /// Nothing, and it is not asked for a while.
    Resting,
    /// The relay is being dialled.
    Connecting,
    /// The relay is being asked.
    Asked(ListenerId),
    /// A place.
    Held(ListenerId),
}

impl Place {
    fn listener(self) -> Option<ListenerId> {
        match self {
            Self::Asked(listener) | Self::Held(listener) => Some(listener),
            Self::None | Self::Resting | Self::Connecting => None,
        }
    }
}

/// The relays to hold places at; their number is the configuration's.
#[derive(Default)]
pub(super) struct Reservations(Vec<Relay>);

impl Reservations {
    fn find(&mut self, relay: PeerId) -> Option<&mut Relay> {
        self.0.iter_mut().find(|known| known.peer_id == relay)
    }

    /// A listener says where it listens. If it is one of ours, the relay gave us a place.
    pub(super) fn granted(&mut self, listener: ListenerId) {
        if let Some(relay) = self.0.iter_mut().find(|relay| relay.place == Place::Asked(listener)) {
            relay.place = Place::Held(listener);
            relay.failures = 0;
        }
    }

    /// Whether a place may still be granted soon.
    pub(super) fn is_unsettled(&self) -> bool {
        let asking = |relay: &Relay| matches!(relay.place, Place::Connecting | Place::Asked(_));
        self.0.iter().any(asking)
    }

    /// The network is another: what failed before may work now.
    pub(super) fn forgive(&mut self) {
        for relay in &mut self.0 {
            relay.failures = 0;
            if relay.place == Place::Resting {
                relay.place = Place::None;
            }
        }
    }
}

impl Owner {
    /// Uses these relays, which end in `/p2p/RELAY`, from now on, and no others.
    pub(super) fn set_relays(&mut self, relays: &[Multiaddr]) {
        let relays = PeerAddresses::grouped(relays.iter().filter_map(address::relay_of));
        let relays = relays.into_iter().map(|PeerAddresses { peer_id, addresses }| Relay {
            peer_id,
            addresses,
            place: Place::None,
            failures: 0,
        });
        let mut wanted: Vec<Relay> = relays.collect();
        for old in std::mem::take(&mut self.reservations.0) {
            match wanted.iter_mut().find(|relay| relay.peer_id == old.peer_id) {
                Some(relay) => (relay.place, relay.failures) = (old.place, old.failures),
                // The place ends with its connection. libp2p can fail over a listener that is removed while its place is
                // being renewed.
                None if old.place.listener().is_some() => {
                    let connections: Vec<_> = self.straight_connections(old.peer_id).collect();
                    for id in connections {
                        self.swarm.close_connection(id);
                    }
                }
                None => {}
            }
        }
        self.reservations.0 = wanted;
        self.hold_places();
    }

    /// Asks relays for as many places as are missing: those that failed least first.
    pub(super) fn hold_places(&mut self) {
        let wanted = if self.rest.is_on() { RESTING_PLACES } else { PLACES };
        loop {
            let relays = &self.reservations.0;
            let held = relays
                .iter()
                .filter(|relay| !matches!(relay.place, Place::None | Place::Resting))
                .count();
            let spare = relays.iter().filter(|relay| relay.place == Place::None);
            let Some(next) = spare.min_by_key(|relay| relay.failures).filter(|_| held < wanted) else {
                return;
            };
            let (relay, addresses) = (next.peer_id, next.addresses.clone());
            if let Some(next) = self.reservations.find(relay) {
                next.place = Place::Connecting;
            }
            if self.relay_is_ready(relay) {
                self.reserve_at(relay);
            } else {
                // Fails at once where there is no way at all; then the relay rests, and the loop ends.
                self.dial_relay(relay, &addresses);
            }
        }
    }

    /// A relay is connected and knows who we are: it is asked for a place, if we want one there.
    pub(super) fn reserve_at(&mut self, relay: PeerId) {
        let Some(wanted) = self
            .reservations
            .find(relay)
            .filter(|relay| relay.place == Place::Connecting)
        else {
            return;
        };
        let Some(address) = wanted.addresses.first().map(|address| place_at(address, relay)) else {
            return;
        };
        match self.swarm.listen_on(address) {
            Ok(listener) => {
                wanted.place = Place::Asked(listener);
                self.look_around();
            }
            Err(error) => {
                tracing::warn!(%relay, %error, "the relay cannot be asked");
                self.relay_lost(relay);
            }
        }
    }

    /// A listener ended. If a place at a relay went with it, another is asked.
    pub(super) fn handle_listener_closed(&mut self, listener: ListenerId) {
        let lost = self
            .reservations
            .0
            .iter()
            .find(|relay| relay.place.listener() == Some(listener));
        if let Some(relay) = lost.map(|relay| relay.peer_id) {
            tracing::info!(%relay, "no place at the relay now");
            self.rest(relay);
        }
    }

    /// There is no connection to a relay. A place that was held says so itself, when its listener closes.
    pub(super) fn relay_lost(&mut self, relay: PeerId) {
        if self
            .reservations
            .find(relay)
            .is_some_and(|relay| relay.place == Place::Connecting)
        {
            self.rest(relay);
        }
    }

    fn rest(&mut self, relay: PeerId) {
        let redial = self.shared.timing.redial;
        let Some(lost) = self.reservations.find(relay) else {
            return;
        };
        lost.place = Place::Resting;
        let pause = pause(redial, lost.failures).min(MAX_REST);
        lost.failures = lost.failures.saturating_add(1);
        self.later.spawn(async move {
            tokio::time::sleep(pause).await;
            Later::Rested(relay)
        });
        self.hold_places();
        self.publish_listening();
    }

    /// The relay to stay with while this node rests: one that holds a place, if any does.
    pub(super) fn keep_one_place(&self) -> Option<PeerId> {
        let held = |relay: &&Relay| matches!(relay.place, Place::Held(_));
        self.reservations.0.iter().find(held).map(|relay| relay.peer_id)
    }

    /// A relay that failed may be asked again.
    pub(super) fn handle_rested(&mut self, relay: PeerId) {
        if let Some(relay) = self
            .reservations
            .find(relay)
            .filter(|relay| relay.place == Place::Resting)
        {
            relay.place = Place::None;
        }
        self.hold_places();
    }
}

/// The address to listen on for a place at a relay.
fn place_at(address: &Multiaddr, relay: PeerId) -> Multiaddr {
    address.clone().with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}
