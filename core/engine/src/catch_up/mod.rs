//! Who must be asked or told about which rooms, and when: the one place that keeps members from drifting apart. It sends
//! nothing, reads no clock and knows no room's content.
//!
//! Everything here is an answer to something that happened: a peer came up, heads moved, heads were told, a pull ended. When
//! nothing happens, nothing is due.

mod news;
mod wanted;

pub use news::{Looked, neighbours};
pub use wanted::{Pulled, whom_to_ask};

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};

use self::{
    news::{Watched, look_by},
    wanted::Wanted,
};
use crate::{
    backoff,
    limits::{MAX_CATCHING_UP, MAX_HEADS, MAX_LET_GO, TELL_AFTER},
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
        /// Members that this server cannot tell itself what is new in these rooms.
        unreached: BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>,
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
        /// Those of them that answered, and do not have it.
        lacking: BTreeSet<OwnedServerName>,
    },
    /// Join a room's forward extremities with an event of this server's own, if they are many still.
    JoinHeads(OwnedRoomId),
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

/// A server that is in reach.
#[derive(Debug, Default)]
struct Peer {
    /// It is not connected, because nothing was said for a while. Asking it connects.
    let_go: bool,
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
    /// Whom this server cannot tell itself, by room; and what each server was last told of that.
    own_unreached: BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>,
    told_unreached: BTreeMap<(OwnedServerName, OwnedRoomId), BTreeSet<OwnedServerName>>,
    /// Rooms of which the heads are to be joined, and when.
    joins: BTreeMap<OwnedRoomId, Duration>,
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
            own_unreached: BTreeMap::new(),
            told_unreached: BTreeMap::new(),
            joins: BTreeMap::new(),
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
        (peer.failures, peer.not_before, peer.deaf, peer.let_go) = (0, Duration::ZERO, false, false);
        self.hopeless.retain(|(teller, _)| teller != server);
        for wanted in self.wanted.values_mut() {
            wanted.tried.clear();
            wanted.lacking.remove(server);
            (wanted.failures, wanted.not_before) = (0, now);
        }
    }

    /// The connection to a server was ended because nothing was said on it. It is in reach still: it sees to what it made, its word
    /// on whom it cannot tell holds, and whoever has something for the other connects.
    pub fn handle_let_go(&mut self, server: &ServerName) {
        let before = self.peers.values().filter(|peer| peer.let_go).count();
        if before >= MAX_LET_GO {
            self.peers.remove(server);
        } else if let Some(peer) = self.peers.get_mut(server) {
            peer.let_go = true;
            if peer.failures > 0 {
                // It does not answer: to connect again and again would be to ask it without a pause that grows.
                peer.all = None;
                peer.rooms.clear();
            }
        }
    }

    /// Whether a server is in reach though it is not connected.
    pub fn is_let_go(&self, server: &ServerName) -> bool {
        self.peers.get(server).is_some_and(|peer| peer.let_go)
    }

    /// Whether a server is connected.
    fn is_connected(&self, server: &ServerName) -> bool {
        self.peers.get(server).is_some_and(|peer| !peer.let_go)
    }

    /// A server is gone, or one that was let go is out of reach. What it was the only one to tell, others may not have.
    pub fn handle_down(&mut self, server: &ServerName, now: Duration) {
        let before = self.peers.remove(server);
        if before.is_some_and(|peer| peer.let_go) {
            // It was taken to be in reach when something was made here: those who are connected must hear that it is not.
            for watched in self.watched.values().filter(|watched| watched.own) {
                look_by(&mut self.looks, &watched.room, now + TELL_AFTER);
            }
        }
        self.unreached.retain(|(_, author), _| author != server);
        self.told_unreached.retain(|(told, _), _| told != server);
        for watched in self.watched.values_mut() {
            if watched.by_author.take_if(|author| author == server).is_some() {
                look_by(&mut self.looks, &watched.room, now + TELL_AFTER);
            }
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
        let due = self
            .joins
            .iter()
            .find(|(_, at)| **at <= now)
            .map(|(room, _)| room.clone());
        if let Some(room) = due {
            self.joins.remove(&room);
            return Some(Task::JoinHeads(room));
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
        let looks = self.looks.values().chain(self.joins.values()).copied();
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
        let except = rooms
            .as_ref()
            .map_or_else(|| peer.compared.clone(), |_| BTreeSet::new());
        let server = server.clone();
        let mut unreached = self.own_unreached.clone();
        if let Some(rooms) = &rooms {
            unreached.retain(|room, _| rooms.contains(room));
            for room in rooms {
                let told = unreached.get(room).cloned().unwrap_or_default();
                self.told_unreached.insert((server.clone(), room.clone()), told);
            }
        }
        Some(Task::Exchange {
            server,
            rooms,
            except,
            unreached,
        })
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
