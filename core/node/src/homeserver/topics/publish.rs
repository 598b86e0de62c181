//! Telling a room's events over its topic, and seeing to it that they are kept elsewhere too: a few members are sent them
//! by themselves unless they show before that they have them, and everybody is where the topic reaches nobody.

use std::{collections::BTreeSet, sync::Arc};

use kith_engine::neighbours;
use kith_identity::TopicSecret;
use kith_store::WriteTxn;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::{Receiver, error::TrySendError},
    time::{Duration, sleep},
};

use super::{Shared, Topics};
use crate::Error;

/// Members that are sent an event by themselves, in the end.
const REST: usize = 2;

/// How long they have time to show that they have it: the author compares heads with them after half of it.
const REST_AFTER: Duration = Duration::from_secs(10);

/// Until a new secret is used, so that it has come to the others meanwhile.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Bytes of the events in one message; with what stands around them they stay below [`TopicSecret::MAX_CONTENT`].
const MAX_BATCH: usize = 200 * 1024;

/// What a message of a topic says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Events of the room.
    pub(crate) pdus: Vec<Box<RawValue>>,
}

/// How an event is told.
pub(crate) struct Plan {
    /// The secret under which it is published.
    pub(crate) secret: Arc<TopicSecret>,
    /// Who is sent it at once because the topic is not for them.
    pub(crate) direct: Vec<OwnedServerName>,
    /// Who is sent it later if need be.
    pub(crate) rest: Vec<OwnedServerName>,
}

/// An event to be published.
pub(crate) struct Publication {
    pub(crate) room: OwnedRoomId,
    pub(crate) secret: Arc<TopicSecret>,
    pub(crate) event: OwnedEventId,
    pub(crate) json: Box<RawValue>,
    pub(crate) rest: Vec<OwnedServerName>,
}

impl Topics {
    /// How to tell these servers of an event that was just kept; none: each by itself.
    pub(crate) fn plan(
        &self,
        txn: &WriteTxn<'_>,
        room: &RoomId,
        servers: &BTreeSet<OwnedServerName>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Option<Plan>, Error> {
        if servers.len() < self.shared.ctx.config.gossip_from || !self.shared.is_able() {
            return Ok(None);
        }
        let Some(topic) = txn.topic(room)? else {
            return Ok(None);
        };
        let age = u64::from(now.get()).checked_sub(topic.adopted_at.get().into());
        let settled = age.is_some_and(|age| u128::from(age) >= SETTLED_AFTER.as_millis());
        let members: BTreeSet<OwnedServerName> = txn.joined_servers(room)?.into_iter().collect();
        let (told, direct): (Vec<_>, Vec<_>) = servers.iter().partition(|server| members.contains(*server));
        if !settled || told.len() < self.shared.ctx.config.gossip_from || txn.is_topic_stale(room)? {
            return Ok(None);
        }
        let peers = self.shared.ctx.network.peers();
        let connected = |server: &&&OwnedServerName| peers.iter().any(|peer| peer.server_name == ***server);
        let own = &self.shared.ctx.server_name;
        let mut rest = neighbours(own, told.iter().filter(connected).copied(), REST);
        if rest.len() < REST {
            rest.extend(neighbours(own, told, REST));
        }
        Ok(Some(Plan {
            secret: Arc::new(TopicSecret::from_bytes(&topic.secret)),
            direct: direct.into_iter().cloned().collect(),
            rest: rest.into_iter().cloned().collect(),
        }))
    }

    /// Publishes events whose commit is on disk.
    pub(crate) fn publish(&self, publications: Vec<Publication>) {
        for publication in publications {
            match self.shared.publications.try_send(publication) {
                Ok(()) => {}
                Err(TrySendError::Full(publication) | TrySendError::Closed(publication)) => {
                    let shared = Arc::clone(&self.shared);
                    self.tasks
                        .spawn(async move { shared.send_to_all(vec![publication]).await });
                }
            }
        }
    }
}

/// Publishes what comes, as much of it at once as there is.
pub(super) async fn run(shared: Arc<Shared>, mut publications: Receiver<Publication>) {
    let mut waiting = Vec::new();
    while publications.recv_many(&mut waiting, super::MAX_PUBLICATIONS).await > 0 {
        while !waiting.is_empty() {
            let batch = next_batch(&mut waiting);
            shared.publish(batch).await;
        }
    }
}

/// The first of what waits, and what waits with it for the same topic, as far as it fits into one message.
fn next_batch(waiting: &mut Vec<Publication>) -> Vec<Publication> {
    let mut batch: Vec<Publication> = Vec::new();
    let mut bytes = 0;
    let mut full = false;
    let mut left = Vec::new();
    for publication in waiting.drain(..) {
        let fits = batch.first().is_none_or(|first| {
            first.room == publication.room
                && first.secret.as_bytes() == publication.secret.as_bytes()
                && bytes + publication.json.get().len() < MAX_BATCH
        });
        let same_room = batch.first().is_some_and(|first| first.room == publication.room);
        if fits && !full {
            bytes += publication.json.get().len() + 1;
            batch.push(publication);
        } else {
            // Nothing of a room overtakes.
            full |= same_room;
            left.push(publication);
        }
    }
    *waiting = left;
    batch
}

impl Shared {
    async fn publish(&self, batch: Vec<Publication>) {
        let Some(first) = batch.first() else { return };
        let content = Batch {
            pdus: batch.iter().map(|publication| publication.json.clone()).collect(),
        };
        let sealed = serde_json::to_vec(&content)
            .ok()
            .and_then(|content| first.secret.seal(&content, &mut self.ctx.world.rng()).ok());
        let Some(sealed) = sealed else {
            tracing::warn!(room = %first.room, "events could not be sealed for their topic");
            return self.send_to_all(batch).await;
        };
        match self.ctx.network.publish(&first.secret.public(), sealed.into()).await {
            Ok(told) => {
                {
                    let figures = &mut self.followed().figures;
                    figures.messages += 1;
                    figures.copies += told as u64;
                }
                self.news
                    .note_by_topic(batch.iter().map(|publication| publication.event.clone()));
                let rest: BTreeSet<OwnedServerName> =
                    batch.into_iter().flat_map(|publication| publication.rest).collect();
                let outbox = self.outbox.clone();
                self.tasks.spawn(async move {
                    sleep(REST_AFTER).await;
                    outbox.wake(rest);
                });
            }
            Err(error) => {
                tracing::debug!(room = %first.room, %error, "a topic reaches nobody; each member is sent the events");
                self.send_to_all(batch).await;
            }
        }
    }

    /// Has every member sent what could not be published.
    async fn send_to_all(&self, batch: Vec<Publication>) {
        let own = self.ctx.server_name.clone();
        let queued = self.ctx.store.write(move |txn| {
            let mut wake = BTreeSet::new();
            for publication in &batch {
                let mut servers = txn.joined_servers(&publication.room)?;
                wake.extend(publication.rest.iter().cloned());
                servers.retain(|server| *server != own && !publication.rest.contains(server));
                txn.enqueue_pdu(&servers, &publication.event)?;
                wake.extend(servers);
            }
            Ok::<_, Error>(wake)
        });
        match queued.await {
            Ok(wake) => self.outbox.wake(wake),
            // Heads tell of them: nothing says that they went over the topic.
            Err(error) => tracing::warn!(%error, "events that could not be published were not queued either"),
        }
    }
}
