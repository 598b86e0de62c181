//! Fetches a room's past from other members, or else from who was one, when somebody reads back to where this node's
//! knowledge begins. It keeps what comes as history: nothing of it touches the present.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kith_engine::{
    Applied, CheckedPdu, Outcome, RoomError, RoomReader,
    limits::{MAX_EVENTS_PER_PULL, MISSING_EVENTS_PER_REQUEST},
    oldest_first, receive_history,
};
use kith_store::{HISTORY_GAP, ReadTxn, Seq, WriteTxn};
use ruma::{OwnedEventId, OwnedServerName, RoomId, RoomVersionId, api::federation::backfill::get_backfill};

use super::{
    Incoming,
    ask::{Asked, MANY_EVENTS},
    unconnected::named_from,
};
use crate::{
    Error,
    homeserver::{Rooms, terms::Terms, timeline::History},
};

/// Places at which history is asked for in one request.
const MAX_STARTS: usize = 20;
/// Events of one chunk for which the state before them is asked for: it has so many loose ends at the most.
const MAX_STATES: usize = 5;
/// Former members asked for one thing at the most.
const MAX_FORMER: usize = 5;

/// Where history goes on.
struct Starts {
    version: RoomVersionId,
    /// The events to ask for, each with one that is held and names it.
    missing: Vec<(OwnedEventId, OwnedEventId)>,
    /// The place before which they belong.
    before: Option<Seq>,
}

#[async_trait]
impl History for Incoming {
    async fn fetch(&self, room: &RoomId, upto: Seq, wanted: usize) -> Result<bool, Error> {
        let _turn = self.filling.take(room).await;
        let Some(starts) = self.starts(room, upto).await? else {
            return Ok(false);
        };
        let asked = self.whom_to_ask(room, &starts.version, None).await?;
        let limit = wanted.clamp(MISSING_EVENTS_PER_REQUEST, MAX_EVENTS_PER_PULL);
        let all: Vec<OwnedEventId> = starts.missing.iter().map(|(missing, _)| missing.clone()).collect();
        for server in asked.each() {
            if let Some(chunk) = self.try_chunk(&server, &all, limit).await? {
                return self.keep_history(&asked, chunk, starts.before).await;
            }
        }
        // Nobody in the room has it. Who left may: often its creator does.
        for (server, missing) in self.former_members(room, &starts).await? {
            let server = asked.only(&server);
            if let Some(chunk) = self.try_chunk(&server, &missing, limit).await? {
                return self.keep_history(&server, chunk, starts.before).await;
            }
        }
        Ok(false)
    }
}

impl Incoming {
    /// The events with which history goes on from a place of the timeline, and the place before which they belong: named
    /// by events that are held, but not held themselves. Where the node was away for a while there are some in the midst
    /// of the timeline, and those of one such gap are taken, the newest at or before the place.
    async fn starts(&self, room: &RoomId, upto: Seq) -> Result<Option<Starts>, Error> {
        let room = room.to_owned();
        let read = self.ctx.store.read(move |txn| {
            let mut named = Vec::new();
            for (missing, namer) in txn.backward_extremities(&room)? {
                // What no client is shown has no place; what it names is looked for last.
                let place = txn.stream_of(&namer)?.unwrap_or(Seq(i64::MIN));
                if place <= upto {
                    named.push((place, (missing, namer)));
                }
            }
            let Some(newest) = named.iter().map(|(place, _)| *place).max() else {
                return Ok(None);
            };
            named.retain(|(place, _)| place.0 >= newest.0.saturating_sub(HISTORY_GAP / 2));
            let before = named
                .iter()
                .map(|(place, _)| *place)
                .min()
                .filter(|place| place.0 > i64::MIN);
            let missing = named.into_iter().map(|(_, missing)| missing).take(MAX_STARTS).collect();
            Ok::<_, Error>(txn.room_version(&room)?.map(|version| Starts {
                version,
                missing,
                before,
            }))
        });
        read.await
    }

    /// Connected servers that have left a room, each with those of the missing events that it may be asked for: those named
    /// by what it was told of until it left. Of anything later, asking would tell it.
    async fn former_members(
        &self,
        room: &RoomId,
        starts: &Starts,
    ) -> Result<Vec<(OwnedServerName, Vec<OwnedEventId>)>, Error> {
        let peers = self.ctx.network.peers();
        let (room, own, missing) = (room.to_owned(), self.ctx.server_name.clone(), starts.missing.clone());
        let read = self.ctx.store.read(move |txn| {
            let namers: BTreeSet<OwnedEventId> = missing.iter().map(|(_, namer)| namer.clone()).collect();
            let mut former = Vec::new();
            for peer in peers {
                let Some(terms @ Terms::TheyLeft(_)) = Terms::between(txn, &room, &own, &peer.server_name)? else {
                    continue;
                };
                let known = terms.known_of(txn, &room, &namers)?;
                let asked = missing.iter().filter(|(_, namer)| known.contains(namer));
                let asked: Vec<OwnedEventId> = asked.map(|(missing, _)| missing.clone()).collect();
                if !asked.is_empty() {
                    former.push((peer.server_name, asked));
                }
                if former.len() >= MAX_FORMER {
                    break;
                }
            }
            Ok::<_, Error>(former)
        });
        read.await
    }

    /// [`Incoming::fetch_chunk`]; none if the server does not help. An error says that nobody else need be asked.
    async fn try_chunk(
        &self,
        asked: &Asked,
        starts: &[OwnedEventId],
        limit: usize,
    ) -> Result<Option<Vec<CheckedPdu>>, Error> {
        match self.fetch_chunk(asked, starts, limit).await {
            Ok(chunk) => Ok(Some(chunk).filter(|chunk| !chunk.is_empty())),
            Err(error @ (Error::Store(_) | Error::Internal(..))) => Err(error),
            Err(error) => {
                tracing::debug!(room = %asked.room, %error, "no history from a server");
                Ok(None)
            }
        }
    }

    /// What one server tells of a room's past, as far as it is new and its place in it is beyond doubt.
    async fn fetch_chunk(
        &self,
        asked: &Asked,
        starts: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<CheckedPdu>, Error> {
        let count = u32::try_from(limit).unwrap_or(u32::MAX);
        let request = || get_backfill::v1::Request::new(asked.room.clone(), starts.to_vec(), count.into());
        let (server, mut answer) = self.ask(asked, MANY_EVENTS, request).await?;
        answer.pdus.truncate(limit);
        let told = self
            .server_keys
            .check(answer.pdus, &asked.room, &asked.version, &server)
            .await?;
        let told = named_from(starts, told);
        let ids: Vec<OwnedEventId> = told.iter().map(|event| event.event_id().to_owned()).collect();
        let read = self.ctx.store.read(move |txn| {
            let mut held = BTreeSet::new();
            for id in ids {
                if txn.event(&id)?.is_some_and(|event| !event.outlier) {
                    held.insert(id);
                }
            }
            Ok::<_, Error>(held)
        });
        let held = read.await?;
        let new = told.into_iter().filter(|event| !held.contains(event.event_id()));
        Ok(oldest_first(new.collect()))
    }

    /// Keeps a chunk, oldest event first. Returns whether any of it was kept.
    async fn keep_history(&self, asked: &Asked, chunk: Vec<CheckedPdu>, before: Option<Seq>) -> Result<bool, Error> {
        let within: BTreeSet<OwnedEventId> = chunk.iter().map(|event| event.event_id().to_owned()).collect();
        let auth = chunk.iter().flat_map(|event| event.pdu().auth_events());
        let auth: BTreeSet<OwnedEventId> = auth.filter(|id| !within.contains(*id)).cloned().collect();
        let lacking = self.not_held(auth.into_iter().collect()).await?;
        if !lacking.is_empty() {
            self.fetch_outliers(asked, lacking).await?;
        }
        let states = self.states_before(asked, &chunk, &within).await?;
        let room = asked.room.clone();
        self.commit(move |txn, rooms| {
            let mut any = false;
            let places = txn.reserve_history(&room, before, chunk.len())?;
            for (event, place) in chunk.iter().zip(places) {
                let told = states.get(event.event_id()).map(Vec::as_slice);
                match receive_history::<ReadTxn<'_>>(txn, event, told) {
                    Ok(Outcome::Applied(applied)) => {
                        keep_in_the_past(txn, rooms, &applied, place)?;
                        any = true;
                    }
                    Ok(Outcome::Known) => {}
                    Ok(Outcome::Missing(_)) => {
                        tracing::info!(%room, event = %event.event_id(), "history that cannot be judged; ignored");
                    }
                    Err(error @ RoomError::Read(_)) => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(%room, event = %event.event_id(), %error, "history that cannot be judged")
                    }
                }
            }
            Ok(any)
        })
        .await
    }

    /// The states before the events with which a chunk begins; without them, nobody could tell who may read it.
    async fn states_before(
        &self,
        asked: &Asked,
        chunk: &[CheckedPdu],
        within: &BTreeSet<OwnedEventId>,
    ) -> Result<BTreeMap<OwnedEventId, Vec<OwnedEventId>>, Error> {
        let prevs = chunk.iter().flat_map(|event| event.pdu().prev_events());
        let outside: Vec<OwnedEventId> = prevs.filter(|id| !within.contains(*id)).cloned().collect();
        let read = self.ctx.store.read(move |txn| {
            let mut loose = BTreeSet::new();
            for id in outside {
                if txn.state_after(&id)?.is_none() {
                    loose.insert(id);
                }
            }
            Ok::<_, Error>(loose)
        });
        let loose = read.await?;
        let beginnings = chunk
            .iter()
            .filter(|event| event.pdu().prev_events().iter().any(|prev| loose.contains(prev)));
        let mut states = BTreeMap::new();
        for event in beginnings.take(MAX_STATES) {
            match self.fetch_state(asked, event.event_id()).await {
                Ok(ids) => {
                    let lacking: BTreeSet<OwnedEventId> = self.not_held(ids.clone()).await?.into_iter().collect();
                    let held = ids.into_iter().filter(|id| !lacking.contains(id)).collect();
                    states.insert(event.event_id().to_owned(), held);
                }
                Err(error @ (Error::Store(_) | Error::Internal(..))) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, event = %event.event_id(), "the state before history is not told")
                }
            }
        }
        Ok(states)
    }
}

/// Keeps an event at a place of the past; or as news, if it turned out to be none of the past.
pub(super) fn keep_in_the_past(txn: &WriteTxn<'_>, rooms: &Rooms, applied: &Applied, place: Seq) -> Result<(), Error> {
    match applied.history {
        true => txn.save_history(applied, place)?,
        false => rooms.keep(txn, applied)?,
    };
    Ok(())
}
