//! Which connections stay: one between each two nodes, those of the budget, and few enough that others can come. Opens none.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use libp2p::{PeerId, swarm::ConnectionId};
use ruma::{OwnedServerName, ServerName};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Later, Owner};
use crate::{
    address::{self, Path},
    budget::{self, Candidate},
    peers::Peer,
    session::Farewell,
};

/// Servers of which it is remembered with whom something was said last.
const SPOKEN: usize = 16;

/// Between two times that these are remembered, but for the end.
const REMEMBER_PAUSE: Duration = Duration::from_secs(10 * 60);

/// For them to be remembered at the end.
const REMEMBER_DEADLINE: Duration = Duration::from_secs(1);

/// Servers that were let go and not met since. Of more, it is not said that they are out of reach.
const MAX_LET_GO: usize = 4096;

/// What the choice of connections remembers.
#[derive(Default)]
pub(super) struct Keeping {
    /// The contacts, the most important first.
    order: Vec<OwnedServerName>,
    /// Who was let go by either end, and not met or missed since.
    let_go: HashSet<OwnedServerName>,
    /// When the next choice is due.
    due: Option<Instant>,
    /// With whom something was said last, as it was remembered, and when.
    remembered: Vec<OwnedServerName>,
    remembered_at: Option<Instant>,
}

impl Keeping {
    /// The contacts are these, the most important first.
    pub(super) fn set_order(&mut self, contacts: &[OwnedServerName]) {
        self.order = contacts.to_vec();
    }

    /// A contact is new, and nothing is more important now.
    pub(super) fn put_first(&mut self, contact: &OwnedServerName) {
        self.order.retain(|known| known != contact);
        self.order.insert(0, contact.clone());
    }

    /// A server is connected.
    pub(super) fn note_met(&mut self, server: &ServerName) {
        self.let_go.remove(server);
    }

    /// A server was let go, by either end.
    pub(super) fn note_let_go(&mut self, server: &ServerName) {
        if self.let_go.len() < MAX_LET_GO {
            self.let_go.insert(server.to_owned());
        }
    }

    /// A server is out of reach; says whether it was thought to be in reach, though not connected.
    pub(super) fn note_missed(&mut self, server: &ServerName) -> bool {
        self.let_go.remove(server)
    }
}

impl Owner {
    /// Lets those go that are beyond the budget and have been silent for long enough.
    pub(super) fn review(&mut self) {
        // A node that rests has a rule of its own.
        if self.rest.is_on() || self.stop.is_cancelled() {
            return;
        }
        // Whoever is let go must know before where we are found: places at relays are told when they are given.
        if self.reservations.is_unsettled() {
            return self.review_soon();
        }
        let now = Instant::now();
        let (peers, candidates): (Vec<_>, Vec<_>) = self.candidates().into_iter().unzip();
        let choice = budget::choose(&candidates, &self.shared.limits.budget, now);
        for index in choice.let_go {
            tracing::debug!(server = %peers[index].server_name, "nothing is said on a connection: it goes");
            for session in peers[index].sessions() {
                session.retire(Farewell::Idle);
            }
        }
        if let Some(due) = choice.due {
            self.review_by(due);
        }
        if self.keeping.remembered_at.is_none_or(|at| at + REMEMBER_PAUSE <= now) {
            self.remember_spoken();
        }
    }

    /// The servers that are connected and not going yet.
    fn candidates(&self) -> Vec<(Arc<Peer>, Candidate)> {
        let spoken = self.peers.spoken();
        let order: HashMap<&OwnedServerName, usize> = self.keeping.order.iter().zip(0..).collect();
        let topics: Vec<_> = self.company.members().collect();
        let candidate = |peer: Arc<Peer>| {
            let sessions = peer.sessions();
            let usable = || sessions.iter().filter(|session| session.is_usable());
            let name = &peer.server_name;
            let candidate = Candidate {
                since: usable().map(|session| session.began()).min()?,
                heard: usable().map(|session| session.heard()).max()?,
                spoken: spoken.get(name).copied(),
                contact: order.get(name).copied(),
                busy: peer.is_busy(),
                topics: (0..topics.len())
                    .filter(|topic| topics[*topic].contains(name) && !self.company.is_silent(name))
                    .collect(),
            };
            Some((peer, candidate))
        };
        self.peers.all().into_iter().filter_map(candidate).collect()
    }

    /// Has the choice made again then, or sooner if that is due already.
    pub(super) fn review_by(&mut self, at: Instant) {
        if self.keeping.due.is_some_and(|due| due <= at) {
            return;
        }
        self.keeping.due = Some(at);
        self.later.spawn(async move {
            sleep_until(at).await;
            Later::Review(at)
        });
    }

    /// Visitors have been there for as long as they may be silent.
    pub(super) fn review_soon(&mut self) {
        self.review_by(Instant::now() + self.shared.limits.budget.visit);
    }

    /// It is time to choose, unless that was brought forward.
    pub(super) fn handle_review(&mut self, at: Instant) {
        if self.keeping.due == Some(at) {
            self.keeping.due = None;
            self.review();
        }
    }

    /// The servers with whom something was said last, the latest first; none if nothing was said since the start.
    fn spoken_last(&self) -> Option<Vec<OwnedServerName>> {
        let mut spoken: Vec<_> = self.peers.spoken().into_iter().collect();
        spoken.sort_unstable_by_key(|(_, at)| std::cmp::Reverse(*at));
        let mut last: Vec<_> = spoken.into_iter().map(|(server, _)| server).collect();
        if last.is_empty() {
            return None;
        }
        let here: BTreeSet<_> = last.iter().cloned().collect();
        last.extend(
            self.keeping
                .order
                .iter()
                .filter(|server| !here.contains(*server))
                .cloned(),
        );
        last.truncate(SPOKEN);
        Some(last)
    }

    /// Has the directory remember with whom something was said last, if that is news.
    pub(super) fn remember_spoken(&mut self) {
        let Some(last) = self.spoken_last().filter(|last| *last != self.keeping.remembered) else {
            return;
        };
        self.keeping.remembered.clone_from(&last);
        self.keeping.remembered_at = Some(Instant::now());
        let shared = self.shared.clone();
        self.later.spawn(async move {
            if let Err(error) = shared.own.directory.keep_spoken(last).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the order of contacts was not kept"
                );
            }
            Later::Done
        });
    }

    /// [`Owner::remember_spoken`] at the end, when nothing else is done any more.
    pub(super) async fn remember_spoken_at_last(&mut self) {
        if let Some(last) = self.spoken_last().filter(|last| *last != self.keeping.remembered) {
            let kept = self.shared.own.directory.keep_spoken(last);
            // The order is a convenience: the end does not wait for it for long.
            let _ = timeout(REMEMBER_DEADLINE, kept).await;
        }
    }

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
            session.retire(Farewell::Idle);
        }
    }

    /// Checks a server's connections when it gets another: one may be what is left of a peer that restarted, and the newest
    /// may not be known at the other end yet. What is alive is settled afterwards.
    pub(super) fn check_all(&mut self, peer: &Arc<Peer>) {
        let sessions = peer.sessions();
        if sessions.len() < 2 {
            return;
        }
        let newest = sessions.iter().map(|session| session.merit().1).min();
        for older in sessions.iter().filter(|session| Some(session.merit().1) != newest) {
            older.doubt();
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
        let mut usable = peer.sessions();
        usable.retain(|session| session.is_usable());
        usable.sort_by_key(|session| session.merit());
        for session in usable {
            let Some(verified) = session.verified() else { continue };
            let node = *verified.node_key.as_bytes();
            match kept.get(&node) {
                None => drop(kept.insert(node, session.peer_id)),
                Some(best) if *best != session.peer_id || local < session.peer_id => {
                    session.retire(Farewell::Spare);
                }
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
