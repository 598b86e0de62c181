//! What is new in rooms, and who must still be told of it. Servers are told by exchanges of heads; nothing is pulled here.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};

use super::CatchUp;
use crate::limits::{
    CHECK_AFTER, JOIN_HEADS_AFTER, JOIN_HEADS_TURN, MAX_EXTREMITIES, MAX_JOIN_HEADS_TURNS, MAX_UNREACHED, MAX_WATCHED,
    TELL_AFTER, TOLD_AT_ONCE, TOPIC_CHECK_AFTER, TOPIC_NEIGHBOURS,
};

/// A room as a look found it.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Its forward extremities.
    pub heads: Vec<OwnedEventId>,
    /// The servers in it; none once this server is not, and has nothing to say of how it left.
    pub servers: Vec<OwnedServerName>,
    /// Of the events asked about, those that are not held yet.
    pub unheld: Vec<OwnedEventId>,
}

/// A new head, and who is known to hold it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) room: OwnedRoomId,
    pub(super) since: Duration,
    /// It was made here.
    pub(super) own: bool,
    /// Whether somebody was asked, although its author sees to everybody.
    pub(super) checked: bool,
    pub(super) holders: BTreeSet<OwnedServerName>,
    /// It came from its author's server, which tells the others itself.
    pub(super) by_author: Option<OwnedServerName>,
    /// It went over the room's topic, so that most members have it: each sees to its neighbours.
    pub(super) by_topic: bool,
    /// Servers that it removed from the room, and that may not know: they are in it no more, but this is for them too.
    pub(super) removed: BTreeSet<OwnedServerName>,
}

impl Watched {
    fn new(room: &RoomId, own: bool, since: Duration) -> Self {
        Self {
            room: room.to_owned(),
            since,
            own,
            checked: false,
            holders: BTreeSet::new(),
            by_author: None,
            by_topic: false,
            removed: BTreeSet::new(),
        }
    }
}

impl CatchUp {
    /// A room's heads moved with this event, made here or not; these are `gone`, as far as they are known.
    pub fn handle_moved(
        &mut self,
        room: &RoomId,
        event: OwnedEventId,
        own: bool,
        gone: &[OwnedEventId],
        now: Duration,
    ) {
        for id in gone {
            if self.watched.get(id).is_some_and(|watched| watched.removed.is_empty()) {
                self.watched.remove(id);
            }
        }
        self.watch(room, event, own, now);
    }

    /// An event, made here or not, removed these servers from a room. Later ones are none of theirs, but this one is.
    pub fn handle_removed(
        &mut self,
        room: &RoomId,
        event: OwnedEventId,
        own: bool,
        servers: impl IntoIterator<Item = OwnedServerName>,
        now: Duration,
    ) {
        self.watch(room, event, own, now).removed.extend(servers);
    }

    fn watch(&mut self, room: &RoomId, event: OwnedEventId, own: bool, now: Duration) -> &mut Watched {
        if self.watched.len() >= MAX_WATCHED {
            self.watched.pop_first();
        }
        look_by(&mut self.looks, room, now + TELL_AFTER);
        let watched = self.watched.entry(event);
        watched.or_insert_with(|| Watched::new(room, own, now))
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

    /// An event came over its room's topic, or was told there.
    pub fn handle_by_topic(&mut self, event: &OwnedEventId) {
        if let Some(watched) = self.watched.get_mut(event) {
            watched.by_topic = true;
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
        let here: HashSet<&OwnedEventId> = looked.heads.iter().chain(&looked.unheld).collect();
        self.watched
            .retain(|id, watched| watched.room != room || here.contains(id) || !watched.removed.is_empty());
        if !looked.servers.contains(&self.own) {
            self.watched.retain(|_, watched| watched.room != room);
            self.joins.remove(room);
            return;
        }
        self.note_many_heads(room, looked, now);
        let of_room = self.watched.iter().filter(|(_, watched)| watched.room == room);
        let (mut again, mut untold, mut own) = (None, BTreeSet::new(), false);
        let (mut check, mut check_at) = (BTreeSet::new(), None);
        let connected = looked.servers.iter().filter(|server| self.is_connected(server));
        let neighbours = neighbours(&self.own, connected, TOPIC_NEIGHBOURS);
        for (id, watched) in of_room {
            let ripe = watched.since
                + if watched.by_topic {
                    TOPIC_CHECK_AFTER
                } else {
                    TELL_AFTER
                };
            if ripe > now || looked.unheld.contains(id) {
                let ripe = ripe.max(now + TELL_AFTER / 2);
                again = Some(again.map_or(ripe, |again: Duration| again.min(ripe)));
                continue;
            }
            own |= watched.own && !watched.by_topic;
            let members = looked.servers.iter().filter(|_| here.contains(id));
            let concerned = members.chain(&watched.removed);
            let in_reach = concerned.filter(|server| self.peers.contains_key(*server));
            let (vouched, others): (Vec<_>, Vec<_>) = in_reach
                .filter(|server| !watched.holders.contains(*server))
                .filter(|server| !watched.by_topic || neighbours.contains(server) || watched.removed.contains(*server))
                .partition(|server| self.is_vouched_for(watched, server));
            untold.extend(others.into_iter().cloned());
            // What is only to be made sure is worth no connection.
            let vouched: Vec<_> = vouched.into_iter().filter(|server| self.is_connected(server)).collect();
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
        let mut told = BTreeSet::new();
        for server in &untold {
            let peer = self.peers.get_mut(server).filter(|peer| !peer.deaf);
            let Some(peer) = peer else { continue };
            if told.len() >= TOLD_AT_ONCE {
                again = Some(now + TELL_AFTER);
                break;
            }
            peer.rooms.insert(room.to_owned());
            told.insert(server.clone());
        }
        self.forget_removed(room, &untold, &told);
        if let Some(at) = again {
            self.looks.insert(room.to_owned(), at);
        }
    }

    /// Has a room's heads joined in a while, if they are many then still: by one connected member after another.
    fn note_many_heads(&mut self, room: &RoomId, looked: &Looked, now: Duration) {
        let heads = looked.heads.len();
        if heads <= MAX_EXTREMITIES {
            self.joins.remove(room);
            return;
        }
        let before = looked.servers.iter().filter(|server| **server < self.own);
        let turn = before.filter(|server| self.peers.contains_key(*server)).count();
        let turn = u32::try_from(turn.min(MAX_JOIN_HEADS_TURNS)).unwrap_or(u32::MAX);
        // The more there are, the sooner: they cost more than the events that join them.
        let hurry = u32::try_from(heads / MAX_EXTREMITIES).unwrap_or(u32::MAX).max(1);
        let due = now + JOIN_HEADS_AFTER / hurry + JOIN_HEADS_TURN.saturating_mul(turn);
        look_by(&mut self.joins, room, due);
    }

    /// Those that an event removed need no more thought when they were told, when its author sees to it, and when they are
    /// away: then they are told when they come up.
    fn forget_removed(&mut self, room: &RoomId, untold: &BTreeSet<OwnedServerName>, told: &BTreeSet<OwnedServerName>) {
        let peers = &self.peers;
        for watched in self.watched.values_mut().filter(|watched| watched.room == room) {
            let waits = watched.by_author.is_some() && !watched.checked;
            watched.removed.retain(|server| {
                peers.contains_key(server) && !told.contains(server) && (waits || untold.contains(server))
            });
        }
    }

    /// Something was made here, and who of the room cannot be told of it: connected members hear that, once for each change.
    fn note_unreached(&mut self, room: &RoomId, looked: &Looked, untold: &mut BTreeSet<OwnedServerName>) {
        let of_room = self
            .watched
            .values()
            .filter(|watched| watched.own && watched.room == room);
        let removed: BTreeSet<&OwnedServerName> = of_room.flat_map(|watched| &watched.removed).collect();
        let members = looked.servers.iter().filter(|server| **server != self.own);
        let others = || members.clone().chain(removed.iter().copied());
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

    /// Whether a head's author's server sees to it that a server holds it.
    fn is_vouched_for(&self, watched: &Watched, server: &ServerName) -> bool {
        // Of what goes over the topic, its author sends itself to a few only.
        let Some(author) = watched.by_author.as_ref().filter(|_| !watched.by_topic) else {
            return false;
        };
        let unreached = self.unreached.get(&(watched.room.clone(), author.clone()));
        unreached.is_none_or(|unreached| !unreached.contains(server))
    }
}

/// Those of some servers that are next to one in the order of their names, taken as a ring: so many at the most, half of them
/// on either side.
pub fn neighbours<'a>(
    own: &ServerName,
    servers: impl IntoIterator<Item = &'a OwnedServerName>,
    count: usize,
) -> BTreeSet<&'a OwnedServerName> {
    let (mut after, mut ring): (Vec<_>, Vec<_>) = servers
        .into_iter()
        .filter(|server| **server != *own)
        .partition(|server| ***server > *own);
    after.sort_unstable();
    ring.sort_unstable();
    // Beginning with the next one, ending with the one before.
    after.append(&mut ring);
    let before = after.len().saturating_sub(count / 2);
    let next = after.iter().take(count - count / 2);
    next.chain(after.iter().skip(before)).copied().collect()
}

/// Has something done about a room then, or sooner if that is due already.
pub(super) fn look_by(looks: &mut BTreeMap<OwnedRoomId, Duration>, room: &RoomId, at: Duration) {
    let due = looks.entry(room.to_owned()).or_insert(at);
    *due = at.min(*due);
}
