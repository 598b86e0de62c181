//! Typing and receipts of larger rooms: told over the room's topic in this node's name, one message for everybody, and soon after
//! another one nothing but what is newest of what came meanwhile. Where the topic reaches nobody, each server is told by
//! itself. It makes no EDU, and reads none.

use std::{collections::BTreeMap, sync::Arc};

use kith_identity::{TopicSecret, Vouched};
use kith_store::ReadTxn;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, UInt};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::{Duration, sleep};

use super::{Batch, Shared, Topics, publish::usable};
use crate::Error;

/// From one message with EDUs of a room until the next.
const PAUSE: Duration = Duration::from_secs(2);

/// EDUs of a room that wait for the next message, and so in one message. Who reads takes no more.
pub(crate) const MAX_EDUS: usize = 100;

/// An EDU for a room's topic.
#[derive(Debug, Clone)]
pub(crate) struct TopicEdu {
    /// What newer ones take the place of.
    pub(crate) slot: String,
    /// `{"edu_type": …, "content": …}`.
    pub(crate) edu: Box<RawValue>,
    /// Where the topic reaches nobody, it is queued for every server in the room; otherwise told to those who are connected.
    pub(crate) lasting: bool,
}

/// What waits, by room and slot. A room that is named here has a task.
pub(super) type Waiting = BTreeMap<OwnedRoomId, BTreeMap<String, TopicEdu>>;

impl Topics {
    /// The secret under which a room can be spoken to now; none: each server by itself.
    pub(crate) fn usable(
        &self,
        txn: &ReadTxn<'_>,
        room: &RoomId,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Option<Arc<TopicSecret>>, Error> {
        usable(txn, &self.shared.ctx, room, now)
    }

    /// Tells a room's other servers of something that is no event. Call it once what it says is kept.
    pub(crate) fn tell(&self, room: &RoomId, edu: TopicEdu) {
        let mut edus = self.shared.edus();
        match edus.get_mut(room) {
            Some(waiting) if waiting.len() < MAX_EDUS || waiting.contains_key(&edu.slot) => {
                waiting.insert(edu.slot.clone(), edu);
            }
            Some(_) => {
                let (shared, room) = (Arc::clone(&self.shared), room.to_owned());
                self.tasks
                    .spawn(async move { shared.tell_each(&room, vec![edu]).await });
            }
            None => {
                edus.insert(room.to_owned(), [(edu.slot.clone(), edu)].into());
                let (shared, room) = (Arc::clone(&self.shared), room.to_owned());
                self.tasks.spawn(async move { shared.tell_waiting(&room).await });
            }
        }
    }
}

impl Shared {
    /// Tells what waits for a room, until nothing came during a pause.
    async fn tell_waiting(&self, room: &RoomId) {
        loop {
            let waiting = {
                let mut edus = self.edus();
                match edus.get_mut(room) {
                    Some(waiting) if !waiting.is_empty() => std::mem::take(waiting),
                    _ => {
                        edus.remove(room);
                        return;
                    }
                }
            };
            self.tell_now(room, waiting.into_values().collect()).await;
            sleep(PAUSE).await;
        }
    }

    async fn tell_now(&self, room: &RoomId, edus: Vec<TopicEdu>) {
        match self.publish_edus(room, &edus).await {
            Ok(true) => {}
            Ok(false) => self.tell_each(room, edus).await,
            Err(error) => {
                tracing::debug!(%room, %error, "EDUs do not go over the topic; each server is told");
                self.tell_each(room, edus).await;
            }
        }
    }

    /// Whether the topic took it.
    async fn publish_edus(&self, room: &RoomId, edus: &[TopicEdu]) -> Result<bool, Error> {
        let (ctx, of, now) = (self.ctx.clone(), room.to_owned(), self.ctx.world.now());
        let usable = self.ctx.store.read(move |txn| usable(txn, &ctx, &of, now));
        let Some(secret) = usable.await? else {
            return Ok(false);
        };
        let internal = |what, error: Box<dyn std::error::Error + Send + Sync>| Error::Internal(what, Some(error));
        let content = to_raw_value(&edus.iter().map(|edu| &edu.edu).collect::<Vec<_>>())
            .map_err(|error| internal("EDUs did not serialise", error.into()))?;
        let (key, origin) = (&self.ctx.node_key, self.ctx.server_name.clone());
        let vouched = Vouched::sign(key, &secret.public().name(), origin, self.next_time(), content)
            .map_err(|error| internal("EDUs could not be signed", error.into()))?;
        let batch = Batch {
            pdus: Vec::new(),
            edus: Some(vouched),
        };
        let content =
            serde_json::to_vec(&batch).map_err(|error| internal("a message did not serialise", error.into()))?;
        let sealed = secret
            .seal(&content, &mut self.ctx.world.rng())
            .map_err(|error| internal("a message could not be sealed", error.into()))?;
        match self.ctx.network.publish(&secret.public(), sealed.into()).await {
            Ok(told) => {
                self.note_published(told);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%room, %error, "a topic reaches nobody");
                Ok(false)
            }
        }
    }

    /// The time, or as much later that no two messages have the same.
    fn next_time(&self) -> MilliSecondsSinceUnixEpoch {
        let now = self.ctx.world.now().get();
        let mut followed = self.followed();
        let after = followed.said_last.saturating_add(UInt::from(1_u32));
        followed.said_last = now.max(after);
        MilliSecondsSinceUnixEpoch(followed.said_last)
    }

    /// Tells each of a room's other servers by itself.
    async fn tell_each(&self, room: &RoomId, edus: Vec<TopicEdu>) {
        let (of, own) = (room.to_owned(), self.ctx.server_name.clone());
        let (lasting, passing): (Vec<_>, Vec<_>) = edus.into_iter().partition(|edu| edu.lasting);
        let write = self.ctx.store.write(move |txn| {
            let mut servers: Vec<OwnedServerName> = txn.joined_servers(&of)?;
            servers.retain(|server| *server != own);
            for edu in &lasting {
                for server in &servers {
                    txn.enqueue_edu_in(server, &edu.slot, &edu.edu)?;
                }
            }
            Ok::<_, Error>((servers, !lasting.is_empty()))
        });
        match write.await {
            Ok((servers, queued)) => {
                for edu in passing {
                    self.outbox.tell(servers.iter().cloned(), &edu.slot, &edu.edu);
                }
                if queued {
                    self.outbox.wake(servers);
                }
            }
            Err(error) => tracing::warn!(%room, %error, "EDUs that could not be published were not queued either"),
        }
    }
}
