//! Keeps a place at each relay that we were told to use. A place that is lost is asked for again: libp2p renews one that
//! lives, and forgets one that died with its relay.

use libp2p::{Multiaddr, core::transport::ListenerId};

use super::{Later, Owner, dialling::pause};

/// One relay.
struct Reservation {
    /// Ends in `/p2p/RELAY/p2p-circuit`.
    address: Multiaddr,
    listener: Option<ListenerId>,
    failures: u32,
}

/// The relays to hold a place at; their number is the configuration's.
#[derive(Default)]
pub(super) struct Reservations(Vec<Reservation>);

impl Reservations {
    /// A listener says where it listens. If it is one of ours, the relay gave us a place.
    pub(super) fn granted(&mut self, listener: ListenerId) {
        if let Some(reservation) = self.0.iter_mut().find(|relay| relay.listener == Some(listener)) {
            reservation.failures = 0;
        }
    }
}

impl Owner {
    /// Asks for a place at a relay from now on.
    pub(super) fn add_reservation(&mut self, address: Multiaddr) {
        if self.reservations.0.iter().any(|relay| relay.address == address) {
            return;
        }
        self.reservations.0.push(Reservation {
            address,
            listener: None,
            failures: 0,
        });
        self.reserve(self.reservations.0.len() - 1);
    }

    /// Asks a relay for a place.
    pub(super) fn reserve(&mut self, index: usize) {
        let Some(reservation) = self.reservations.0.get_mut(index) else {
            return;
        };
        match self.swarm.listen_on(reservation.address.clone()) {
            Ok(listener) => reservation.listener = Some(listener),
            Err(error) => {
                tracing::warn!(relay = %reservation.address, %error, "the relay cannot be asked");
                self.reserve_later(index);
            }
        }
    }

    /// A listener ended. If a place at a relay went with it, asks again after a pause.
    pub(super) fn handle_listener_closed(&mut self, listener: ListenerId) {
        let lost = self
            .reservations
            .0
            .iter()
            .position(|relay| relay.listener == Some(listener));
        if let Some(index) = lost {
            tracing::info!(relay = %self.reservations.0[index].address, "no place at the relay now");
            self.reserve_later(index);
        }
    }

    fn reserve_later(&mut self, index: usize) {
        let Some(reservation) = self.reservations.0.get_mut(index) else {
            return;
        };
        reservation.listener = None;
        let pause = pause(self.shared.timing.redial, reservation.failures);
        reservation.failures = reservation.failures.saturating_add(1);
        self.later.spawn(async move {
            tokio::time::sleep(pause).await;
            Later::Reserve(index)
        });
    }
}
