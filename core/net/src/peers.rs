//! The servers that are connected now: who they are, over which connections, and how many requests each has in flight.
//! Dials nobody and ends no connection; the owner task keeps it true.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch},
    time::Instant,
};

use crate::{ConnectionLimits, address, hello::Verified, session::Session};

/// Events that a slow receiver may be behind before it misses some.
const EVENT_QUEUE: usize = 256;

/// A peer was gained or lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// A connection to this server is up, and both hellos are accepted. Said once, not per connection.
    Up(OwnedServerName),
    /// The last connection to this server was ended by either end because nothing was said on it. The server is there as far as is
    /// known; it is dialled by whoever has something to say.
    LetGo(OwnedServerName),
    /// The last connection to this server is gone, or one that was let go is out of reach by now.
    Down(OwnedServerName),
}

/// A server that is connected.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its name.
    pub server_name: OwnedServerName,
    /// The connections to it, the one in use first.
    pub connections: Vec<ConnectionInfo>,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The other end's PeerId.
    pub peer_id: PeerId,
    /// The other end's address.
    pub address: Multiaddr,
    /// Whether we dialled.
    pub dialled: bool,
    /// Whether it goes through a relay.
    pub relayed: bool,
    /// Whether it stays on the local network or this machine.
    pub lan: bool,
}

/// One server and what is going on with it.
pub(crate) struct Peer {
    pub(crate) server_name: OwnedServerName,
    /// The best first. Never empty while the peer is in the table.
    sessions: Mutex<Vec<Arc<Session>>>,
    outgoing: Arc<Semaphore>,
    incoming: Arc<Semaphore>,
    waiting_out: AtomicUsize,
    waiting_in: AtomicUsize,
    max_requests: usize,
    max_waiting: usize,
}

/// Too many requests wait already.
#[derive(Debug)]
pub(crate) struct Busy;

/// Why there is no connection to a server.
#[derive(Debug)]
pub(crate) enum NotConnected {
    /// No address is known, or none leads to it.
    Unreachable,
    /// Too many requests wait for one already.
    Busy,
}

impl Peer {
    fn new(server_name: OwnedServerName, limits: &ConnectionLimits) -> Self {
        Self {
            server_name,
            sessions: Mutex::default(),
            outgoing: Arc::new(Semaphore::new(limits.requests_per_peer)),
            incoming: Arc::new(Semaphore::new(limits.requests_per_peer)),
            waiting_out: AtomicUsize::new(0),
            waiting_in: AtomicUsize::new(0),
            max_requests: limits.requests_per_peer,
            max_waiting: limits.waiting_per_peer,
        }
    }

    /// The best connection that still takes requests.
    pub(crate) fn best(&self) -> Option<Arc<Session>> {
        let sessions = lock(&self.sessions);
        sessions
            .iter()
            .filter(|session| session.is_usable())
            .min_by_key(|session| session.rank())
            .cloned()
    }

    /// Whether a request is under way, in either direction.
    pub(crate) fn is_busy(&self) -> bool {
        let free = |turns: &Semaphore| turns.available_permits() >= self.max_requests;
        !free(&self.outgoing) || !free(&self.incoming)
    }

    /// All connections, the best first.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        let mut sessions = lock(&self.sessions).clone();
        sessions.sort_by_key(|session| session.rank());
        sessions
    }

    /// Waits for its turn to send a request.
    pub(crate) async fn may_send(&self) -> Result<OwnedSemaphorePermit, Busy> {
        take_turn(&self.outgoing, &self.waiting_out, self.max_waiting).await
    }

    /// Waits for its turn to have a request answered. An honest peer never waits long: it counts its own.
    pub(crate) async fn may_ask(&self, max_waiting: usize) -> Result<OwnedSemaphorePermit, Busy> {
        take_turn(&self.incoming, &self.waiting_in, max_waiting).await
    }
}

async fn take_turn(turns: &Arc<Semaphore>, waiting: &AtomicUsize, max: usize) -> Result<OwnedSemaphorePermit, Busy> {
    if let Ok(permit) = turns.clone().try_acquire_owned() {
        return Ok(permit);
    }
    let _place = Place::take(waiting, max)?;
    turns.clone().acquire_owned().await.map_err(|_| Busy)
}

/// A place in a bounded queue, given back when dropped.
pub(crate) struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    pub(crate) fn take(count: &'a AtomicUsize, max: usize) -> Result<Self, Busy> {
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Busy);
        }
        Ok(Self(count))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The table of connected servers. Requests read it without passing the owner task.
pub(crate) struct Peers {
    table: Mutex<HashMap<OwnedServerName, Arc<Peer>>>,
    events: broadcast::Sender<PeerEvent>,
    /// Counts changes of what [`Peers::list`] gives.
    changes: watch::Sender<u64>,
    /// When something was last said with a server, connected or not. Those of long ago make room.
    spoken: Mutex<HashMap<OwnedServerName, Instant>>,
    limits: ConnectionLimits,
}

/// Servers of which it is remembered when something was said with them.
const MAX_SPOKEN: usize = 1024;

impl Peers {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self {
            table: Mutex::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            changes: watch::Sender::default(),
            spoken: Mutex::default(),
            limits,
        }
    }

    /// The peer, if a connection to it takes requests.
    pub(crate) fn get(&self, server: &ServerName) -> Option<Arc<Peer>> {
        let peer = lock(&self.table).get(server).cloned()?;
        peer.best().is_some().then_some(peer)
    }

    /// Adds a connection whose hello is accepted.
    pub(crate) fn add(&self, verified: Verified, session: Arc<Session>) -> Arc<Peer> {
        let server = verified.server_name.clone();
        let mut table = lock(&self.table);
        let new = !table.contains_key(&server);
        let peer = table
            .entry(server.clone())
            .or_insert_with(|| Arc::new(Peer::new(server.clone(), &self.limits)))
            .clone();
        lock(&peer.sessions).push(session.clone());
        // Requests that waited for this go on from here, and may use the session at once.
        session.set_peer(verified, &peer);
        drop(table);
        if new {
            // Nobody listening is fine.
            let _ = self.events.send(PeerEvent::Up(server));
        }
        self.changes.send_modify(|changes| *changes += 1);
        peer
    }

    /// Something was said with a server.
    pub(crate) fn note_spoken(&self, server: &ServerName) {
        let mut spoken = lock(&self.spoken);
        if spoken.len() >= MAX_SPOKEN && !spoken.contains_key(server) {
            let oldest = spoken
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(server, _)| server.clone());
            oldest.and_then(|oldest| spoken.remove(&oldest));
        }
        spoken.insert(server.to_owned(), Instant::now());
    }

    /// When something was last said with each server.
    pub(crate) fn spoken(&self) -> HashMap<OwnedServerName, Instant> {
        lock(&self.spoken).clone()
    }

    /// A server that was let go is out of reach.
    pub(crate) fn lost(&self, server: &ServerName) {
        let _ = self.events.send(PeerEvent::Down(server.to_owned()));
    }

    /// Takes a connection out; says whether it was the server's last.
    pub(crate) fn remove(&self, peer: &Peer, id: ConnectionId, let_go: bool) -> bool {
        let mut table = lock(&self.table);
        let mut sessions = lock(&peer.sessions);
        sessions.retain(|session| session.id != id);
        let last = sessions.is_empty();
        if last {
            table.remove(&peer.server_name);
        }
        // Whoever is told looks into the table.
        drop((sessions, table));
        if last {
            let event = match let_go {
                true => PeerEvent::LetGo(peer.server_name.clone()),
                false => PeerEvent::Down(peer.server_name.clone()),
            };
            let _ = self.events.send(event);
        }
        self.changes.send_modify(|changes| *changes += 1);
        last
    }

    /// The servers that are connected.
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        lock(&self.table).values().cloned().collect()
    }

    /// Who is connected.
    pub(crate) fn names(&self) -> Vec<OwnedServerName> {
        lock(&self.table).keys().cloned().collect()
    }

    /// How many servers are connected.
    pub(crate) fn count(&self) -> usize {
        lock(&self.table).len()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn list(&self) -> Vec<PeerInfo> {
        let mut peers = self.all();
        peers.sort_by(|a, b| a.server_name.cmp(&b.server_name));
        let info = |peer: &Arc<Peer>| PeerInfo {
            server_name: peer.server_name.clone(),
            connections: peer.sessions().iter().map(|session| describe(session)).collect(),
        };
        peers.iter().map(info).collect()
    }
}

fn describe(session: &Session) -> ConnectionInfo {
    ConnectionInfo {
        peer_id: session.peer_id,
        address: session.address.clone(),
        dialled: session.dialled,
        relayed: address::is_relayed(&session.address),
        lan: address::is_lan(&session.address),
    }
}

/// Nothing here can leave a value half-written, so a poisoned lock is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
