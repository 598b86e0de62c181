//! Which connections stay: one between each two nodes, and few enough that others can come. Opens none.

use std::{collections::HashMap, sync::Arc};

use futures::future::join_all;
use libp2p::{PeerId, swarm::ConnectionId};
use ruma::ServerName;

use super::{Later, Owner};
use crate::{
    address::{self, Path},
    peers::Peer,
};

impl Owner {
    /// Retires the connection that was silent for longest when few places are left, so that new ones can come: those of
    /// contacts and members of topics last.
    pub(super) fn make_room(&self) {
        let places = self.shared.limits.connections as usize;
        if self.sessions.len() <= places - places / 8 {
            return;
        }
        let known = self
            .sessions
            .values()
            .filter_map(|entry| Some((&entry.session, entry.peer.as_ref()?)));
        let spare = known.filter(|(session, _)| session.is_usable());
        let wanted = |server| self.contacts.contains(server) || self.company.has(server);
        let silent = spare.min_by_key(|(session, peer)| (wanted(&peer.server_name), session.heard()));
        if let Some((session, _)) = silent {
            tracing::debug!("many connections: the one that was silent for longest goes");
            session.retire();
        }
    }

    /// Checks a server's connections when it gets another: one may be what is left of a peer that restarted, and the newest
    /// may not be known at the other end yet. What is alive is settled afterwards.
    pub(super) fn check_all(&mut self, peer: &Arc<Peer>) {
        let sessions = peer.sessions();
        if sessions.len() < 2 {
            return;
        }
        let server = peer.server_name.clone();
        self.later.spawn(async move {
            join_all(sessions.iter().map(|session| session.probe())).await;
            Later::Settle(server)
        });
    }

    /// Leaves one connection between this node and each of the server's. Of the two ends, the one with the lower PeerId
    /// chooses, so that both never close what the other keeps. A node's former PeerId has nobody to choose for it.
    pub(super) fn settle(&mut self, server: &ServerName) {
        let Some(peer) = self.peers.get(server) else { return };
        let local = *self.swarm.local_peer_id();
        let mut kept: HashMap<[u8; 32], PeerId> = HashMap::new();
        let usable = peer.sessions().into_iter().filter(|session| session.is_usable());
        for session in usable {
            let Some(verified) = session.verified() else { continue };
            let node = *verified.node_key.as_bytes();
            match kept.get(&node) {
                None => drop(kept.insert(node, session.peer_id)),
                Some(best) if *best != session.peer_id || local < session.peer_id => session.retire(),
                Some(_) => {}
            }
        }
    }

    /// A connection went dead: that may be because of its relay, or of the network, and then relays are out of reach as well.
    pub(super) fn doubt_relays(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get(&id) else { return };
        let relay = address::relay_of(&entry.session.address).filter(|_| entry.session.path() == Path::Relayed);
        match relay {
            Some((relay, _)) => self.doubt_relay(relay),
            None => self.doubt_all_relays(),
        }
    }
}
