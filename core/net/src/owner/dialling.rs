//! Finds a server by name: every address that a ticket, a peer, the directory or the local network told is tried at once,
//! and the first connection that proves to be the server is kept. Proves nothing itself; the hello does.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use rand::Rng;
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Connected, Later, Owner, circuits::MAX_CIRCUITS};
use crate::{
    PeerAddresses,
    address::{is_dialable, is_relayed, relay_of, relay_peer, split_peer_id},
    book::AddressBook,
    hello::Turn,
    peers::{NotConnected, Peer},
};

/// Peers on the local network that are remembered, as a multiple of those that are dialled.
const LAN_MEMORY: usize = 4;

/// Addresses of one peer on the local network.
const MAX_LAN_ADDRESSES: usize = 8;

/// Both ends find each other on the local network at once. The one with the lower PeerId dials, the other only when it
/// has not been reached after this.
const LAN_PAUSE: Duration = Duration::from_secs(2);

/// Where addresses are known already, they are tried for this long before the DHT is asked: it costs more than they do.
const HEAD_START: Duration = Duration::from_millis(500);

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// The search for one server.
struct Attempt {
    begun: Instant,
    /// Who came when it began, or soon after, and is answered when it ends.
    waiting: Vec<oneshot::Sender<Connected>>,
    /// Who came later. Its packets may be lost though the server has come up since: should it fail, another is begun for them.
    late: Vec<oneshot::Sender<Connected>>,
    /// Dials, and connections whose hello is not heard yet, that may turn out to be the server.
    open: HashSet<ConnectionId>,
    /// The directory is being asked.
    looking_up: bool,
    /// The DHT is being asked, until this is dropped.
    searching: Option<DropGuard>,
    /// Tells it from attempts before.
    number: u64,
}

impl Attempt {
    fn is_awaited(&self) -> bool {
        !self.waiting.is_empty() || !self.late.is_empty()
    }
}

/// A peer that is being dialled.
struct Dial {
    target: PeerAddresses,
    told_by: Source,
}

/// Who told the PeerId that is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The server itself, by a ticket or on an earlier connection.
    Server,
    /// Somebody on the local network.
    Lan,
    /// Whoever answered where another was dialled. One that has a new PeerId for every dial is not followed further.
    Correction,
}

/// What is being dialled and why.
#[derive(Default)]
pub(super) struct Dialling {
    pub(super) book: AddressBook,
    attempts: HashMap<OwnedServerName, Attempt>,
    dials: HashMap<ConnectionId, Dial>,
    lan: HashMap<PeerId, Vec<Multiaddr>>,
    /// How often each lost contact was dialled again.
    redials: HashMap<OwnedServerName, u32>,
    /// Attempts so far.
    sought: u64,
}

impl Dialling {
    /// A dial became a connection. It stays open in its attempts until its hello is heard. Says when to speak there, if the
    /// dial was ours.
    pub(super) fn established(&mut self, id: ConnectionId) -> Option<Turn> {
        self.dials.remove(&id).map(|dial| match dial.told_by {
            Source::Server => Turn::First,
            Source::Lan | Source::Correction => Turn::Second,
        })
    }

    /// Whether a search still waits for this dial.
    pub(super) fn is_wanted(&self, id: ConnectionId) -> bool {
        self.attempts.values().any(|attempt| attempt.open.contains(&id))
    }

    /// Whether a request waits for what this dial leads to.
    pub(super) fn is_awaited(&self, id: ConnectionId) -> bool {
        let mut attempts = self.attempts.values();
        attempts.any(|attempt| attempt.is_awaited() && attempt.open.contains(&id))
    }

    /// A dial that was not started never will be.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.dials.remove(&id);
    }

    /// The network is another: who was out of reach may not be.
    pub(super) fn forgive(&mut self) {
        for failures in self.redials.values_mut() {
            *failures = 0;
        }
    }

    /// Peers that left the local network.
    pub(super) fn forget_lan(&mut self, gone: &[(PeerId, Multiaddr)]) {
        for (peer_id, address) in gone {
            let address = split_peer_id(address.clone()).0;
            if let Some(addresses) = self.lan.get_mut(peer_id) {
                addresses.retain(|known| *known != address);
                if addresses.is_empty() {
                    self.lan.remove(peer_id);
                }
            }
        }
    }
}

impl Owner {
    /// Connects to a server. Callers that come while an attempt runs wait for that one, and for another if it was old and fails.
    pub(super) fn connect(&mut self, server: OwnedServerName, reply: Option<oneshot::Sender<Connected>>) {
        if let Some(peer) = self.peers.get(&server) {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(peer));
            }
            return;
        }
        if let Some(attempt) = self.dialling.attempts.get_mut(&server) {
            let Some(reply) = reply else { return };
            if attempt.waiting.len() + attempt.late.len() >= self.shared.limits.waiting_per_peer {
                let _ = reply.send(Err(NotConnected::Busy));
                return;
            }
            if attempt.begun.elapsed() < self.shared.timing.shared_attempt {
                attempt.waiting.push(reply);
            } else {
                attempt.late.push(reply);
            }
            // It may have been begun for nobody's sake, and without the DHT.
            if !attempt.looking_up && attempt.searching.is_none() {
                self.search_dht_for(&server, HEAD_START);
            }
            return;
        }
        self.begin_attempt(server, reply.into_iter().collect());
    }

    fn begin_attempt(&mut self, server: OwnedServerName, waiting: Vec<oneshot::Sender<Connected>>) {
        tracing::debug!(%server, "a server is sought");
        self.dialling.sought += 1;
        let attempt = Attempt {
            begun: Instant::now(),
            waiting,
            late: Vec::new(),
            open: HashSet::new(),
            looking_up: true,
            searching: None,
            number: self.dialling.sought,
        };
        self.dialling.attempts.insert(server.clone(), attempt);
        self.look_up(server.clone());
        let known = self.dialling.book.lookup(&server).to_vec();
        self.dial_for(&server, &known, Source::Server);
        self.dial_lan_for(&server);
    }

    fn look_up(&mut self, server: OwnedServerName) {
        let shared = self.shared.clone();
        self.later.spawn(async move {
            let found = shared.own.directory.addresses(&server).await;
            let found = found.unwrap_or_else(|error| {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "remembered addresses cannot be read"
                );
                Vec::new()
            });
            Later::Found(server, found)
        });
    }

    /// What the directory remembers joins the attempt.
    pub(super) fn handle_found(&mut self, server: &ServerName, found: &[PeerAddresses]) {
        let Some(attempt) = self.dialling.attempts.get_mut(server) else {
            return;
        };
        attempt.looking_up = false;
        let nothing_known = found.is_empty() && attempt.open.is_empty();
        self.dial_for(server, found, Source::Server);
        let head_start = if nothing_known { Duration::ZERO } else { HEAD_START };
        self.search_dht_for(server, head_start);
        self.end_attempt_if_hopeless(server);
    }

    /// Has the DHT join the attempt, unless it was asked a moment ago, or before and nobody waits: a contact that is away would cost
    /// a search each time that it is dialled again.
    fn search_dht_for(&mut self, server: &ServerName, head_start: Duration) {
        let Some(attempt) = self.dialling.attempts.get_mut(server) else {
            return;
        };
        if !self.dht.may_look_up(server, attempt.is_awaited(), Instant::now()) {
            return;
        }
        let unwanted = CancellationToken::new();
        attempt.searching = Some(unwanted.clone().drop_guard());
        let (dht, found, server, number) = (
            self.dht.clone(),
            self.found.0.clone(),
            server.to_owned(),
            attempt.number,
        );
        self.later.spawn(async move {
            if unwanted.run_until_cancelled(sleep(head_start)).await.is_some() {
                tracing::debug!(%server, "the DHT is asked where a server is");
                dht.look_up(&server, &found, &unwanted).await;
            }
            Later::Searched(server, number)
        });
    }

    /// Addresses from the DHT join the attempt. They are the server's own words, signed by one of its nodes.
    pub(super) fn handle_found_in_dht(&mut self, server: &ServerName, found: &[PeerAddresses]) {
        if self.dialling.attempts.contains_key(server) {
            self.dial_for(server, found, Source::Server);
        }
    }

    /// The DHT has no more to say.
    pub(super) fn handle_searched(&mut self, server: &ServerName, number: u64) {
        // What it found last may not have been read yet.
        while let Ok((server, found)) = self.found.1.try_recv() {
            self.handle_found_in_dht(&server, &found);
        }
        if let Some(attempt) = self.dialling.attempts.get_mut(server)
            && attempt.number == number
        {
            attempt.searching = None;
            self.end_attempt_if_hopeless(server);
        }
    }

    /// Dials where the server may be.
    fn dial_for(&mut self, server: &ServerName, known: &[PeerAddresses], told_by: Source) {
        for PeerAddresses { peer_id, addresses } in known {
            for id in self.dial(*peer_id, addresses.clone(), told_by) {
                self.join(server, id);
            }
        }
    }

    /// Any peer on the local network that has not said who it is may be the server.
    fn dial_lan_for(&mut self, server: &ServerName) {
        let strangers: Vec<_> = self.dialling.lan.iter().take(self.shared.limits.lan_peers).collect();
        let strangers: Vec<_> = strangers
            .into_iter()
            .map(|(peer_id, addresses)| PeerAddresses {
                peer_id: *peer_id,
                addresses: addresses.clone(),
            })
            .collect();
        self.dial_for(server, &strangers, Source::Lan);
    }

    fn join(&mut self, server: &ServerName, id: ConnectionId) {
        if let Some(attempt) = self.dialling.attempts.get_mut(server) {
            attempt.open.insert(id);
        }
    }

    /// Dials a peer at addresses, unless that is being done or it is connected. Gives what to wait for: the dials, one for all
    /// straight addresses and one for each relay, or the connection whose hello is still to come.
    pub(super) fn dial(
        &mut self,
        peer_id: PeerId,
        mut addresses: Vec<Multiaddr>,
        told_by: Source,
    ) -> Vec<ConnectionId> {
        addresses.retain(is_dialable);
        let mut sessions = self.sessions.values().map(|entry| &entry.session);
        // A peer that is known is known to be another server, or it would not be looked for.
        match sessions.find(|session| session.peer_id == peer_id && session.is_usable()) {
            Some(session) if session.verified().is_some() => return Vec::new(),
            Some(stranger) => return vec![stranger.id],
            None => {}
        }
        let (relayed, straight): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_relayed);
        let after_straight = !straight.is_empty();
        let mut dials: Vec<_> = self.dial_straight(peer_id, straight, told_by).into_iter().collect();
        // A relay may have many addresses, and is still one way to a peer.
        let by_relay = PeerAddresses::grouped(
            relayed
                .into_iter()
                .filter_map(|address| Some((relay_peer(&address)?, address))),
        );
        for PeerAddresses {
            peer_id: relay,
            addresses,
        } in by_relay.into_iter().take(MAX_CIRCUITS)
        {
            let id = match self.same_circuit(peer_id, relay) {
                Some(id) => Some(id),
                None => self.prepare_circuit(peer_id, &addresses, after_straight).inspect(|id| {
                    let target = PeerAddresses { peer_id, addresses };
                    self.dialling.dials.insert(*id, Dial { target, told_by });
                }),
            };
            dials.extend(id);
        }
        dials
    }

    /// A dial under way through this relay.
    fn same_circuit(&self, peer_id: PeerId, relay: PeerId) -> Option<ConnectionId> {
        let mut dials = self.dialling.dials.iter();
        let same = dials.find(|(_, Dial { target, .. })| {
            target.peer_id == peer_id && target.addresses.iter().any(|known| relay_peer(known) == Some(relay))
        });
        same.map(|(id, _)| *id)
    }

    fn dial_straight(&mut self, peer_id: PeerId, addresses: Vec<Multiaddr>, told_by: Source) -> Option<ConnectionId> {
        match self.same_dial(peer_id, &addresses) {
            Some(id) => Some(id),
            None => self.dial_anew(PeerAddresses { peer_id, addresses }, told_by),
        }
    }

    /// A dial under way that includes these addresses.
    fn same_dial(&self, peer_id: PeerId, addresses: &[Multiaddr]) -> Option<ConnectionId> {
        let mut dials = self.dialling.dials.iter();
        let same = dials.find(|(_, Dial { target, .. })| {
            target.peer_id == peer_id && addresses.iter().all(|address| target.addresses.contains(address))
        });
        same.map(|(id, _)| *id).filter(|_| !addresses.is_empty())
    }

    /// Dials a peer that is connected already, for a better connection.
    pub(super) fn dial_beside(&mut self, peer_id: PeerId, addresses: Vec<Multiaddr>) {
        if !self.dialling.dials.values().any(|dial| dial.target.peer_id == peer_id) {
            self.dial_anew(PeerAddresses { peer_id, addresses }, Source::Server);
        }
    }

    fn dial_anew(&mut self, target: PeerAddresses, told_by: Source) -> Option<ConnectionId> {
        if target.peer_id == *self.swarm.local_peer_id() || target.addresses.is_empty() {
            return None;
        }
        let options = DialOpts::peer_id(target.peer_id)
            .condition(PeerCondition::Always)
            .addresses(target.addresses.clone())
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dialling.dials.insert(id, Dial { target, told_by });
                Some(id)
            }
            Err(error) => {
                tracing::debug!(peer_id = %target.peer_id, %error, "not dialled");
                None
            }
        }
    }

    /// A dial failed. A peer that renewed its PeerId is dialled under the new one: the address was right.
    pub(super) fn handle_dial_error(&mut self, id: ConnectionId, error: DialError) {
        tracing::debug!(%error, "a dial failed");
        self.circuit_ended(id);
        if self.handle_relay_dial_error(id) {
            return;
        }
        let failed = self.dialling.dials.remove(&id);
        let addresses = failed.iter().flat_map(|dial| &dial.target.addresses);
        let relay = addresses.filter(|address| is_relayed(address)).find_map(relay_of);
        if let Some((relay, _)) = relay {
            self.doubt_relay(relay);
        }
        let first = failed.is_some_and(|dial| dial.told_by != Source::Correction);
        if let (true, DialError::WrongPeerId { obtained, address }) = (first, error) {
            let target = PeerAddresses {
                peer_id: obtained,
                addresses: vec![split_peer_id(address).0],
            };
            if let Some(again) = self.dial_anew(target, Source::Correction) {
                let attempts = self.dialling.attempts.values_mut();
                for attempt in attempts.filter(|attempt| attempt.open.contains(&id)) {
                    attempt.open.insert(again);
                }
            }
        }
        self.dial_ended(id);
    }

    /// A dial or connection came to nothing, or to another server.
    pub(super) fn dial_ended(&mut self, id: ConnectionId) {
        let mut touched = Vec::new();
        for (server, attempt) in &mut self.dialling.attempts {
            if attempt.open.remove(&id) {
                touched.push(server.clone());
            }
        }
        for server in touched {
            self.end_attempt_if_hopeless(&server);
        }
    }

    /// A connection proved to be this server's.
    pub(super) fn connected(&mut self, server: &ServerName, id: ConnectionId, peer: &Arc<Peer>) {
        self.dialling.redials.remove(server);
        self.keeping.note_met(server);
        self.dht.reached(server);
        if let Some(attempt) = self.dialling.attempts.remove(server) {
            for waiting in attempt.waiting.into_iter().chain(attempt.late) {
                let _ = waiting.send(Ok(peer.clone()));
            }
        }
        self.dial_ended(id);
        self.visit_next();
    }

    fn end_attempt_if_hopeless(&mut self, server: &ServerName) {
        let Some(attempt) = self.dialling.attempts.get(server) else {
            return;
        };
        if attempt.looking_up || attempt.searching.is_some() || !attempt.open.is_empty() {
            return;
        }
        if let Some(mut attempt) = self.dialling.attempts.remove(server) {
            for waiting in attempt.waiting {
                let _ = waiting.send(Err(NotConnected::Unreachable));
            }
            attempt.late.retain(|late| !late.is_closed());
            if !attempt.late.is_empty() {
                self.begin_attempt(server.to_owned(), attempt.late);
                return;
            }
        }
        if self.keeping.note_missed(server) {
            self.peers.lost(server);
        }
        if self.dialling.redials.contains_key(server) {
            self.redial_later(server.to_owned());
        }
        self.visit_next();
    }

    /// Has a contact dialled again if it is not reached.
    pub(super) fn insist_on(&mut self, server: &ServerName) {
        self.dialling.redials.insert(server.to_owned(), 0);
    }

    /// Searches under way.
    pub(super) fn attempts(&self) -> usize {
        self.dialling.attempts.len()
    }

    /// Asks the directory whether a server that was lost is worth dialling again.
    pub(super) fn look_up_lost(&mut self, server: OwnedServerName) {
        let shared = self.shared.clone();
        self.later.spawn(async move {
            let contacts = shared.own.directory.contacts().await.unwrap_or_default();
            Later::Lost(contacts.contains(&server).then_some(server))
        });
    }

    /// Dials a lost contact after a pause that grows with each failure.
    pub(super) fn redial_later(&mut self, server: OwnedServerName) {
        if self.rest.is_on() {
            self.dialling.redials.remove(&server);
            return;
        }
        let tries = self.dialling.redials.entry(server.clone()).or_default();
        if *tries >= self.shared.limits.budget.redials {
            self.dialling.redials.remove(&server);
            return;
        }
        let pause = match *tries {
            0 if self.surroundings.is_new() => Duration::ZERO,
            tries => pause(self.shared.timing.redial, tries),
        };
        *tries += 1;
        self.later.spawn(async move {
            tokio::time::sleep(pause).await;
            Later::Redial(server)
        });
    }

    /// Peers that appeared on the local network. They are dialled to learn who they are; nothing of ours is announced there
    /// but PeerId and addresses.
    pub(super) fn handle_lan(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let most = self.shared.limits.lan_peers * LAN_MEMORY;
        let local = *self.swarm.local_peer_id();
        for (peer_id, address) in found {
            let lan = &mut self.dialling.lan;
            if peer_id == local || (lan.len() >= most && !lan.contains_key(&peer_id)) {
                continue;
            }
            let new = !lan.contains_key(&peer_id);
            let addresses = lan.entry(peer_id).or_default();
            let address = split_peer_id(address).0;
            if addresses.len() < MAX_LAN_ADDRESSES && !addresses.contains(&address) && is_dialable(&address) {
                addresses.push(address);
            }
            if new {
                let pause = if local < peer_id { Duration::ZERO } else { LAN_PAUSE };
                self.later.spawn(async move {
                    tokio::time::sleep(pause).await;
                    Later::DialLan(peer_id)
                });
            }
        }
    }

    /// Dials a peer on the local network, unless it is connected or enough of them are.
    pub(super) fn dial_lan_peer(&mut self, peer_id: PeerId) {
        let lan = &self.dialling.lan;
        let Some(addresses) = lan.get(&peer_id).cloned() else {
            return;
        };
        let connected: HashSet<_> = self.sessions.values().map(|entry| entry.session.peer_id).collect();
        let dialling = self.dialling.dials.values().map(|dial| dial.target.peer_id);
        let busy = connected
            .iter()
            .copied()
            .chain(dialling)
            .filter(|peer| lan.contains_key(peer))
            .count();
        if connected.contains(&peer_id) || busy >= self.shared.limits.lan_peers {
            return;
        }
        self.dial(peer_id, addresses, Source::Lan);
    }
}

/// `first`, doubled for each failure up to an hour, and then anything from half to one and a half of it: those who lost
/// the same peer do not come back all at once.
pub(super) fn pause(first: Duration, failures: u32) -> Duration {
    let doubled = first.saturating_mul(1 << failures.min(16)).min(MAX_PAUSE);
    doubled.mul_f64(rand::thread_rng().gen_range(0.5..1.5))
}
