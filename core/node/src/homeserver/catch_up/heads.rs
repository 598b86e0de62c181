//! Exchanges of heads, from both sides. Only rooms in which both servers are now, by what is known here, are spoken of.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{Compared, ExchangeFailure, Heads, RoomReader, limits::MAX_ROOMS_PER_EXCHANGE};
use kith_store::ReadTxn;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName, api::error::ErrorKind};

use super::{CatchUp, Shared};
use crate::{
    Error,
    federation::{catch_up::api::exchange_heads, client},
    homeserver::{incoming::not_in_graph, rooms::state::find_room},
    network::NetworkError,
};

/// Rooms and their heads.
type Told = BTreeMap<OwnedRoomId, Heads>;

/// Members whom a server cannot tell itself, by room.
pub(super) type Unreached = BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>;

impl CatchUp {
    /// Answers a server that tells its heads, and has what it showed to be lacking here pulled. Returns the heads of the same
    /// rooms, and of which rooms everything told is held. A room that is not the server's business is left out, as one that
    /// is not there.
    pub async fn handle_exchange(
        &self,
        peer: OwnedServerName,
        rooms: Told,
        unreached: Unreached,
    ) -> Result<(Told, BTreeSet<OwnedRoomId>), Error> {
        if rooms.len() > MAX_ROOMS_PER_EXCHANGE || !rooms.values().all(Heads::is_sound) {
            return Err(Error::invalid_param(format!(
                "heads are told of at most {MAX_ROOMS_PER_EXCHANGE} rooms at once"
            )));
        }
        let own = self.shared.own_heads(&peer, rooms.keys().cloned().collect()).await?;
        let holds = self.shared.compare(&peer, &own, &rooms).await?;
        let now = self.shared.now();
        for room in own.keys() {
            let unreached = unreached.get(room).cloned().unwrap_or_default();
            self.shared.decisions().handle_unreached(room, &peer, unreached, now);
        }
        self.shared.changed.notify_one();
        Ok((own, holds))
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
                let read = self.ctx.store.read(move |txn| txn.rooms_in_common(&own, &other));
                read.await?.into_iter().filter(|room| !except.contains(room)).collect()
            }
        };
        for rooms in rooms.chunks(MAX_ROOMS_PER_EXCHANGE) {
            let own = self.own_heads(server, rooms.to_vec()).await?;
            if own.is_empty() {
                continue;
            }
            let mut request = exchange_heads::Request::new(own.clone());
            let spoken_of = unreached.iter().filter(|(room, _)| own.contains_key(*room));
            request.unreached = spoken_of
                .map(|(room, servers)| (room.clone(), servers.clone()))
                .collect();
            let mut answer = client::request(&self.ctx, server, request).await?;
            answer.rooms.retain(|_, heads| heads.is_sound());
            self.compare(server, &own, &answer.rooms).await?;
            for room in answer.holds {
                if let Some(heads) = own.get(&room).filter(|heads| heads.is_whole()) {
                    self.forget_outgoing(server, &room, heads).await?;
                }
            }
        }
        Ok(())
    }

    /// The heads of those of some rooms in which both servers are.
    async fn own_heads(&self, peer: &ServerName, rooms: Vec<OwnedRoomId>) -> Result<Told, Error> {
        let (own, peer) = (self.ctx.server_name.clone(), peer.to_owned());
        let read = self.ctx.store.read(move |txn| {
            let mut heads = Told::new();
            for room in rooms {
                if is_common(txn, &room, &own, &peer)? {
                    let extremities = txn.forward_extremities(&room)?;
                    let depth = txn.head_depth(&room)?;
                    heads.insert(room, Heads::new(extremities, depth));
                }
            }
            Ok::<_, Error>(heads)
        });
        read.await
    }

    /// Takes in what two servers told each other. Returns the rooms of which all that the other one told is held.
    async fn compare(&self, peer: &OwnedServerName, own: &Told, theirs: &Told) -> Result<BTreeSet<OwnedRoomId>, Error> {
        let mut rooms = Vec::new();
        for (room, own) in own {
            let Some(theirs) = theirs.get(room) else { continue };
            let mut unknown = Vec::new();
            if own.equal(theirs) {
                self.forget_outgoing(peer, room, own).await?;
            } else {
                unknown.clone_from(&theirs.events);
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
            let (Some(own), Some(theirs)) = (own.get(&room), theirs.get(&room)) else {
                continue;
            };
            if lacking.is_empty() {
                holds.insert(room.clone());
            }
            lacking.extend(gaps);
            let compared = Compared {
                room,
                told: own.events.clone(),
                lacking,
                depth: theirs.depth,
            };
            let now = self.now();
            self.decisions().handle_compared(peer, &compared, now);
        }
        Ok(holds)
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

/// Whether a room may be spoken of with a server: both are in it, and its access list lets the other take part.
fn is_common(txn: &ReadTxn<'_>, room: &RoomId, own: &ServerName, peer: &ServerName) -> Result<bool, Error> {
    let joined = txn.is_server_joined(room, own)? && txn.is_server_joined(room, peer)?;
    match find_room(txn, room)?.filter(|_| joined) {
        Some(view) => Ok(view.allows_server(peer)?),
        None => Ok(false),
    }
}
