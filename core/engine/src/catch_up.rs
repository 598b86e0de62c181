//! Who must be asked or told about which rooms, and when: the one place that keeps members from drifting apart. It sends
//! nothing, reads no clock and knows no room's content.
//!
//! Everything here is an answer to something that happened: a peer came up, heads moved, heads were told, a pull ended. When
//! nothing happens, nothing is due.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};

use crate::{
    backoff,
    limits::{MAX_CATCHING_UP, MAX_HEADS, MAX_PULL_FAILURES, MAX_WATCHED, TELL_AFTER, TOLD_AT_ONCE},
};

/// Something to do now. Each is answered by the `handle_` method of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Read a room's heads and members: [`CatchUp::handle_looked`].
    Look(OwnedRoomId),
    /// Exchange heads with a server: [`CatchUp::handle_exchanged`].
    Exchange {
        /// The server.
        server: OwnedServerName,
        /// About these rooms; none: about all that are shared, but for `except`.
        rooms: Option<BTreeSet<OwnedRoomId>>,
        /// Rooms that were compared since the server came up.
        except: BTreeSet<OwnedRoomId>,
    },
    /// Pull what lacks in a room: [`CatchUp::handle_pulled`].
    Pull {
        /// The room.
        room: OwnedRoomId,
        /// Heads of others that are not held here.
        wanted: Vec<OwnedEventId>,
        /// Who told of them, and how deep they are.
        tellers: BTreeMap<OwnedServerName, u64>,
        /// Who was asked in vain.
        tried: BTreeSet<OwnedServerName>,
    },
}

/// A room as a look found it.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Its forward extremities.
    pub heads: Vec<OwnedEventId>,
    /// The servers in it; none once this server is not.
    pub servers: Vec<OwnedServerName>,
    /// Of the events asked about, those that are not held yet.
    pub unheld: Vec<OwnedEventId>,
}

/// What an exchange showed of one room.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The room.
    pub room: OwnedRoomId,
    /// Own heads, which the other side knows now.
    pub told: Vec<OwnedEventId>,
    /// The other side's heads that are not held here.
    pub lacking: Vec<OwnedEventId>,
    /// How deep the other side's heads are.
    pub depth: u64,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// Everything wanted is held now.
    Done,
    /// Much is held now; more is to come.
    Postponed,
    /// The server did not help.
    Failed,
    /// The room is not this server's business any more.
    Gone,
}

/// A connected server.
#[derive(Debug, Default)]
struct Peer {
    /// When all shared rooms are due.
    all: Option<Duration>,
    /// Rooms to compare.
    rooms: BTreeSet<OwnedRoomId>,
    /// Rooms compared since it came up.
    compared: BTreeSet<OwnedRoomId>,
    busy: bool,
    failures: u32,
    not_before: Duration,
    /// It does not speak of heads.
    deaf: bool,
}

/// What lacks in a room.
#[derive(Debug, Default)]
struct Wanted {
    events: BTreeMap<OwnedEventId, BTreeSet<OwnedServerName>>,
    depths: BTreeMap<OwnedServerName, u64>,
    tried: BTreeSet<OwnedServerName>,
    busy: bool,
    failures: u32,
    not_before: Duration,
}

/// A new head, and who is known to hold it.
#[derive(Debug)]
struct Watched {
    room: OwnedRoomId,
    since: Duration,
    holders: BTreeSet<OwnedServerName>,
    /// It came from its author's server, which tells the others itself.
    by_author: Option<OwnedServerName>,
}

/// The decisions of one server. Times are since any fixed moment.
#[derive(Debug)]
pub struct CatchUp {
    own: OwnedServerName,
    peers: BTreeMap<OwnedServerName, Peer>,
    looks: BTreeMap<OwnedRoomId, Duration>,
    wanted: BTreeMap<OwnedRoomId, Wanted>,
    watched: BTreeMap<OwnedEventId, Watched>,
    /// Events that a server told of and that could not be had, until it comes up again.
    hopeless: BTreeSet<(OwnedServerName, OwnedEventId)>,
    /// Whom an author's server cannot tell itself, by room and author's server.
    unreached: BTreeMap<(OwnedRoomId, OwnedServerName), BTreeSet<OwnedServerName>>,
    running: usize,
}

impl CatchUp {
    /// Nothing to do yet.
    pub fn new(own: OwnedServerName) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            looks: BTreeMap::new(),
            wanted: BTreeMap::new(),
            watched: BTreeMap::new(),
            hopeless: BTreeSet::new(),
            unreached: BTreeMap::new(),
            running: 0,
        }
    }

    /// A server came up: all shared rooms are compared. Of the two the one with the lesser name asks; the other one only
    /// about what it was not asked.
    pub fn handle_up(&mut self, server: &ServerName, now: Duration) {
        let peer = self.peers.entry(server.to_owned()).or_default();
        let grace = if *self.own < *server {
            Duration::ZERO
        } else {
            TELL_AFTER
        };
        peer.all = Some(now + grace);
        peer.compared.clear();
        (peer.failures, peer.not_before, peer.deaf) = (0, Duration::ZERO, false);
        self.hopeless.retain(|(teller, _)| teller != server);
        for wanted in self.wanted.values_mut() {
            wanted.tried.clear();
            (wanted.failures, wanted.not_before) = (0, now);
        }
    }

    /// A server is gone. What it was the only one to tell, others may not have.
    pub fn handle_down(&mut self, server: &ServerName, now: Duration) {
        self.peers.remove(server);
        self.unreached.retain(|(_, author), _| author != server);
        for watched in self.watched.values_mut() {
            if watched.by_author.take_if(|author| author == server).is_some() {
                let due = now + TELL_AFTER;
                self.looks
                    .entry(watched.room.clone())
                    .and_modify(|at| *at = due.min(*at))
                    .or_insert(due);
            }
        }
    }

    /// A room's heads moved with this event; they are `heads` now, if those are few.
    pub fn handle_moved(&mut self, room: &RoomId, event: OwnedEventId, heads: Option<&[OwnedEventId]>, now: Duration) {
        if let Some(heads) = heads {
            self.watched
                .retain(|id, watched| watched.room != room || heads.contains(id));
        }
        if self.watched.len() >= MAX_WATCHED {
            self.watched.pop_first();
        }
        let watched = Watched {
            room: room.to_owned(),
            since: now,
            holders: BTreeSet::new(),
            by_author: None,
        };
        self.watched.entry(event).or_insert(watched);
        self.looks.entry(room.to_owned()).or_insert(now + TELL_AFTER);
    }

    /// A server is known to hold an event. `author`: it made it, and sent it here itself.
    pub fn handle_holder(&mut self, event: &OwnedEventId, server: &ServerName, author: bool) {
        let connected = self.peers.contains_key(server);
        if let Some(watched) = self.watched.get_mut(event) {
            watched.holders.insert(server.to_owned());
            if author && connected {
                watched.by_author = Some(server.to_owned());
            }
        }
    }

    /// The watched events of a room, to be looked at.
    pub fn watched(&self, room: &RoomId) -> Vec<OwnedEventId> {
        let watched = self.watched.iter().filter(|(_, watched)| watched.room == room);
        watched.map(|(id, _)| id.clone()).collect()
    }

    /// Takes in what a look found, and has those told who may not know.
    pub fn handle_looked(&mut self, room: &RoomId, looked: &Looked, now: Duration) {
        self.watched
            .retain(|id, watched| watched.room != room || looked.heads.contains(id) || looked.unheld.contains(id));
        if !looked.servers.contains(&self.own) {
            self.watched.retain(|_, watched| watched.room != room);
            return;
        }
        let mut again: Option<Duration> = None;
        let mut told = 0;
        let connected: Vec<OwnedServerName> = looked
            .servers
            .iter()
            .filter(|server| self.peers.get(*server).is_some_and(|peer| !peer.deaf))
            .cloned()
            .collect();
        let mut untold = BTreeSet::new();
        for (id, watched) in self.watched.iter().filter(|(_, watched)| watched.room == room) {
            let ripe = watched.since + TELL_AFTER;
            if ripe > now || looked.unheld.contains(id) {
                let at = ripe.max(now + TELL_AFTER / 2);
                again = Some(again.map_or(at, |again| again.min(at)));
                continue;
            }
            untold.extend(
                connected
                    .iter()
                    .filter(|server| !self.is_told(watched, server))
                    .cloned(),
            );
        }
        for server in untold {
            let Some(peer) = self.peers.get_mut(&server) else {
                continue;
            };
            if told >= TOLD_AT_ONCE {
                let at = now + TELL_AFTER;
                again = Some(again.map_or(at, |again| again.min(at)));
                break;
            }
            peer.rooms.insert(room.to_owned());
            told += 1;
        }
        if let Some(at) = again {
            self.looks.insert(room.to_owned(), at);
        }
    }

    /// Takes in an exchange of heads, whoever began it.
    pub fn handle_compared(&mut self, server: &ServerName, compared: &Compared, now: Duration) {
        if let Some(peer) = self.peers.get_mut(server) {
            peer.compared.insert(compared.room.clone());
        }
        for id in &compared.told {
            if let Some(watched) = self.watched.get_mut(id) {
                watched.holders.insert(server.to_owned());
            }
        }
        for id in compared.lacking.iter().take(MAX_HEADS) {
            if self.hopeless.contains(&(server.to_owned(), id.clone())) {
                continue;
            }
            let wanted = self.wanted.entry(compared.room.clone()).or_default();
            if wanted.events.len() >= 2 * MAX_HEADS && !wanted.events.contains_key(id) {
                break;
            }
            let tellers = wanted.events.entry(id.clone()).or_default();
            if tellers.insert(server.to_owned()) {
                wanted.not_before = now;
            }
            wanted.depths.insert(server.to_owned(), compared.depth);
        }
    }

    /// Takes in how an exchange that was begun here ended: by which rooms, if they were named.
    pub fn handle_exchanged(
        &mut self,
        server: &ServerName,
        rooms: Option<&BTreeSet<OwnedRoomId>>,
        outcome: Result<(), ExchangeFailure>,
        now: Duration,
        random: u64,
    ) {
        self.running = self.running.saturating_sub(1);
        let Some(peer) = self.peers.get_mut(server) else { return };
        peer.busy = false;
        match outcome {
            Ok(()) => (peer.failures, peer.not_before) = (0, now),
            Err(ExchangeFailure::Deaf) => {
                peer.deaf = true;
                peer.rooms.clear();
            }
            Err(ExchangeFailure::Unanswered) => {
                peer.failures += 1;
                peer.not_before = now + backoff(peer.failures, random);
                match rooms {
                    Some(rooms) => peer.rooms.extend(rooms.iter().cloned()),
                    None => peer.all = Some(peer.not_before),
                }
            }
        }
    }

    /// Takes in how a pull ended. `held`: the wanted events that are held now.
    pub fn handle_pulled(
        &mut self,
        room: &RoomId,
        from: Option<&ServerName>,
        outcome: Pulled,
        held: &[OwnedEventId],
        now: Duration,
        random: u64,
    ) {
        self.running = self.running.saturating_sub(1);
        let Some(wanted) = self.wanted.get_mut(room) else {
            return;
        };
        wanted.busy = false;
        wanted.events.retain(|id, _| !held.contains(id));
        let events = &wanted.events;
        wanted
            .depths
            .retain(|teller, _| events.values().any(|tellers| tellers.contains(teller)));
        let given_up = match outcome {
            Pulled::Done | Pulled::Postponed => {
                (wanted.failures, wanted.not_before) = (0, now);
                wanted.tried.clear();
                false
            }
            Pulled::Failed => {
                wanted.tried.extend(from.map(ToOwned::to_owned));
                let tried = &wanted.tried;
                if wanted.depths.keys().any(|teller| !tried.contains(teller)) {
                    wanted.not_before = now;
                    false
                } else {
                    wanted.failures += 1;
                    wanted.not_before = now + backoff(wanted.failures, random);
                    wanted.failures >= MAX_PULL_FAILURES
                }
            }
            Pulled::Gone => true,
        };
        if given_up && outcome == Pulled::Failed {
            for (id, tellers) in &wanted.events {
                self.hopeless
                    .extend(tellers.iter().map(|teller| (teller.clone(), id.clone())));
            }
            while self.hopeless.len() > MAX_WATCHED {
                self.hopeless.pop_first();
            }
        }
        if given_up || wanted.events.is_empty() {
            self.wanted.remove(room);
        }
    }

    /// Has a room compared with a server, once.
    pub fn compare(&mut self, server: &ServerName, room: &RoomId) {
        if let Some(peer) = self.peers.get_mut(server).filter(|peer| !peer.deaf) {
            peer.rooms.insert(room.to_owned());
        }
    }

    /// The next thing to do now, if any.
    pub fn poll_task(&mut self, now: Duration) -> Option<Task> {
        let due = self
            .looks
            .iter()
            .find(|(_, at)| **at <= now)
            .map(|(room, _)| room.clone());
        if let Some(room) = due {
            self.looks.remove(&room);
            return Some(Task::Look(room));
        }
        if self.running >= MAX_CATCHING_UP {
            return None;
        }
        let task = self.poll_exchange(now).or_else(|| self.poll_pull(now))?;
        self.running += 1;
        Some(task)
    }

    /// When [`CatchUp::poll_task`] is worth calling again if nothing happens before; none if never.
    pub fn next_due(&self) -> Option<Duration> {
        let looks = self.looks.values().copied();
        if self.running >= MAX_CATCHING_UP {
            return looks.min();
        }
        let peers = self.peers.values().filter_map(Peer::due);
        let wanted = self.wanted.values().filter(|wanted| !wanted.busy);
        looks.chain(peers).chain(wanted.map(|wanted| wanted.not_before)).min()
    }

    /// Whether nothing is under way or due: nothing will be done until something happens.
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.next_due().is_none()
    }

    fn poll_exchange(&mut self, now: Duration) -> Option<Task> {
        let due = |peer: &Peer| peer.due().is_some_and(|at| at <= now);
        let (server, peer) = self.peers.iter_mut().find(|(_, peer)| due(peer))?;
        peer.busy = true;
        let rooms = match peer.all.take_if(|at| *at <= now) {
            Some(_) => None,
            None => Some(std::mem::take(&mut peer.rooms)),
        };
        Some(Task::Exchange {
            server: server.clone(),
            except: rooms
                .as_ref()
                .map_or_else(|| peer.compared.clone(), |_| BTreeSet::new()),
            rooms,
        })
    }

    /// The pull that has been due for the longest time.
    fn poll_pull(&mut self, now: Duration) -> Option<Task> {
        let due = self
            .wanted
            .iter_mut()
            .filter(|(_, wanted)| !wanted.busy && wanted.not_before <= now);
        let (room, wanted) = due.min_by_key(|(_, wanted)| wanted.not_before)?;
        wanted.busy = true;
        Some(Task::Pull {
            room: room.clone(),
            wanted: wanted.events.keys().cloned().collect(),
            tellers: wanted.depths.clone(),
            tried: wanted.tried.clone(),
        })
    }

    /// Whether a server holds a head, or its author's server sees to that.
    fn is_told(&self, watched: &Watched, server: &ServerName) -> bool {
        if watched.holders.contains(server) {
            return true;
        }
        let Some(author) = &watched.by_author else {
            return false;
        };
        let unreached = self.unreached.get(&(watched.room.clone(), author.clone()));
        unreached.is_none_or(|unreached| !unreached.contains(server))
    }
}

/// Why an exchange brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeFailure {
    /// No answer: to be tried again.
    Unanswered,
    /// The server does not know such requests.
    Deaf,
}

impl Peer {
    fn due(&self) -> Option<Duration> {
        if self.busy || self.deaf {
            return None;
        }
        let rooms = (!self.rooms.is_empty()).then_some(Duration::ZERO);
        let due = [self.all, rooms].into_iter().flatten().min()?;
        Some(due.max(self.not_before))
    }
}

/// Whom to ask for what lacks: those who told of it, then other members that are connected, each once; when all were asked
/// in vain, a teller again, and whether the state before what does not connect may be told now.
pub fn whom_to_ask(
    tellers: &BTreeMap<OwnedServerName, u64>,
    connected: &BTreeSet<OwnedServerName>,
    tried: &BTreeSet<OwnedServerName>,
) -> Option<(OwnedServerName, bool)> {
    let tellers = || tellers.keys().filter(|server| connected.contains(*server));
    let untried = tellers().chain(connected).find(|server| !tried.contains(*server));
    match untried {
        Some(server) => Some((server.clone(), false)),
        None => tellers().next().map(|server| (server.clone(), true)),
    }
}
