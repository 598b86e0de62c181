//! Where peers listen: what they say of it, what is remembered of it, and whether a relayed connection can be replaced by
//! a straight one. Dials only those who are connected already.

use std::sync::Arc;

use libp2p::{Multiaddr, identify, swarm::ConnectionId};

use super::{Later, Owner};
use crate::{
    address::{self, Path},
    peers::Peer,
    session::Session,
};

/// How often one connection's addresses are kept: when it comes up, and when they change a few times after.
const MAX_KEPT: u8 = 8;

/// A relayed connection that no straight one has replaced after so many times [`crate::Timing::redial`] is made once more, because
/// libp2p punches holes when one is made, and then never again; and a last time after the second.
const PUNCH_AGAIN: [u32; 2] = [10, 60];

/// Addresses that a peer may name as its own.
const MAX_NAMED_ADDRESSES: usize = 8;

impl Owner {
    pub(super) fn handle_identify(&mut self, event: identify::Event) {
        let (connection_id, peer_id, info) = match event {
            identify::Event::Received {
                connection_id,
                peer_id,
                info,
                ..
            } => (connection_id, peer_id, info),
            identify::Event::Error { connection_id, .. } => return self.handle_identified(connection_id),
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => return,
        };
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
            dht.identified(connection_id, peer_id, &info);
        }
        let Some(entry) = self.sessions.get_mut(&connection_id) else {
            return;
        };
        let straight = entry.session.dialled && entry.session.path() != Path::Relayed;
        let (session, peer) = (entry.session.clone(), entry.peer.clone());
        self.note_named(connection_id, info.listen_addrs);
        if straight {
            self.handle_observed(info.observed_addr);
        }
        self.handle_identified(connection_id);
        if let Some(peer) = peer {
            self.keep_addresses(connection_id);
            self.seek_straight_path(&session, &peer);
        }
    }

    /// Where a peer says that it listens.
    fn note_named(&mut self, id: ConnectionId, addresses: Vec<Multiaddr>) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let here = address::is_loopback(&entry.session.address);
        let named = addresses.into_iter().map(|address| address::split_peer_id(address).0);
        let named = named.filter(|address| address::is_dialable(address) && (here || !address::is_loopback(address)));
        entry.named.extend(named.take(MAX_NAMED_ADDRESSES));
    }

    /// Remembers where a known peer was reached or says that it listens.
    pub(super) fn keep_addresses(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(peer) = &entry.peer else { return };
        let mut addresses = std::mem::take(&mut entry.named);
        addresses.dedup();
        if addresses.is_empty() {
            return;
        }
        let (server, peer_id) = (peer.server_name.clone(), entry.session.peer_id);
        let news = self.dialling.book.add(&server, peer_id, &addresses);
        // A peer could name new addresses all day, each of them a write.
        if (!news && entry.kept > 0) || entry.kept >= MAX_KEPT {
            return;
        }
        entry.kept += 1;
        let known = self
            .dialling
            .book
            .lookup(&server)
            .iter()
            .find(|known| known.peer_id == peer_id);
        let Some(addresses) = known.cloned() else { return };
        let shared = self.shared.clone();
        self.later.spawn(async move {
            if let Err(error) = shared.own.directory.keep_addresses(&server, addresses).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "addresses were not kept");
            }
            Later::Done
        });
    }

    /// A relayed connection is a makeshift: whoever dialled it dials the straight addresses of the same node, once it
    /// knows some.
    pub(super) fn seek_straight_path(&mut self, session: &Session, peer: &Peer) {
        let same_node = |other: &Arc<Session>| other.peer_id == session.peer_id && other.path() != Path::Relayed;
        if session.path() != Path::Relayed || !session.dialled || peer.sessions().iter().any(same_node) {
            return;
        }
        let known = self.dialling.book.lookup(&peer.server_name);
        let known = known.iter().filter(|known| known.peer_id == session.peer_id);
        let addresses = known.flat_map(|known| &known.addresses);
        let straight: Vec<_> = addresses
            .filter(|address| !address::is_relayed(address))
            .cloned()
            .collect();
        self.dial_beside(session.peer_id, straight);
    }

    /// Gives a straight path to a peer that was dialled through a relay another chance later.
    pub(super) fn punch_again_later(&mut self, session: &Session) {
        if session.path() != Path::Relayed {
            self.circuits.punched.remove(&session.peer_id);
        } else if session.dialled {
            let tries = self.circuits.punched.entry(session.peer_id).or_default();
            let Some(times) = PUNCH_AGAIN.get(*tries) else { return };
            *tries += 1;
            let (pause, id) = (self.shared.timing.redial * *times, session.id);
            self.later.spawn(async move {
                tokio::time::sleep(pause).await;
                Later::PunchAgain(id)
            });
        }
    }

    /// A relayed connection had its time to be replaced.
    pub(super) fn punch_again(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get(&id).filter(|entry| entry.session.is_usable()) else {
            return;
        };
        let (peer_id, address) = (entry.session.peer_id, entry.session.address.clone());
        let mut others = self.sessions.values().map(|entry| &entry.session);
        let straight = others.any(|other| other.peer_id == peer_id && other.path() != Path::Relayed);
        if !straight && !self.rest.is_on() {
            self.dial_beside(peer_id, vec![address]);
        }
    }
}
