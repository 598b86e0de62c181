//! Fills the gap before an event whose past is not held: first with the events themselves, else with the state before it.
//! How far to go is the engine's decision; what comes is judged like everything else.

use std::collections::BTreeSet;

use kith_engine::{
    CheckedPdu, EventStatus, Fetch, Gap, Missing, Outcome, RoomError, RoomReader,
    limits::{MAX_IMPORT_EVENTS, MAX_SINGLE_FETCHES},
    oldest_first, receive, receive_outlier, receive_with_state,
};
use kith_store::{ReadTxn, WriteTxn};
use ruma::{
    EventId, OwnedEventId, RoomId, ServerName,
    api::federation::event::{get_missing_events, get_room_state, get_room_state_ids},
};

use super::{
    Incoming,
    ask::{Asked, MANY_EVENTS},
    pull::Past,
    unconnected::{Unconnected, named_from},
};
use crate::{
    Error,
    homeserver::{Rooms, keys::announce, terms::Terms},
    network::Limits,
};

/// Outliers kept in one commit, so that the writer is never held up for long.
const OUTLIERS_PER_COMMIT: usize = 500;

/// Said of an event whose past nobody has.
const NOT_TO_BE_HAD: &str = "the events that it rests upon are not to be had";

/// What became of an event: kept, or why not. Rejected and soft-failed events are kept.
pub(super) type Verdict = Result<(), String>;

/// What an attempt to keep an event came to.
pub(super) enum Attempt {
    /// It is settled.
    Done(Verdict),
    /// These must be held first; and the room's forward extremities, between which and the event they lie.
    Missing(Missing, Vec<OwnedEventId>),
}

impl Incoming {
    /// Keeps an event whose past may have to be fetched, from the server that sent it or from other members. An error
    /// says that nobody could be asked, or that the database failed: the event may be sent again.
    pub(super) async fn receive_with_past(&self, event: CheckedPdu, from: &ServerName) -> Result<Verdict, Error> {
        match self.fill_gap(event, from).await {
            // Who was asked answered, and does not have it: sent again, the event would hold up what comes after it for ever.
            Err(Error::Network(error)) if error.is_final() => Ok(Err(NOT_TO_BE_HAD.to_owned())),
            other => other,
        }
    }

    async fn fill_gap(&self, event: CheckedPdu, from: &ServerName) -> Result<Verdict, Error> {
        let _turn = self.filling.take(event.room_id()).await;
        let asked = self.whom_to_ask(event.room_id(), event.version(), Some(from)).await?;
        let mut gap = Gap::new(event.event_id().to_owned());
        let mut before = Unconnected::default();
        loop {
            let (missing, extremities) = match self.attempt(event.clone()).await? {
                Attempt::Done(verdict) => return Ok(verdict),
                Attempt::Missing(missing, extremities) => (missing, extremities),
            };
            let new = match gap.poll_fetch(&missing, &extremities) {
                Fetch::MissingEvents { earliest, limit, .. } => {
                    let earliest = self.heads_for(event.room_id(), from, earliest).await?;
                    self.fetch_past(&asked, &event, earliest, limit, &mut before).await?
                }
                Fetch::AuthEvents(ids) => self.fetch_outliers(&asked, ids).await?,
                Fetch::AuthChain(id) => {
                    let chain = self.fetch_auth_chain(&asked, &id).await?;
                    self.keep_outliers(chain).await?
                }
                Fetch::Pull => match self.pull_past(&asked, &event, missing.prev, from).await? {
                    Past::Held => 1,
                    Past::Foreign => 0,
                    Past::Later => {
                        self.news.note_unconnected(&event, from);
                        return Ok(Err("what comes before it is being fetched".to_owned()));
                    }
                },
                Fetch::State(id) => {
                    let state = self.fetch_state(&asked, &id).await?;
                    return self.receive_told(event, state).await;
                }
                Fetch::GiveUp => return Ok(Err(NOT_TO_BE_HAD.to_owned())),
            };
            gap.handle_fetched(new);
        }
    }

    /// Those of a room's heads that a server may be told: whoever is in it no more, or never was, learns nothing of where it
    /// stands by sending an event.
    async fn heads_for(
        &self,
        room: &RoomId,
        server: &ServerName,
        heads: Vec<OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>, Error> {
        let (room, server, own) = (room.to_owned(), server.to_owned(), self.ctx.server_name.clone());
        let read = self.ctx.store.read(move |txn| {
            Ok::<_, Error>(match Terms::between(txn, &room, &own, &server)? {
                Some(Terms::Members) => heads,
                Some(Terms::TheyLeft(departure)) => departure.heads,
                _ => Vec::new(),
            })
        });
        read.await
    }

    async fn attempt(&self, event: CheckedPdu) -> Result<Attempt, Error> {
        self.commit(move |txn, rooms| {
            let attempt = keep_live(txn, rooms, &event)?;
            Ok(attempt)
        })
        .await
    }

    /// Fetches events before one, further and further back, and keeps them once they connect. Returns how many were new.
    async fn fetch_past(
        &self,
        asked: &Asked,
        event: &CheckedPdu,
        earliest: Vec<OwnedEventId>,
        limit: usize,
        before: &mut Unconnected,
    ) -> Result<usize, Error> {
        let latest = self.frontier(before, event.event_id()).await?;
        let request = || {
            let mut request =
                get_missing_events::v1::Request::new(asked.room.clone(), earliest.clone(), latest.clone());
            request.limit = u32::try_from(limit).unwrap_or(u32::MAX).into();
            request
        };
        let (server, mut answer) = self.ask(asked, Limits::default(), request).await?;
        answer.events.truncate(limit);
        let told = self
            .server_keys
            .check(answer.events, &asked.room, &asked.version, &server)
            .await?;
        let mut starts: Vec<OwnedEventId> = before.named().into_keys().collect();
        starts.extend(event.pdu().prev_events().iter().cloned());
        let new = before.add(named_from(&starts, self.not_in_graph_of(told).await?));
        let lacking = self.connect(event, before).await?;
        if !lacking.is_empty() && self.fetch_outliers(asked, lacking).await? > 0 {
            self.connect(event, before).await?;
        }
        Ok(new)
    }

    /// Where the next step back starts: at the events whose own past is not at hand.
    async fn frontier(&self, before: &Unconnected, event: &EventId) -> Result<Vec<OwnedEventId>, Error> {
        let mut named = before.named();
        let lacking = self.not_held(named.keys().cloned().collect()).await?;
        let frontier: BTreeSet<OwnedEventId> = lacking.iter().filter_map(|prev| named.remove(prev)).flatten().collect();
        Ok(if frontier.is_empty() {
            vec![event.to_owned()]
        } else {
            frontier.into_iter().collect()
        })
    }

    /// Keeps those of the events whose past is held by now. Returns the events that others of them must be authorised by.
    async fn connect(&self, event: &CheckedPdu, before: &mut Unconnected) -> Result<Vec<OwnedEventId>, Error> {
        let earlier = self.keep_earlier(event.room_id(), before, None).await?;
        let events = before.oldest_first_before(event);
        let (kept, mut lacking) = self
            .commit(move |txn, rooms| {
                let (mut kept, mut lacking) = (BTreeSet::new(), Vec::new());
                let all: BTreeSet<&EventId> = events.iter().map(CheckedPdu::event_id).collect();
                for event in &events {
                    // One that follows another which does not connect does not either: of a long gap, most do not.
                    let mut before = event.pdu().prev_events().iter();
                    if before.any(|prev| all.contains(&**prev) && !kept.contains(prev)) {
                        continue;
                    }
                    match keep_live(txn, rooms, event)? {
                        Attempt::Done(_) => {
                            kept.insert(event.event_id().to_owned());
                        }
                        Attempt::Missing(missing, _) => lacking.extend(missing.auth),
                    }
                }
                Ok((kept, lacking))
            })
            .await?;
        for id in &kept {
            before.remove(id);
        }
        lacking.extend(earlier.lacking);
        Ok(lacking)
    }

    /// Fetches and keeps events that others rest upon. Returns how many were new.
    pub(super) async fn fetch_outliers(&self, asked: &Asked, ids: Vec<OwnedEventId>) -> Result<usize, Error> {
        let events = self.fetch_events(asked, ids).await?;
        self.keep_outliers(events).await
    }

    async fn keep_outliers(&self, events: Vec<CheckedPdu>) -> Result<usize, Error> {
        let events = oldest_first(events);
        let mut new = 0;
        for chunk in events.chunks(OUTLIERS_PER_COMMIT) {
            let chunk = chunk.to_vec();
            new += self
                .commit(move |txn, rooms| {
                    let mut new = 0;
                    for event in &chunk {
                        // One that rests upon an event that is not held stays out: what needs it will show.
                        if let Outcome::Applied(applied) = receive_outlier::<ReadTxn<'_>>(txn, event)? {
                            rooms.keep(txn, &applied)?;
                            new += 1;
                        }
                    }
                    Ok(new)
                })
                .await?;
        }
        Ok(new)
    }

    /// The ids of the state before an event, as another server tells it; as outliers, its events are held afterwards, as
    /// far as they could be had.
    pub(super) async fn fetch_state(&self, asked: &Asked, event: &EventId) -> Result<Vec<OwnedEventId>, Error> {
        let request = || get_room_state_ids::v1::Request::new(event.to_owned(), asked.room.clone());
        let (server, mut answer) = self.ask(asked, MANY_EVENTS, request).await?;
        answer.pdu_ids.truncate(MAX_IMPORT_EVENTS);
        answer.auth_chain_ids.truncate(MAX_IMPORT_EVENTS);
        let mut needed = answer.auth_chain_ids;
        needed.extend(answer.pdu_ids.iter().cloned());
        let lacking = self.not_held(needed).await?;
        if lacking.len() <= MAX_SINGLE_FETCHES {
            self.fetch_outliers(asked, lacking).await?;
            return Ok(answer.pdu_ids);
        }
        let asked_first = asked.starting_with(&server);
        let request = || get_room_state::v1::Request::new(event.to_owned(), asked.room.clone());
        let (server, mut told) = self.ask(&asked_first, MANY_EVENTS, request).await?;
        told.auth_chain.extend(told.pdus);
        told.auth_chain.truncate(MAX_IMPORT_EVENTS);
        let events = self
            .server_keys
            .check(told.auth_chain, &asked.room, &asked.version, &server)
            .await?;
        self.keep_outliers(events).await?;
        Ok(answer.pdu_ids)
    }

    /// Keeps an event by another server's word on the state before it.
    pub(super) async fn receive_told(&self, event: CheckedPdu, state: Vec<OwnedEventId>) -> Result<Verdict, Error> {
        self.commit(move |txn, rooms| {
            // What could not be had is left out, as the other server might have done.
            let mut held = Vec::with_capacity(state.len());
            for id in state {
                if txn.has_event(&id)? {
                    held.push(id);
                }
            }
            match receive_with_state::<ReadTxn<'_>>(txn, &event, &held)? {
                Outcome::Known => Ok(Ok(())),
                Outcome::Applied(applied) => {
                    rooms.keep(txn, &applied)?;
                    txn.note_gaps(event.room_id(), event.pdu().prev_events())?;
                    Ok(verdict(applied.status, applied.reason))
                }
                Outcome::Missing(_) => Ok(Err("the events that authorise it are not to be had".to_owned())),
            }
        })
        .await
    }

    /// Runs a job on the writer, with what follows from every commit that may change who is in a room.
    pub(super) async fn commit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&WriteTxn<'_>, &Rooms) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let rooms = self.rooms.clone();
        let write = self.ctx.store.write(move |txn| {
            let value = job(txn, &rooms)?;
            Ok::<_, Error>((value, announce::due_lists(txn)?))
        });
        let (value, wake) = write.await?;
        self.outbox.wake(wake);
        Ok(value)
    }
}

/// Judges an event that has just arrived, and keeps it if that is possible.
pub(super) fn keep_live(txn: &WriteTxn<'_>, rooms: &Rooms, event: &CheckedPdu) -> Result<Attempt, Error> {
    match receive::<ReadTxn<'_>>(txn, event) {
        Ok(Outcome::Known) => Ok(Attempt::Done(Ok(()))),
        Ok(Outcome::Applied(applied)) => {
            rooms.keep(txn, &applied)?;
            Ok(Attempt::Done(verdict(applied.status, applied.reason)))
        }
        Ok(Outcome::Missing(missing)) => {
            let room: &RoomId = event.room_id();
            Ok(Attempt::Missing(missing, txn.forward_extremities(room)?))
        }
        Err(error @ RoomError::Read(_)) => Err(error.into()),
        // Trying again would change nothing, and must not hold up what else its server sends.
        Err(error) => {
            tracing::warn!(event = %event.event_id(), room = %event.room_id(), %error, "an event cannot be judged");
            Ok(Attempt::Done(Err(error.to_string())))
        }
    }
}

/// What the sender is told: only a rejection is its business. Soft failure is between us and our clients.
fn verdict(status: EventStatus, reason: Option<String>) -> Verdict {
    match status {
        EventStatus::Rejected => Err(reason.unwrap_or_else(|| "the room does not allow it".to_owned())),
        EventStatus::Accepted | EventStatus::SoftFailed => Ok(()),
    }
}
