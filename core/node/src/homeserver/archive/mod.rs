//! What other servers may read of rooms: events, their past, and states. Only servers with a member in the room are
//! answered, and those that had one, about the room as it was until then; what a room's history visibility hides from them
//! is told without its content. It asks nobody.

mod compare;

use std::collections::{BTreeSet, BinaryHeap};

use kith_engine::{EventStatus, Pdu, RoomReader, StoredPdu, Viewer, limits::MAX_EVENTS_PER_PULL, rules, visible_to};
use kith_store::{Direction, Moment, ReadTxn};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName,
    api::federation::event::get_missing_events, canonical_json::redact,
};
use serde_json::value::{RawValue, to_raw_value};

use super::{Context, terms::Terms, turns::Turns};
use crate::Error;

/// Events named in one request at the most; further ones are passed over.
const MAX_NAMED: usize = 100;
/// Events looked at for one that a server may read, near a time.
const NEAR_LOOKED_AT: usize = 20;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    ctx: Context,
    /// A server's sets are reconciled one after another.
    reconciling: Turns<OwnedServerName>,
}

/// One server's reading of one room that it is in, or was.
struct Shelf<'t> {
    txn: &'t ReadTxn<'t>,
    room: &'t RoomId,
    peer: &'t ServerName,
    /// What came later is not there for this server.
    upto: Moment,
}

impl Archive {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            reconciling: Turns::default(),
        }
    }

    /// One event. 404 `M_NOT_FOUND` if it is not held, or is not the server's business.
    pub async fn event(&self, peer: OwnedServerName, id: OwnedEventId) -> Result<Box<RawValue>, Error> {
        let own = self.ctx.server_name.clone();
        let read = self.ctx.store.read(move |txn| {
            let held = txn.event(&id)?.filter(|held| held.status != EventStatus::Rejected);
            let held = held.ok_or_else(|| not_held(&id))?;
            let shelf = Shelf::of(txn, held.pdu.room_id(), &own, &peer).map_err(|_| not_held(&id))?;
            if !shelf.is_in_time(&id)? {
                return Err(not_held(&id));
            }
            shelf.tell(&held)
        });
        read.await
    }

    /// Events between some that the server has and others whose past it lacks, oldest first.
    ///
    /// Server-server API, `POST /get_missing_events`.
    pub async fn missing_events(
        &self,
        peer: OwnedServerName,
        request: get_missing_events::v1::Request,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let room = request.room_id.clone();
        self.read(peer, room, move |shelf| {
            let limit = usize::try_from(request.limit)
                .unwrap_or(usize::MAX)
                .min(MAX_EVENTS_PER_PULL);
            let latest: Vec<OwnedEventId> = request.latest_events.into_iter().take(MAX_NAMED).collect();
            let stop: BTreeSet<OwnedEventId> = request
                .earliest_events
                .into_iter()
                .take(MAX_NAMED)
                .chain(latest.iter().cloned())
                .collect();
            let mut starts = Vec::new();
            for id in &latest {
                if let Some(event) = shelf.held(id)? {
                    starts.extend(event.pdu.prev_events().iter().cloned());
                }
            }
            let mut events = shelf.walk_back(starts, &stop, request.min_depth.into(), limit)?;
            events.reverse();
            events.iter().map(|event| shelf.tell(event)).collect()
        })
        .await
    }

    /// Some events and those before them, newest first.
    ///
    /// Server-server API, `GET /backfill`.
    pub async fn backfill(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        from: Vec<OwnedEventId>,
        limit: u64,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        self.read(peer, room, move |shelf| {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_EVENTS_PER_PULL);
            let from = from.into_iter().take(MAX_NAMED).collect();
            let events = shelf.walk_back(from, &BTreeSet::new(), 0, limit)?;
            events.iter().map(|event| shelf.tell(event)).collect()
        })
        .await
    }

    /// The state before an event, and everything that authorises it.
    pub async fn state(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        event: OwnedEventId,
    ) -> Result<(Vec<Box<RawValue>>, Vec<Box<RawValue>>), Error> {
        self.read(peer, room, move |shelf| {
            let (state, auth_chain) = shelf.state_ids(&event)?;
            Ok((shelf.jsons(state)?, shelf.jsons(auth_chain)?))
        })
        .await
    }

    /// [`Archive::state`] by ids.
    pub async fn state_ids(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        event: OwnedEventId,
    ) -> Result<(Vec<OwnedEventId>, Vec<OwnedEventId>), Error> {
        self.read(peer, room, move |shelf| shelf.state_ids(&event)).await
    }

    /// Everything that authorises an event.
    pub async fn auth_chain(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        event: OwnedEventId,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        self.read(peer, room, move |shelf| {
            shelf.held(&event)?.ok_or_else(|| not_held(&event))?;
            let chain = shelf.txn.auth_chain(&[event])?;
            shelf.jsons(chain.into_iter().collect())
        })
        .await
    }

    /// The event nearest to a time, of those that the server may read. 404 `M_NOT_FOUND` if there is none.
    pub async fn event_near(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        ts: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<(OwnedEventId, MilliSecondsSinceUnixEpoch), Error> {
        self.read(peer, room, move |shelf| {
            for near in shelf
                .txn
                .events_near(shelf.room, ts, direction, shelf.upto, NEAR_LOOKED_AT)?
            {
                if visible_to(shelf.txn, Viewer::Server(shelf.peer), &near.pdu)? {
                    return Ok((near.pdu.event_id().to_owned(), near.pdu.origin_server_ts()));
                }
            }
            Err(Error::not_found("there is no event on that side of that time"))
        })
        .await
    }

    /// Reads a room for a server; 403 `M_FORBIDDEN` if it never was in it.
    async fn read<T: Send + 'static>(
        &self,
        peer: OwnedServerName,
        room: OwnedRoomId,
        job: impl FnOnce(&Shelf<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let own = self.ctx.server_name.clone();
        let read = self
            .ctx
            .store
            .read(move |txn| job(&Shelf::of(txn, &room, &own, &peer)?));
        read.await
    }
}

impl<'t> Shelf<'t> {
    fn of(txn: &'t ReadTxn<'t>, room: &'t RoomId, own: &ServerName, peer: &'t ServerName) -> Result<Self, Error> {
        let terms = Terms::between(txn, room, own, peer)?;
        let upto = terms
            .ok_or_else(|| Error::forbidden("your server is not in this room"))?
            .upto();
        Ok(Self { txn, room, peer, upto })
    }

    fn is_in_time(&self, id: &EventId) -> Result<bool, Error> {
        Ok(self.upto == Moment::NOW || self.txn.held_by(id, self.upto)?)
    }

    /// An event of this room that stands in its graph, as far as this server may know of it.
    fn held(&self, id: &EventId) -> Result<Option<StoredPdu>, Error> {
        let held = self
            .txn
            .event(id)?
            .filter(|held| held.pdu.room_id() == self.room && !held.outlier && held.status != EventStatus::Rejected);
        Ok(if self.is_in_time(id)? { held } else { None })
    }

    /// These events and those before them, the deepest first, as far as `stop`.
    fn walk_back(
        &self,
        from: Vec<OwnedEventId>,
        stop: &BTreeSet<OwnedEventId>,
        min_depth: u64,
        limit: usize,
    ) -> Result<Vec<StoredPdu>, Error> {
        let mut seen: BTreeSet<OwnedEventId> = stop.clone();
        let mut open = BinaryHeap::new();
        let mut walked = Vec::new();
        let mut next = from;
        loop {
            for id in next.drain(..) {
                if !seen.insert(id.clone()) {
                    continue;
                }
                if let Some(event) = self.held(&id)?
                    && event.pdu.depth() >= min_depth
                {
                    open.push(Deepest(event));
                }
            }
            if walked.len() >= limit {
                return Ok(walked);
            }
            let Some(Deepest(event)) = open.pop() else {
                return Ok(walked);
            };
            next.extend(event.pdu.prev_events().iter().cloned());
            walked.push(event);
        }
    }

    fn state_ids(&self, event: &EventId) -> Result<(Vec<OwnedEventId>, Vec<OwnedEventId>), Error> {
        self.held(event)?.ok_or_else(|| not_held(event))?;
        let before = self.txn.state_before(event)?.ok_or_else(|| not_held(event))?;
        let state: Vec<OwnedEventId> = self.txn.full_state(before)?.values().cloned().collect();
        let auth_chain = self.txn.auth_chain(&state)?.into_iter().collect();
        Ok((state, auth_chain))
    }

    fn jsons(&self, ids: Vec<OwnedEventId>) -> Result<Vec<Box<RawValue>>, Error> {
        let mut jsons = Vec::with_capacity(ids.len());
        for id in ids {
            jsons.extend(self.txn.event_json(&id)?);
        }
        Ok(jsons)
    }

    /// An event as this server may see it. Parts of states are every member's business; the rest follows the room's
    /// history visibility. Without its content an event still shows how history hangs together.
    fn tell(&self, event: &StoredPdu) -> Result<Box<RawValue>, Error> {
        let pdu: &Pdu = &event.pdu;
        if event.outlier || visible_to(self.txn, Viewer::Server(self.peer), pdu)? {
            return Ok(pdu.to_raw());
        }
        let broken =
            |error: Box<dyn std::error::Error + Send + Sync>| Error::Internal("a stored event is broken", Some(error));
        let version = self
            .txn
            .room_version(self.room)?
            .ok_or_else(|| not_held(pdu.event_id()))?;
        let rules = rules(&version)?.redaction;
        let object = pdu.to_object().map_err(|error| broken(error.into()))?;
        let redacted = redact(object, &rules, None).map_err(|error| broken(error.into()))?;
        to_raw_value(&redacted).map_err(|error| broken(error.into()))
    }
}

/// Orders events by depth, then id.
struct Deepest(StoredPdu);

impl Deepest {
    fn key(&self) -> (u64, &EventId) {
        (self.0.pdu.depth(), self.0.pdu.event_id())
    }
}

impl PartialEq for Deepest {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Deepest {}

impl PartialOrd for Deepest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Deepest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// 404 `M_NOT_FOUND`.
fn not_held(id: &EventId) -> Error {
    Error::not_found(format!("event {id} is not known here"))
}
