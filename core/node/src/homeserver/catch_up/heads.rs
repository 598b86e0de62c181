//! Exchanges of heads, from both sides. Only rooms in which both servers are, by what is known here, are spoken of, and
//! those that one of them has left, as they were then.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{Compared, ExchangeFailure, Heads, RoomReader, limits::MAX_ROOMS_PER_EXCHANGE};
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName, api::error::ErrorKind};

use super::{CatchUp, Shared};
use crate::{
    Error,
    federation::{catch_up::api::exchange_heads, client},
    homeserver::{incoming::not_in_graph, terms::Terms, topics::ToldTopic},
    network::NetworkError,
};

/// Rooms and their heads.
type Told = BTreeMap<OwnedRoomId, Heads>;

/// What this server has to say of rooms to another one.
#[derive(Default)]
struct Common {
    /// The heads of each, and on what terms it is spoken of.
    rooms: BTreeMap<OwnedRoomId, (Terms, Heads)>,
    /// Those that this server left, as the other one may know.
    left: BTreeSet<OwnedRoomId>,
    /// The secrets of those that both are in.
    topics: BTreeMap<OwnedRoomId, ToldTopic>,
}

impl Common {
    fn told(&self) -> Told {
        let rooms = self.rooms.iter().filter(|(_, (terms, _))| is_told(terms));
        rooms.map(|(room, (_, heads))| (room.clone(), heads.clone())).collect()
    }

    /// Whether both servers are in a room.
    fn is_shared(&self, room: &RoomId) -> bool {
        matches!(self.rooms.get(room), Some((Terms::Members, _)))
    }
}

/// Whether heads are told on such terms. One's own leaving is told by one's heads; who was removed by others has nothing to
/// tell but that it knows.
fn is_told(terms: &Terms) -> bool {
    !matches!(terms, Terms::WeLeft(departure) if !departure.own_act)
}

/// What an exchange of heads is answered with.
pub struct Exchanged {
    /// The heads of the same rooms, as far as they are the other server's business.
    pub rooms: Told,
    /// Those of which everything told is held.
    pub holds: BTreeSet<OwnedRoomId>,
    /// Those that this server has left.
    pub left: BTreeSet<OwnedRoomId>,
    /// The secrets of their topics.
    pub topics: BTreeMap<OwnedRoomId, ToldTopic>,
}

/// Members whom a server cannot tell itself, by room.
pub(super) type Unreached = BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>;

impl CatchUp {
    /// Answers a server that tells its heads, and has what it showed to be lacking here pulled. A room that is not the
    /// server's business is left out, as one that is not there.
    pub async fn handle_exchange(
        &self,
        peer: OwnedServerName,
        rooms: Told,
        unreached: Unreached,
        topics: BTreeMap<OwnedRoomId, ToldTopic>,
    ) -> Result<Exchanged, Error> {
        if rooms.len() > MAX_ROOMS_PER_EXCHANGE || !rooms.values().all(Heads::is_sound) {
            return Err(Error::invalid_param(format!(
                "heads are told of at most {MAX_ROOMS_PER_EXCHANGE} rooms at once"
            )));
        }
        self.shared.topics.handle_told(&peer, topics).await?;
        let own = self.shared.common(&peer, rooms.keys().cloned().collect()).await?;
        let holds = self.shared.compare(&peer, &own, &rooms).await?;
        let elsewhere = rooms.keys().filter(|room| !own.is_shared(room)).cloned().collect();
        self.shared.rooms.note_believer(&peer, elsewhere).await?;
        let now = self.shared.now();
        for room in own.rooms.keys().filter(|room| own.is_shared(room)) {
            let unreached = unreached.get(room).cloned().unwrap_or_default();
            self.shared.decisions().handle_unreached(room, &peer, unreached, now);
        }
        self.shared.changed.notify_one();
        Ok(Exchanged {
            rooms: own.told(),
            holds,
            left: own.left,
            topics: own.topics,
        })
    }
}

impl Shared {
    /// Tells a server the heads of rooms and takes in its own. `None`: of all rooms in common but `except`.
    pub(super) async fn exchange(
        &self,
        server: &OwnedServerName,
        rooms: Option<BTreeSet<OwnedRoomId>>,
        except: &BTreeSet<OwnedRoomId>,
        unreached: &Unreached,
    ) -> Result<(), ExchangeFailure> {
        let exchanged = self.exchange_all(server, rooms, except, unreached).await;
        exchanged.map_err(|error| match error {
            Error::Network(NetworkError::Refused { kind, .. }) if *kind == ErrorKind::Unrecognized => {
                ExchangeFailure::Deaf
            }
            error => {
                tracing::debug!(%server, %error, "heads could not be exchanged");
                ExchangeFailure::Unanswered
            }
        })
    }

    async fn exchange_all(
        &self,
        server: &OwnedServerName,
        rooms: Option<BTreeSet<OwnedRoomId>>,
        except: &BTreeSet<OwnedRoomId>,
        unreached: &Unreached,
    ) -> Result<(), Error> {
        let rooms: Vec<OwnedRoomId> = match rooms {
            Some(rooms) => rooms.into_iter().collect(),
            None => {
                let (own, other) = (self.ctx.server_name.clone(), server.clone());
                let read = self.ctx.store.read(move |txn| {
                    let mut rooms = txn.rooms_in_common(&own, &other)?;
                    rooms.extend(txn.partings_to_tell(&own, &other)?);
                    Ok::<_, Error>(rooms)
                });
                read.await?.into_iter().filter(|room| !except.contains(room)).collect()
            }
        };
        for rooms in rooms.chunks(MAX_ROOMS_PER_EXCHANGE) {
            let own = self.common(server, rooms.to_vec()).await?;
            let told = own.told();
            if told.is_empty() {
                continue;
            }
            let mut request = exchange_heads::Request::new(told);
            let spoken_of = unreached.iter().filter(|(room, _)| own.is_shared(room));
            request.unreached = spoken_of
                .map(|(room, servers)| (room.clone(), servers.clone()))
                .collect();
            request.topics.clone_from(&own.topics);
            let mut answer = client::request(&self.ctx, server, request).await?;
            self.topics.handle_told(server, answer.topics).await?;
            answer.rooms.retain(|_, heads| heads.is_sound());
            self.compare(server, &own, &answer.rooms).await?;
            for room in answer.holds {
                match own.rooms.get(&room) {
                    Some((Terms::Members, heads)) if heads.is_whole() => {
                        self.forget_outgoing(server, &room, heads).await?;
                    }
                    Some((Terms::WeLeft(departure), _)) if !departure.known => {
                        self.note_departure_known(&room, &self.ctx.server_name).await?;
                    }
                    _ => {}
                }
            }
            for room in answer.left {
                if let Some((Terms::TheyLeft(departure), _)) = own.rooms.get(&room)
                    && !departure.known
                {
                    self.note_departure_known(&room, server).await?;
                }
            }
        }
        Ok(())
    }

    /// What is to be said of some rooms to a server.
    async fn common(&self, peer: &ServerName, rooms: Vec<OwnedRoomId>) -> Result<Common, Error> {
        let (own, peer) = (self.ctx.server_name.clone(), peer.to_owned());
        let read = self.ctx.store.read(move |txn| {
            let mut common = Common::default();
            for room in rooms {
                let Some(terms) = Terms::between(txn, &room, &own, &peer)? else {
                    continue;
                };
                if matches!(terms, Terms::WeLeft(_)) {
                    common.left.insert(room.clone());
                }
                let heads = terms.heads(txn, &room)?;
                if matches!(terms, Terms::Members)
                    && let Some(told) = ToldTopic::of(txn, &room)?
                {
                    common.topics.insert(room.clone(), told);
                }
                common.rooms.insert(room, (terms, heads));
            }
            Ok::<_, Error>(common)
        });
        read.await
    }

    /// Takes in what two servers told each other. Returns the rooms of which all that the other one told is held.
    async fn compare(
        &self,
        peer: &OwnedServerName,
        own: &Common,
        theirs: &Told,
    ) -> Result<BTreeSet<OwnedRoomId>, Error> {
        let mut rooms = Vec::new();
        for (room, (terms, own)) in &own.rooms {
            let Some(theirs) = theirs.get(room) else { continue };
            let mut unknown = Vec::new();
            if !own.equal(theirs) {
                unknown.clone_from(&theirs.events);
            } else if matches!(terms, Terms::Members) {
                self.forget_outgoing(peer, room, own).await?;
            }
            rooms.push((room.clone(), unknown));
        }
        let read = self.ctx.store.read(move |txn| {
            let read = |(room, unknown): (OwnedRoomId, _)| {
                let gaps = txn.gaps(&room)?;
                Ok::<_, Error>((room, not_in_graph(txn, unknown)?, gaps))
            };
            rooms.into_iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let mut holds = BTreeSet::new();
        for (room, mut lacking, gaps) in read.await? {
            let (Some((terms, own)), Some(theirs)) = (own.rooms.get(&room), theirs.get(&room)) else {
                continue;
            };
            if lacking.is_empty() {
                holds.insert(room.clone());
            }
            match terms {
                Terms::Members => lacking.extend(gaps),
                // Asking for events would tell who left what has come since.
                Terms::TheyLeft(_) => lacking.clear(),
                // They hear of it from the heads told here.
                Terms::WeLeft(departure) if departure.own_act && !departure.known => lacking.clear(),
                // What they hold besides may undo the removal, as a ban by somebody who had lost the power to it: then this
                // server is in the room for everybody else. They tell no more than it may know.
                Terms::WeLeft(_) => {}
            }
            let compared = Compared {
                room,
                told: if is_told(terms) { own.events.clone() } else { Vec::new() },
                lacking,
                depth: theirs.depth,
            };
            let now = self.now();
            self.decisions().handle_compared(peer, &compared, now);
        }
        Ok(holds)
    }

    async fn note_departure_known(&self, room: &RoomId, server: &ServerName) -> Result<(), Error> {
        let (room, server) = (room.to_owned(), server.to_owned());
        let write = self
            .ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.note_departure_known(&room, &server)?));
        write.await
    }

    /// A server that holds these heads needs to be sent nothing that came before them.
    async fn forget_outgoing(&self, peer: &OwnedServerName, room: &RoomId, heads: &Heads) -> Result<(), Error> {
        let (server, wanted) = (peer.clone(), room.to_owned());
        let read = self.ctx.store.read(move |txn| txn.has_outgoing(&server, &wanted));
        if !read.await? {
            return Ok(());
        }
        let (server, room, heads) = (peer.clone(), room.to_owned(), heads.clone());
        let write = self.ctx.store.write(move |txn| {
            let now = Heads::new(txn.forward_extremities(&room)?, heads.depth);
            if now.equal(&heads) {
                txn.forget_outgoing(&server, &room)?;
            }
            Ok::<_, Error>(())
        });
        write.await
    }
}
