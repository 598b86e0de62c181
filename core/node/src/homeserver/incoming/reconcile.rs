//! The asking side of set reconciliation with another member. What it finds are names; nothing is fetched or kept here.

use std::collections::BTreeSet;

use kith_engine::{
    EventSet, ReconcileError, Reconciliation, SetKey,
    limits::{MAX_LACKING, MAX_RECONCILED},
};
use kith_store::Moment;
use ruma::{OwnedEventId, RoomId, UInt, serde::Base64};

use super::{Incoming, ask::Asked};
use crate::{
    Error,
    federation::catch_up::api::reconcile,
    network::{Limits, NetworkError},
};

/// Times that an exchange begins anew because the other side compares less of the room.
const MAX_BEGINNINGS: usize = 2;

impl Incoming {
    /// Events that the server that is asked holds and this one does not, oldest first, among those as deep as `window` of
    /// the deepest events held here; and whether that is as deep as what is held here goes.
    pub(super) async fn difference(&self, asked: &Asked, window: usize) -> Result<(Vec<OwnedEventId>, bool), Error> {
        let room = asked.room.clone();
        let read = self.ctx.store.read(move |txn| txn.depth_of_window(&room, window));
        let (mut depth, whole) = read.await?;
        for _ in 0..MAX_BEGINNINGS {
            let key = self.ctx.world.random_bytes::<32>();
            match self.lacking_from(asked, key, depth).await? {
                Compared::Masks(masks) => {
                    let names = self.names_of(asked, key, depth, masks).await?;
                    return Ok((self.not_in_graph(names).await?, whole));
                }
                Compared::Only(from) => depth = from,
            }
        }
        Ok((Vec::new(), true))
    }

    /// The exchange of messages.
    async fn lacking_from(&self, asked: &Asked, key: [u8; 32], depth: u64) -> Result<Compared, Error> {
        let set = self.own_set(&asked.room, SetKey(key), depth).await?;
        let mut asking = Reconciliation::new(set);
        let mut next = Some(asking.first_message().map_err(|error| broken(asked, &error))?);
        while let Some(message) = next {
            let request = || {
                let mut request = reconcile::Request::new(asked.room.clone(), key, UInt::new_saturating(depth));
                request.message = Some(Base64::new(message.clone()));
                request
            };
            let (_, answer) = self.ask(asked, Limits::default(), request).await?;
            let from = u64::from(answer.depth);
            if from > depth {
                return Ok(Compared::Only(from));
            }
            let Some(message) = answer.message else { break };
            let handled = asking.handle_answer(message.as_bytes());
            next = handled.map_err(|error| broken(asked, &error))?;
        }
        Ok(Compared::Masks(asking.into_lacking()))
    }

    /// The names of what was found, oldest first.
    async fn names_of(
        &self,
        asked: &Asked,
        key: [u8; 32],
        depth: u64,
        masks: BTreeSet<[u8; 32]>,
    ) -> Result<Vec<OwnedEventId>, Error> {
        if masks.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<u8> = masks.iter().take(2 * MAX_LACKING).flatten().copied().collect();
        let request = || {
            let mut request = reconcile::Request::new(asked.room.clone(), key, UInt::new_saturating(depth));
            request.masks = Some(Base64::new(wanted.clone()));
            request
        };
        let (_, answer) = self.ask(asked, Limits::default(), request).await?;
        let key = SetKey(key);
        let names = answer.event_ids.into_iter();
        Ok(names
            .filter(|id| masks.contains(&key.mask(id)))
            .take(2 * MAX_LACKING)
            .collect())
    }

    async fn own_set(&self, room: &RoomId, key: SetKey, depth: u64) -> Result<EventSet, Error> {
        let room = room.to_owned();
        let read = self.ctx.store.read(move |txn| {
            let events = txn.events_from_depth(&room, depth, Moment::NOW, MAX_RECONCILED)?;
            EventSet::new(&key, events.iter().map(|(depth, id)| (*depth, &**id)))
                .map_err(|error| Error::Internal("a set of events is none", Some(Box::new(error))))
        });
        read.await
    }
}

/// What an exchange of messages came to.
enum Compared {
    /// What lacks, hashed.
    Masks(BTreeSet<[u8; 32]>),
    /// The other side compares only from this depth on.
    Only(u64),
}

fn broken(asked: &Asked, error: &ReconcileError) -> Error {
    match asked.first() {
        Some(server) => Error::from(NetworkError::Broken {
            server: server.to_owned(),
            reason: error.to_string(),
        }),
        None => Error::not_found("nobody was asked"),
    }
}
