//! Telling a room's events over its topic, and seeing to it that they are kept elsewhere too: a few members are sent them
//! by themselves unless they show before that they have them, and everybody is where the topic reaches nobody.

use std::{collections::BTreeSet, sync::Arc};

use kith_engine::neighbours;
use kith_identity::{TopicSecret, Vouched};
use kith_store::{ReadTxn, WriteTxn};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::{Receiver, error::TrySendError},
    time::{Duration, sleep},
};

use super::{Shared, Topics};
use crate::{Error, homeserver::Context};

/// Members that are sent an event by themselves, in the end.
const REST: usize = 2;

/// How long they have time to show that they have it: the author compares heads with them after half of it.
const REST_AFTER: Duration = Duration::from_secs(10);

/// How long a comparison of heads takes at the most, among those who are there.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Until a new secret is used, so that it has come to the others meanwhile.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Bytes of the events in one message; with what stands around them they stay below [`TopicSecret::MAX_CONTENT`].
const MAX_BATCH: usize = 200 * 1024;

/// What a message of a topic says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Events of the room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pdus: Vec<Box<RawValue>>,
    /// A list of EDUs, as one of the room's servers says that they are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) edus: Option<Vouched>,
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
        if servers.len() < self.shared.ctx.config.gossip_from {
            return Ok(None);
        }
        let Some(secret) = usable(txn, &self.shared.ctx, room, now)? else {
            return Ok(None);
        };
        let members: BTreeSet<OwnedServerName> = txn.joined_servers(room)?.into_iter().collect();
        let (told, direct): (Vec<_>, Vec<_>) = servers.iter().partition(|server| members.contains(*server));
        if told.len() < self.shared.ctx.config.gossip_from {
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
            secret,
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

/// The secret of a room's topic, if the topic can be spoken on: enough other servers had time to hear of it, and none that
/// has left since may have it.
pub(super) fn usable(
    txn: &ReadTxn<'_>,
    ctx: &Context,
    room: &RoomId,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Option<Arc<TopicSecret>>, Error> {
    if !ctx.network.has_topics() {
        return Ok(None);
    }
    let Some(topic) = txn.topic(room)? else {
        return Ok(None);
    };
    let age = u64::from(now.get()).checked_sub(topic.adopted_at.get().into());
    let settled = age.is_some_and(|age| u128::from(age) >= SETTLED_AFTER.as_millis());
    if !settled || txn.joined_servers(room)?.len() <= ctx.config.gossip_from || txn.is_topic_stale(room)? {
        return Ok(None);
    }
    Ok(Some(Arc::new(TopicSecret::from_bytes(&topic.secret))))
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
    async fn publish(self: &Arc<Self>, batch: Vec<Publication>) {
        let Some(first) = batch.first() else { return };
        let content = Batch {
            pdus: batch.iter().map(|publication| publication.json.clone()).collect(),
            edus: None,
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
                self.note_published(told);
                self.news
                    .note_by_topic(batch.iter().map(|publication| publication.event.clone()));
                let room = first.room.clone();
                let rest: BTreeSet<OwnedServerName> =
                    batch.into_iter().flat_map(|publication| publication.rest).collect();
                self.send_rest_later(&room, rest);
            }
            Err(error) => {
                tracing::debug!(room = %first.room, %error, "a topic reaches nobody; each member is sent the events");
                self.send_to_all(batch).await;
            }
        }
    }

    /// Has members sent what they do not show to have by then. In a busy room one wait serves all that is published during it,
    /// and heads are compared once more before it ends, since the newest of it was not asked about yet.
    fn send_rest_later(self: &Arc<Self>, room: &RoomId, rest: BTreeSet<OwnedServerName>) {
        for server in rest {
            let wait = (room.to_owned(), server);
            if !self.followed().resting.insert(wait.clone()) {
                continue;
            }
            let shared = Arc::clone(self);
            self.tasks.spawn(async move {
                let (room, server) = &wait;
                sleep(REST_AFTER - ANSWERED_WITHIN).await;
                shared.news.note_to_compare(room, [server.clone()]);
                sleep(ANSWERED_WITHIN).await;
                shared.followed().resting.remove(&wait);
                shared.outbox.wake([server.clone()]);
            });
        }
    }

    /// A message went to so many followers.
    pub(super) fn note_published(&self, told: usize) {
        let figures = &mut self.followed().figures;
        figures.messages += 1;
        figures.copies += told as u64;
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
