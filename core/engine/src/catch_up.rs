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
    limits::{
        CHECK_AFTER, JOIN_HEADS_AFTER, MAX_CATCHING_UP, MAX_EXTREMITIES, MAX_HEADS, MAX_UNREACHED, MAX_WATCHED,
        TELL_AFTER, TOLD_AT_ONCE,
    },
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
    /// The server answered, and does not have it.
    Lacking,
    /// The server did not answer.
    Unanswered,
    /// Nobody is there to be asked.
    Nobody,
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
    /// Those that answered and do not have it.
    lacking: BTreeSet<OwnedServerName>,
    busy: bool,
    failures: u32,
    not_before: Duration,
}

/// A new head, and who is known to hold it.
#[derive(Debug)]
struct Watched {
    room: OwnedRoomId,
    since: Duration,
    /// It was made here.
    own: bool,
    /// Whether somebody was asked, although its author sees to everybody.
    checked: bool,
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
        (peer.failures, peer.not_before, peer.deaf) = (0, Duration::ZERO, false);
        self.hopeless.retain(|(teller, _)| teller != server);
        for wanted in self.wanted.values_mut() {
            wanted.tried.clear();
            wanted.lacking.remove(server);
            (wanted.failures, wanted.not_before) = (0, now);
        }
    }

    /// A server is gone. What it was the only one to tell, others may not have.
    pub fn handle_down(&mut self, server: &ServerName, now: Duration) {
        self.peers.remove(server);
        self.unreached.retain(|(_, author), _| author != server);
        self.told_unreached.retain(|(told, _), _| told != server);
        for watched in self.watched.values_mut() {
            if watched.by_author.take_if(|author| author == server).is_some() {
                look_by(&mut self.looks, &watched.room, now + TELL_AFTER);
            }
        }
    }

    /// A room's heads moved with this event, made here or not; they are `heads` now, if those are few.
    pub fn handle_moved(
        &mut self,
        room: &RoomId,
        event: OwnedEventId,
        own: bool,
        heads: Option<&[OwnedEventId]>,
        now: Duration,
    ) {
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
            own,
            checked: false,
            holders: BTreeSet::new(),
            by_author: None,
        };
        self.watched.entry(event).or_insert(watched);
        look_by(&mut self.looks, room, now + TELL_AFTER);
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

    /// A server cannot tell these members itself what it sends to a room: whoever else is in it does.
    pub fn handle_unreached(
        &mut self,
        room: &RoomId,
        author: &ServerName,
        unreached: BTreeSet<OwnedServerName>,
        now: Duration,
    ) {
        let key = (room.to_owned(), author.to_owned());
        if unreached.is_empty() {
            self.unreached.remove(&key);
            return;
        }
        if self.unreached.len() < MAX_WATCHED && unreached.len() <= MAX_UNREACHED {
            self.unreached.insert(key, unreached);
            look_by(&mut self.looks, room, now + TELL_AFTER);
        }
    }

    /// Takes in what a look found, and has those told who may not know.
    pub fn handle_looked(&mut self, room: &RoomId, looked: &Looked, now: Duration, random: u64) {
        self.watched
            .retain(|id, watched| watched.room != room || looked.heads.contains(id) || looked.unheld.contains(id));
        if !looked.servers.contains(&self.own) {
            self.watched.retain(|_, watched| watched.room != room);
            self.joins.remove(room);
            return;
        }
        self.note_many_heads(room, looked.heads.len(), now, random);
        let of_room = self.watched.iter().filter(|(_, watched)| watched.room == room);
        let (mut again, mut untold, mut own) = (None, BTreeSet::new(), false);
        let (mut check, mut check_at) = (BTreeSet::new(), None);
        for (id, watched) in of_room {
            let ripe = watched.since + TELL_AFTER;
            if ripe > now || looked.unheld.contains(id) {
                again = Some(ripe.max(now + TELL_AFTER / 2));
                continue;
            }
            own |= watched.own;
            let connected = looked.servers.iter().filter(|server| self.peers.contains_key(*server));
            let (vouched, others): (Vec<_>, Vec<_>) = connected
                .filter(|server| !watched.holders.contains(*server))
                .partition(|server| self.is_vouched_for(watched, server));
            untold.extend(others.into_iter().cloned());
            if !watched.checked && !vouched.is_empty() {
                check_at = check_at.max(Some(watched.since + CHECK_AFTER));
                check.extend(vouched.into_iter().cloned());
            }
        }
        // Once all that is new has been still for a while, one of those of whom nothing is known is asked.
        match check_at {
            Some(at) if at > now => again = Some(again.map_or(at, |again: Duration| again.min(at))),
            Some(_) => {
                let nth = usize::try_from(random % check.len().max(1) as u64).unwrap_or(0);
                untold.extend(check.into_iter().nth(nth));
                for watched in self.watched.values_mut().filter(|watched| watched.room == room) {
                    watched.checked = true;
                }
            }
            None => {}
        }
        if own {
            self.note_unreached(room, looked, &mut untold);
        }
        let mut told = 0;
        for server in untold {
            let peer = self.peers.get_mut(&server).filter(|peer| !peer.deaf);
            let Some(peer) = peer else { continue };
            if told >= TOLD_AT_ONCE {
                again = Some(now + TELL_AFTER);
                break;
            }
            peer.rooms.insert(room.to_owned());
            told += 1;
        }
        if let Some(at) = again {
            self.looks.insert(room.to_owned(), at);
        }
    }

    /// Has a room's heads joined in a while, if they are many then still: not by all members at once.
    fn note_many_heads(&mut self, room: &RoomId, heads: usize, now: Duration, random: u64) {
        if heads <= MAX_EXTREMITIES {
            self.joins.remove(room);
            return;
        }
        let spread = u64::try_from(JOIN_HEADS_AFTER.as_millis()).unwrap_or(u64::MAX).max(1);
        let after = JOIN_HEADS_AFTER + Duration::from_millis(random % spread);
        // The more there are, the sooner: they cost more than the events that join them.
        let hurry = u32::try_from(heads / MAX_EXTREMITIES).unwrap_or(u32::MAX).max(1);
        self.joins.entry(room.to_owned()).or_insert(now + after / hurry);
    }

    /// Something was made here, and who of the room cannot be told of it: connected members hear that, once for each change.
    fn note_unreached(&mut self, room: &RoomId, looked: &Looked, untold: &mut BTreeSet<OwnedServerName>) {
        let others = || looked.servers.iter().filter(|server| **server != self.own);
        let (here, unreached): (Vec<_>, Vec<_>) = others().partition(|server| self.peers.contains_key(*server));
        let unreached: BTreeSet<OwnedServerName> = unreached.into_iter().take(MAX_UNREACHED).cloned().collect();
        let empty = BTreeSet::new();
        for server in here {
            let told = self.told_unreached.get(&(server.clone(), room.to_owned()));
            if *told.unwrap_or(&empty) != unreached {
                untold.insert(server.clone());
            }
        }
        match unreached.is_empty() {
            true => self.own_unreached.remove(room),
            false => self.own_unreached.insert(room.to_owned(), unreached),
        };
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
        wanted.tried.extend(from.map(ToOwned::to_owned));
        let given_up = match outcome {
            Pulled::Done | Pulled::Postponed => {
                (wanted.failures, wanted.not_before) = (0, now);
                wanted.tried.clear();
                wanted.lacking.clear();
                false
            }
            Pulled::Lacking => {
                wanted.not_before = now;
                // Asked again as the last resort, it was, and did not help.
                !from.is_some_and(|from| wanted.lacking.insert(from.to_owned()))
            }
            Pulled::Unanswered => {
                let tried = &wanted.tried;
                if wanted.depths.keys().all(|teller| tried.contains(teller)) {
                    wanted.failures += 1;
                    wanted.not_before = now + backoff(wanted.failures, random);
                    wanted.tried.clone_from(&wanted.lacking);
                } else {
                    wanted.not_before = now;
                }
                false
            }
            Pulled::Nobody | Pulled::Gone => {
                self.wanted.remove(room);
                return;
            }
        };
        if given_up {
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
            lacking: wanted.lacking.clone(),
        })
    }

    /// Whether a head's author's server sees to it that a server holds it.
    fn is_vouched_for(&self, watched: &Watched, server: &ServerName) -> bool {
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

/// Has a room looked at then, or sooner if that is due already.
fn look_by(looks: &mut BTreeMap<OwnedRoomId, Duration>, room: &RoomId, at: Duration) {
    let due = looks.entry(room.to_owned()).or_insert(at);
    *due = at.min(*due);
}

/// Whom to ask for what lacks: those who told of it, then other members that are connected, each once; when all answered
/// that they do not have it, a teller again, and that now the state before what does not connect may be told.
pub fn whom_to_ask(
    tellers: &BTreeMap<OwnedServerName, u64>,
    connected: &BTreeSet<OwnedServerName>,
    tried: &BTreeSet<OwnedServerName>,
    lacking: &BTreeSet<OwnedServerName>,
) -> Option<(OwnedServerName, bool)> {
    let tellers = || tellers.keys().filter(|server| connected.contains(*server));
    let untried = tellers().chain(connected).find(|server| !tried.contains(*server));
    if let Some(server) = untried {
        return Some((server.clone(), false));
    }
    let all_lack = connected.iter().all(|server| lacking.contains(server));
    tellers().next().map(|server| (server.clone(), all_lack))
}
