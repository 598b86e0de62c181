//! Notices when the network around us changes, and keeps true where others reach us from outside. Dials nobody itself.

use std::{collections::HashSet, time::Duration};

use libp2p::{Multiaddr, PeerId, upnp};
use tokio::time::Instant;

use super::{Later, Owner};
use crate::address;

/// Interfaces come up and go in groups; the last is waited for this long.
const CHANGE_PAUSE: Duration = Duration::from_millis(250);

/// Connections that do not answer within this after a change are taken to be of the network before.
const CHANGE_PATIENCE: Duration = Duration::from_millis(1500);

/// Whoever is lost this soon after a change is dialled again at once.
const CHANGE_AFTERMATH: Duration = Duration::from_secs(15);

/// How long strangers are asked, after something changed, whether they reach us.
const LOOK_AROUND: Duration = Duration::from_secs(20);

/// Addresses remembered from networks before.
const MAX_FORMER: usize = 32;

/// What is known about the network around us.
#[derive(Default)]
pub(super) struct Surroundings {
    /// External addresses that somebody gave us, for good.
    configured: Vec<Multiaddr>,
    /// Those that the router gave us.
    mapped: HashSet<Multiaddr>,
    /// Those that were confirmed on networks before. One that is seen again needs no second confirmation; libp2p would not
    /// ask for it.
    former: HashSet<Multiaddr>,
    /// A change is waited out.
    changing: bool,
    changed: Option<Instant>,
    /// How often we began to look around, so that only the last ends it.
    looks: u64,
}

impl Surroundings {
    /// Whether the network changed a moment ago.
    pub(super) fn is_new(&self) -> bool {
        self.changed.is_some_and(|changed| changed.elapsed() < CHANGE_AFTERMATH)
    }
}

impl Owner {
    /// Addresses under which others reach us though no interface has them.
    pub(super) fn set_external(&mut self, addresses: &[Multiaddr]) {
        for address in addresses {
            self.swarm.add_external_address(address.clone());
        }
        self.surroundings.configured = addresses.to_vec();
    }

    /// An interface got an address, or lost one.
    pub(super) fn handle_interface(&mut self, address: &Multiaddr) {
        if address::is_relayed(address) || address::is_loopback(address) || self.surroundings.changing {
            return;
        }
        self.surroundings.changing = true;
        self.later.spawn(async {
            tokio::time::sleep(CHANGE_PAUSE).await;
            Later::NetworkChanged
        });
    }

    /// The network is another: connections that belong to the one before are given up, and what could not be reached is tried
    /// at once.
    pub(super) fn handle_network_changed(&mut self) {
        self.surroundings.changing = false;
        self.surroundings.changed = Some(Instant::now());
        tracing::info!("the network changed");
        self.doubt_external();
        for (id, entry) in &self.sessions {
            if entry.peer.is_some() || self.circuits.is_identified(*id) {
                let session = entry.session.clone();
                self.shared
                    .tasks
                    .spawn(async move { session.probe_within(CHANGE_PATIENCE).await });
            }
        }
        self.reservations.forgive();
        self.hold_places();
        self.dialling.forgive();
        self.dht.forgive();
        self.look_up_contacts();
        self.seek_company_anew();
        self.look_around();
    }

    /// What was confirmed elsewhere is no longer said to be ours.
    fn doubt_external(&mut self) {
        let known = &self.surroundings;
        let doubtful: Vec<_> = self
            .swarm
            .external_addresses()
            .filter(|address| !address::is_relayed(address))
            .filter(|address| !known.configured.contains(address) && !known.mapped.contains(address))
            .cloned()
            .collect();
        for address in doubtful {
            self.swarm.remove_external_address(&address);
            if self.surroundings.former.len() < MAX_FORMER {
                self.surroundings.former.insert(address);
            }
        }
        self.publish_listening();
    }

    /// Asks relays for a while whether they reach us straight.
    pub(super) fn look_around(&mut self) {
        self.surroundings.looks += 1;
        let look = self.surroundings.looks;
        self.swarm.behaviour_mut().reachability.wake();
        self.later.spawn(async move {
            tokio::time::sleep(LOOK_AROUND).await;
            Later::LookedAround(look)
        });
    }

    pub(super) fn handle_looked_around(&mut self, look: u64) {
        if self.surroundings.looks == look {
            self.swarm.behaviour_mut().reachability.doze();
        }
    }

    /// Somebody whom we dialled saw us come from `address`.
    pub(super) fn handle_observed(&mut self, address: Multiaddr) {
        if !address::is_dialable(&address) || address::is_relayed(&address) {
            return;
        }
        if self.surroundings.former.remove(&address) {
            self.swarm.add_external_address(address.clone());
            self.publish_listening();
        }
        self.swarm.behaviour_mut().reachability.note_observed(address);
    }

    /// What the router says. libp2p tells the swarm of the address itself.
    pub(super) fn handle_upnp(&mut self, event: &upnp::Event) {
        match event {
            upnp::Event::NewExternalAddr { external_addr, .. } => {
                self.surroundings.mapped.insert(external_addr.clone());
            }
            upnp::Event::ExpiredExternalAddr { external_addr, .. } => {
                self.surroundings.mapped.remove(external_addr);
            }
            upnp::Event::GatewayNotFound => tracing::debug!("no router offers UPnP"),
            upnp::Event::NonRoutableGateway => tracing::debug!("the router has no public address itself"),
        }
    }

    /// The network itself may be gone.
    pub(super) fn doubt_all_relays(&mut self) {
        let relays = self.sessions.values().filter(|entry| {
            let known = entry.peer.is_some() || !self.circuits.is_identified(entry.session.id);
            !known && entry.session.dialled
        });
        for session in relays.map(|entry| entry.session.clone()) {
            self.shared.tasks.spawn(async move { session.probe().await });
        }
    }

    /// A path through a relay failed: the relay itself may be gone.
    pub(super) fn doubt_relay(&mut self, relay: PeerId) {
        for id in self.straight_connections(relay).collect::<Vec<_>>() {
            if let Some(entry) = self.sessions.get(&id) {
                let session = entry.session.clone();
                self.shared.tasks.spawn(async move { session.probe().await });
            }
        }
    }
}
