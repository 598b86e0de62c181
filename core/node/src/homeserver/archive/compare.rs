//! What a server that catches up may read of a room: which events there are, and the events themselves.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{
    EventSet, SetKey, answer_reconciliation,
    limits::{MAX_EVENTS_PER_PULL, MAX_LACKING, MAX_RECONCILE_MESSAGE, MAX_RECONCILED},
};
use ruma::{OwnedEventId, OwnedServerName, UInt, serde::Base64};
use serde_json::value::RawValue;

use super::{Archive, MAX_NAMED, Shelf};
use crate::{
    Error,
    federation::catch_up::api::{pull, reconcile},
};

/// Bytes of events in one answer, passed by at most the last event.
const PULL_BYTES: usize = 4 * 1024 * 1024;

impl Archive {
    /// Events by name, with or without those before them, oldest first. What is not held is left out.
    pub async fn pull(&self, peer: OwnedServerName, request: pull::Request) -> Result<Vec<Box<RawValue>>, Error> {
        let room = request.room_id.clone();
        self.read(peer, room, move |shelf| {
            let named: Vec<OwnedEventId> = request.event_ids.into_iter().take(MAX_EVENTS_PER_PULL).collect();
            if !request.past {
                return shelf.tell_within(named);
            }
            let held: BTreeSet<OwnedEventId> = request.held.into_iter().take(MAX_NAMED).collect();
            let events = shelf.walk_back(named, &held, 0, MAX_EVENTS_PER_PULL)?;
            let near = events.into_iter().map(|event| event.pdu.event_id().to_owned());
            let mut told = shelf.tell_within(near.collect())?;
            told.reverse();
            Ok(told)
        })
        .await
    }

    /// One step of set reconciliation over the events of a room.
    pub async fn reconcile(
        &self,
        peer: OwnedServerName,
        request: reconcile::Request,
    ) -> Result<reconcile::Response, Error> {
        let too_long = |bytes: &Base64, most: usize| bytes.as_bytes().len() > most;
        let Ok(key) = <[u8; 32]>::try_from(request.key.as_bytes()) else {
            return Err(Error::invalid_param("the key is not of 32 bytes"));
        };
        if request
            .message
            .as_ref()
            .is_some_and(|message| too_long(message, MAX_RECONCILE_MESSAGE))
            || request
                .masks
                .as_ref()
                .is_some_and(|masks| too_long(masks, 32 * 2 * MAX_LACKING))
        {
            return Err(Error::invalid_param("more than can be reconciled at once"));
        }
        // Each of these costs what the room's events cost: one at a time for each server.
        let _turn = self.reconciling.take(&peer).await;
        let room = request.room_id.clone();
        self.read(peer, room, move |shelf| {
            let key = SetKey(key);
            let (events, depth) = shelf.events_to_compare(request.depth.into())?;
            let mut answer = reconcile::Response::new(UInt::new_saturating(depth));
            if depth > u64::from(request.depth) {
                return Ok(answer);
            }
            if let Some(message) = request.message {
                let malformed = |error: kith_engine::ReconcileError| Error::invalid_param(error.to_string());
                let set = EventSet::new(&key, events.iter().map(|(depth, id)| (*depth, &**id))).map_err(malformed)?;
                let told = answer_reconciliation(&set, message.as_bytes()).map_err(malformed)?;
                answer.message = Some(Base64::new(told));
            }
            if let Some(masks) = request.masks {
                let masks: BTreeSet<&[u8]> = masks.as_bytes().chunks(32).collect();
                let named = events.iter().filter(|(_, id)| masks.contains(&key.mask(id)[..]));
                let sorted: BTreeMap<(u64, &OwnedEventId), ()> = named.map(|(depth, id)| ((*depth, id), ())).collect();
                answer.event_ids = sorted.into_keys().map(|(_, id)| id.clone()).collect();
            }
            Ok(answer)
        })
        .await
    }
}

impl Shelf<'_> {
    /// The events at a depth or deeper, or as many of the deepest as are compared at once, and from which depth on they are
    /// complete.
    fn events_to_compare(&self, depth: u64) -> Result<(Vec<(u64, OwnedEventId)>, u64), Error> {
        let events = self
            .txn
            .events_from_depth(self.room, depth, self.upto, MAX_RECONCILED)?;
        let complete = match events.last() {
            Some((last, _)) if events.len() == MAX_RECONCILED => last + 1,
            _ => depth,
        };
        Ok((events, complete))
    }

    /// These events in this order, until the answer is full.
    fn tell_within(&self, ids: Vec<OwnedEventId>) -> Result<Vec<Box<RawValue>>, Error> {
        let (mut told, mut bytes) = (Vec::with_capacity(ids.len()), 0);
        for id in ids {
            if bytes >= PULL_BYTES {
                break;
            }
            if let Some(event) = self.held(&id)? {
                let json = self.tell(&event)?;
                bytes += json.get().len();
                told.push(json);
            }
        }
        Ok(told)
    }
}
