//! The events of one transaction: sorted by whether their rooms are this node's business, checked in parallel, and kept
//! in one commit, which also remembers the answer.

use std::collections::{BTreeMap, HashMap};

use kith_engine::{CheckedPdu, RoomReader, UncheckedPdu};
use ruma::{OwnedEventId, OwnedRoomId, OwnedTransactionId, RoomVersionId, ServerName, TransactionId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use super::{
    Incoming,
    gap::{Attempt, Verdict, keep_live},
};
use crate::{
    Error,
    homeserver::{rooms::state::find_room, verify::parse},
};

/// What is answered to a transaction: for each event the reason for which it was not taken, if it was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer(pub BTreeMap<OwnedEventId, Option<String>>);

/// What became of the events of a transaction.
#[derive(Debug, Default)]
pub struct Received {
    /// What is answered.
    pub answer: Answer,
    /// Events of rooms that this node is not in, as they came. They may end an invite.
    pub outside: Vec<Box<RawValue>>,
}

/// A transaction being handled; the same server's next one waits until this is dropped.
#[derive(Debug)]
pub struct Transaction {
    peer: ruma::OwnedServerName,
    id: OwnedTransactionId,
    _turn: OwnedMutexGuard<()>,
}

/// What a room says of events that a server sends.
enum Gate {
    /// This node is not in it.
    Outside,
    /// Its access list keeps the server out.
    Closed(RoomVersionId),
    Open(RoomVersionId),
}

/// An event whose room this node is in.
struct Sorted {
    place: usize,
    pdu: UncheckedPdu,
}

impl Incoming {
    /// Begins a server's transaction. If the same one was handled before, its answer is all there is to do.
    pub async fn begin(&self, peer: &ServerName, id: &TransactionId) -> Result<Result<Transaction, Answer>, Error> {
        let turn = self.transactions.take(peer).await;
        let (server, wanted) = (peer.to_owned(), id.to_owned());
        let before = self
            .ctx
            .store
            .read(move |txn| txn.received_transaction(&server, &wanted))
            .await?;
        if let Some(answer) = before {
            let answer = serde_json::from_str(&answer)
                .map_err(|error| Error::Internal("a stored answer does not parse", Some(Box::new(error))))?;
            return Ok(Err(answer));
        }
        Ok(Ok(Transaction {
            peer: peer.to_owned(),
            id: id.to_owned(),
            _turn: turn,
        }))
    }

    /// Keeps the events of a transaction. With `last`, they are all that it holds, and its answer is remembered with
    /// them; otherwise [`Incoming::finish`] must follow.
    pub async fn handle_pdus(
        &self,
        transaction: &Transaction,
        pdus: Vec<Box<RawValue>>,
        last: bool,
    ) -> Result<Received, Error> {
        let mut received = Received::default();
        let sorted = self.sort(&transaction.peer, pdus, &mut received).await?;
        let unchecked = self.drop_known(sorted, &mut received).await?;
        let mut genuine = Vec::with_capacity(unchecked.len());
        let mut sent = Vec::with_capacity(unchecked.len());
        for (id, checked) in self.server_keys.verify(unchecked, &transaction.peer).await? {
            match checked {
                Ok(event) => {
                    let author = event.pdu().sender().server_name() == &*transaction.peer;
                    sent.push((id, author));
                    genuine.push(event);
                }
                Err(error) => {
                    tracing::info!(peer = %transaction.peer, event = %id, %error, "an event is not genuine");
                    received.answer.0.insert(id, Some(error.to_string()));
                }
            }
        }
        let (answer, lacking) = self.keep_all(transaction, genuine, received.answer, last).await?;
        received.answer = answer;
        if lacking.is_empty() {
            self.news.note_holder(sent, &transaction.peer);
            return Ok(received);
        }
        for event in lacking {
            let id = event.event_id().to_owned();
            let verdict = self.receive_with_past(event, &transaction.peer).await?;
            received.answer.note(id, verdict);
        }
        self.news.note_holder(sent, &transaction.peer);
        if last {
            self.finish(transaction, &received.answer).await?;
        }
        Ok(received)
    }

    /// Remembers the answer to a transaction of which everything is handled.
    pub async fn finish(&self, transaction: &Transaction, answer: &Answer) -> Result<(), Error> {
        let (peer, id, answer) = (transaction.peer.clone(), transaction.id.clone(), answer.to_json()?);
        self.ctx
            .store
            .write(move |txn| Ok(txn.keep_received_transaction(&peer, &id, &answer)?))
            .await
    }

    /// Parses the events of rooms that this node is in, in the order in which they came.
    pub(super) async fn sort(
        &self,
        peer: &ServerName,
        pdus: Vec<Box<RawValue>>,
        received: &mut Received,
    ) -> Result<Vec<UncheckedPdu>, Error> {
        let mut by_room: BTreeMap<OwnedRoomId, Vec<(usize, Box<RawValue>)>> = BTreeMap::new();
        for (place, pdu) in pdus.into_iter().enumerate() {
            match room_of(&pdu) {
                Some(room) => by_room.entry(room).or_default().push((place, pdu)),
                // Without its room, an event has no version and hence no id: there is nothing to answer to.
                None => tracing::info!(%peer, "an event without a room; ignored"),
            }
        }
        let gates = self.gates(peer, by_room.keys().cloned().collect()).await?;
        let mut sorted = Vec::new();
        for (room, pdus) in by_room {
            let (places, pdus): (Vec<usize>, Vec<Box<RawValue>>) = pdus.into_iter().unzip();
            let (version, open) = match gates.get(&room) {
                Some(Gate::Open(version)) => (version, true),
                Some(Gate::Closed(version)) => (version, false),
                Some(Gate::Outside) | None => {
                    received.outside.extend(pdus);
                    continue;
                }
            };
            for (place, parsed) in places.into_iter().zip(parse(&self.ctx.world, pdus, version).await?) {
                match parsed {
                    Ok(pdu) if open => sorted.push(Sorted { place, pdu }),
                    Ok(pdu) => received.answer.note(
                        pdu.event_id().to_owned(),
                        Err("the room's access list keeps your server out".to_owned()),
                    ),
                    Err(error) => tracing::info!(%peer, %room, %error, "a malformed event; ignored"),
                }
            }
        }
        sorted.sort_by_key(|sorted| sorted.place);
        Ok(sorted.into_iter().map(|sorted| sorted.pdu).collect())
    }

    async fn gates(&self, peer: &ServerName, rooms: Vec<OwnedRoomId>) -> Result<HashMap<OwnedRoomId, Gate>, Error> {
        let mut gates = self.gates_now(peer, rooms).await?;
        let is_outside = |(room, gate): (&OwnedRoomId, &Gate)| matches!(gate, Gate::Outside).then(|| room.clone());
        let outside: Vec<OwnedRoomId> = gates.iter().filter_map(is_outside).collect();
        if outside.is_empty() {
            return Ok(gates);
        }
        // One of them may be being entered: the others in it send us their events from then on, and once only.
        for room in &outside {
            self.rooms.settle(room).await;
        }
        gates.extend(self.gates_now(peer, outside).await?);
        Ok(gates)
    }

    async fn gates_now(&self, peer: &ServerName, rooms: Vec<OwnedRoomId>) -> Result<HashMap<OwnedRoomId, Gate>, Error> {
        let (own, peer) = (self.ctx.server_name.clone(), peer.to_owned());
        let read = self.ctx.store.read(move |txn| {
            let mut gates = HashMap::with_capacity(rooms.len());
            for room in rooms {
                let gate = match find_room(txn, &room)? {
                    Some(view) if txn.is_server_joined(&room, &own)? => match view.allows_server(&peer)? {
                        true => Gate::Open(view.version().clone()),
                        false => Gate::Closed(view.version().clone()),
                    },
                    _ => Gate::Outside,
                };
                gates.insert(room, gate);
            }
            Ok::<_, Error>(gates)
        });
        read.await
    }

    /// Leaves out events that are held already: repetitions are frequent, and checking signatures costs.
    pub(super) async fn drop_known(
        &self,
        pdus: Vec<UncheckedPdu>,
        received: &mut Received,
    ) -> Result<Vec<UncheckedPdu>, Error> {
        let ids: Vec<OwnedEventId> = pdus.iter().map(|pdu| pdu.event_id().to_owned()).collect();
        let read = self.ctx.store.read(move |txn| {
            let mut known = Vec::with_capacity(ids.len());
            for id in &ids {
                known.push(txn.has_event(id)? && txn.event(id)?.is_some_and(|held| !held.outlier));
            }
            Ok::<_, Error>(known)
        });
        let known = read.await?;
        let mut new = Vec::with_capacity(pdus.len());
        for (pdu, known) in pdus.into_iter().zip(known) {
            if known {
                received.answer.note(pdu.event_id().to_owned(), Ok(()));
            } else {
                new.push(pdu);
            }
        }
        Ok(new)
    }

    /// Keeps what can be judged at once, in one commit; returns the rest.
    async fn keep_all(
        &self,
        transaction: &Transaction,
        events: Vec<CheckedPdu>,
        mut answer: Answer,
        last: bool,
    ) -> Result<(Answer, Vec<CheckedPdu>), Error> {
        if events.is_empty() && !last {
            return Ok((answer, events));
        }
        let (peer, id) = (transaction.peer.clone(), transaction.id.clone());
        self.commit(move |txn, rooms| {
            let mut lacking = Vec::new();
            for event in events {
                match keep_live(txn, rooms, &event)? {
                    Attempt::Done(verdict) => answer.note(event.event_id().to_owned(), verdict),
                    Attempt::Missing(..) => lacking.push(event),
                }
            }
            if last && lacking.is_empty() {
                txn.keep_received_transaction(&peer, &id, &answer.to_json()?)?;
            }
            Ok((answer, lacking))
        })
        .await
    }
}

impl Answer {
    fn note(&mut self, id: OwnedEventId, verdict: Verdict) {
        self.0.insert(id, verdict.err());
    }

    fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self)
            .map_err(|error| Error::Internal("an answer did not serialise", Some(Box::new(error))))
    }
}

fn room_of(pdu: &RawValue) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Event {
        room_id: OwnedRoomId,
    }
    serde_json::from_str::<Event>(pdu.get()).ok().map(|event| event.room_id)
}
