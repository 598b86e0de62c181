//! What comes over rooms' topics. Of events, whoever passed them on is taken for who sent them, and they are judged like all
//! others; EDUs are the ephemeral service's. All of it is a hint: what cannot be kept now is left to catching up, and nobody is answered.

use std::sync::Arc;

use kith_engine::{CheckedPdu, UncheckedPdu, oldest_first};
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use serde_json::value::RawValue;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Duration, sleep},
};

use super::{
    Incoming,
    gap::{Attempt, keep_live},
    transaction::Received,
};
use crate::{
    Error,
    homeserver::{Admission, Ephemeral, rooms::state::find_room, topics::Batch},
    network::TopicMessage,
};

/// Events in one message.
const MAX_PDUS: usize = 512;

/// How long the past of an event may be under way over the same topic.
const PAST_WITHIN: Duration = Duration::from_secs(2);

/// Messages whose events wait for it.
pub(super) const MAX_HEARD_EARLY: usize = 64;

impl Incoming {
    /// Takes in what comes over topics, from now on.
    pub fn start(&self, admission: &Admission, ephemeral: &Ephemeral) {
        let Some(mut messages) = self.ctx.network.topic_messages() else {
            return;
        };
        let (admission, ephemeral) = (admission.clone(), ephemeral.clone());
        let service = self.for_task();
        self.tasks.spawn(async move {
            loop {
                match messages.recv().await {
                    Ok(message) => {
                        let handled = service.handle_topic_message(&admission, &ephemeral, message);
                        if let Err(error) = handled.await {
                            tracing::debug!(%error, "what came over a topic was not kept");
                        }
                    }
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "messages of topics came faster than they were taken in");
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Ends all tasks.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    async fn handle_topic_message(
        &self,
        admission: &Admission,
        ephemeral: &Ephemeral,
        message: TopicMessage,
    ) -> Result<(), Error> {
        let Some((room, content)) = self.topics.open(&message.topic, &message.message) else {
            return Ok(());
        };
        let batch = serde_json::from_slice::<Batch>(&content);
        let batch = batch.map_err(|error| Error::bad_json(error.to_string()))?;
        if batch.pdus.len() > MAX_PDUS {
            return Err(Error::invalid_param(format!(
                "a message holds at most {MAX_PDUS} events"
            )));
        }
        let edus = batch.edus.as_ref().map_or(Ok(0), Ephemeral::count_vouched)?;
        admission.take_transaction(&message.from, &batch.pdus, edus)?;
        if !batch.pdus.is_empty() {
            self.handle_topic(&message.from, &room, batch.pdus).await?;
        }
        let Some(vouched) = batch.edus else { return Ok(()) };
        let place = (&*room, &message.topic);
        ephemeral
            .handle_vouched(admission, &message.from, place, &vouched)
            .await
    }

    /// Keeps events that came over a room's topic.
    async fn handle_topic(&self, hop: &ServerName, room: &OwnedRoomId, pdus: Vec<Box<RawValue>>) -> Result<(), Error> {
        let mut received = Received::default();
        let mut unchecked = self.sort(hop, pdus, &mut received).await?;
        unchecked.retain(|pdu| pdu.pdu().room_id() == room);
        let unchecked = self.leave_out_banned(room, unchecked).await?;
        let unchecked = self.drop_known(unchecked, &mut received).await?;
        let mut genuine = Vec::with_capacity(unchecked.len());
        for (id, checked) in self.server_keys.verify(unchecked, hop).await? {
            match checked {
                Ok(event) => genuine.push(event),
                Err(error) => tracing::info!(%hop, event = %id, %error, "an event is not genuine"),
            }
        }
        if genuine.is_empty() {
            return Ok(());
        }
        let lacking = self.keep_heard(oldest_first(genuine)).await?;
        if lacking.is_empty() {
            return Ok(());
        }
        let Ok(place) = Arc::clone(&self.heard_early).try_acquire_owned() else {
            tracing::debug!(%room, "too much comes before its past over topics");
            return Ok(());
        };
        let service = self.for_task();
        self.tasks.spawn(async move {
            sleep(PAST_WITHIN).await;
            match service.keep_heard(lacking).await {
                Ok(lacking) => lacking.iter().for_each(|event| service.ask_author(event)),
                Err(error) => tracing::debug!(%error, "events that came over a topic were not kept"),
            }
            drop(place);
        });
        Ok(())
    }

    /// Keeps what can be judged now; returns the rest.
    async fn keep_heard(&self, events: Vec<CheckedPdu>) -> Result<Vec<CheckedPdu>, Error> {
        let (kept, lacking) = self
            .commit(move |txn, rooms| {
                let (mut kept, mut lacking): (Vec<OwnedEventId>, Vec<CheckedPdu>) = (Vec::new(), Vec::new());
                for event in events {
                    match keep_live(txn, rooms, &event)? {
                        Attempt::Done(_) => kept.push(event.event_id().to_owned()),
                        Attempt::Missing(..) => lacking.push(event),
                    }
                }
                Ok((kept, lacking))
            })
            .await?;
        self.news.note_by_topic(kept);
        Ok(lacking)
    }

    /// Has what an event builds upon fetched from its author, who has it. Others may not have it yet, and that they lack it
    /// must not be taken for a sign that nobody has it; they tell of the event when they hold it.
    fn ask_author(&self, event: &CheckedPdu) {
        let author = event.pdu().sender().server_name();
        if self.ctx.network.peers().iter().any(|peer| peer.server_name == author) {
            self.news.note_unconnected(event, author);
        }
    }

    /// The service as its own tasks hold it.
    fn for_task(&self) -> Self {
        Self {
            tasks: self.tasks.for_task(),
            ..self.clone()
        }
    }

    /// A topic does not show who sends: what counts is whose events these are.
    ///
    /// Server-server API, "Server Access Control Lists (ACLs)".
    async fn leave_out_banned(&self, room: &OwnedRoomId, pdus: Vec<UncheckedPdu>) -> Result<Vec<UncheckedPdu>, Error> {
        let room = room.clone();
        let read = self.ctx.store.read(move |txn| {
            let Some(view) = find_room(txn, &room)? else {
                return Ok(Vec::new());
            };
            let mut allowed = Vec::with_capacity(pdus.len());
            for pdu in pdus {
                if view.allows_server(pdu.pdu().sender().server_name())? {
                    allowed.push(pdu);
                }
            }
            Ok::<_, Error>(allowed)
        });
        read.await
    }
}
