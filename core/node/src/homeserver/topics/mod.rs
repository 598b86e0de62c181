//! The topics of larger rooms: their secrets, which only members' servers are told, and what is published under them.
//! Reads nothing that comes in over a topic ([`super::Incoming`] does), and promises no delivery: catching up does.
//!
//! A secret is made when a room comes to have enough servers, and anew when one of them has left. Any member may make it;
//! they wait for each other in the order of their names. Of two the same one is used by all who know both.

#[cfg(test)]
mod edu_tests;
mod edus;
mod publish;
#[cfg(test)]
mod tests;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kith_engine::{
    is_generation_believed,
    limits::{TOPIC_CHECK_AFTER, TOPIC_NEIGHBOURS},
    neighbours,
};
use kith_identity::{TopicName, TopicSecret};
use kith_store::{Adopted, NewTopic, WriteTxn};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, ServerName, UInt};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep},
};

use super::{Context, News, Outbox, tasks::Tasks};
use crate::Error;

pub(crate) use edus::{MAX_EDUS, TopicEdu};
#[cfg(test)]
use publish::SETTLED_AFTER as SETTLED;
pub(crate) use publish::{Batch, Plan, Publication};
pub use told::ToldTopic;
pub(crate) use told::{NEW_TOPIC, TopicContent, topic_slot};

/// Events that wait to be published.
const MAX_PUBLICATIONS: usize = 256;

/// From when a room wants a secret until the first member makes it: further servers may leave, or one may be told.
const MAKE_AFTER: Duration = Duration::from_secs(3);

/// How much later each connected member makes it than the one before it in the order of names.
const TURN: Duration = Duration::from_secs(3);

/// Turns that are waited at the most.
const MAX_TURNS: usize = 20;

/// How long a secret is read that another one has replaced.
const GRACE: Duration = Duration::from_secs(10 * 60);

/// The service. Cheap to clone; [`Topics::shutdown`], or dropping the last handle, ends its tasks.
#[derive(Clone)]
pub struct Topics {
    shared: Arc<Shared>,
    tasks: Tasks,
    incoming: Arc<Mutex<Option<mpsc::Receiver<Publication>>>>,
}

struct Shared {
    ctx: Context,
    outbox: Outbox,
    news: News,
    followed: Mutex<Followed>,
    publications: mpsc::Sender<Publication>,
    /// What waits to be told beside events.
    edus: Mutex<edus::Waiting>,
    /// Of the service: it starts tasks from here, and keeps none alive.
    tasks: Tasks,
}

/// What was published so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicFigures {
    /// Messages.
    pub messages: u64,
    /// How often they left this node: to how many servers each was given, added up.
    pub copies: u64,
}

#[derive(Default)]
struct Followed {
    topics: HashMap<TopicName, (OwnedRoomId, Arc<TopicSecret>)>,
    members: BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>,
    /// Rooms for which this node waits for its turn to make a secret.
    making: BTreeSet<OwnedRoomId>,
    /// Members of rooms that are sent by themselves, a while from now, what they lack of what was published.
    resting: BTreeSet<(OwnedRoomId, OwnedServerName)>,
    figures: TopicFigures,
    /// The time of what this node last said in its own name.
    said_last: UInt,
    /// When a room last had a message that did not come over its topic.
    missed: HashMap<OwnedRoomId, Instant>,
}

impl Topics {
    /// Makes the service; it follows nothing before [`Topics::start`].
    pub fn new(ctx: Context, outbox: Outbox, news: News) -> Self {
        let tasks = Tasks::new();
        let (publications, incoming) = mpsc::channel(MAX_PUBLICATIONS);
        let shared = Shared {
            ctx,
            outbox,
            news,
            followed: Mutex::default(),
            publications,
            edus: Mutex::default(),
            tasks: tasks.for_task(),
        };
        Self {
            shared: Arc::new(shared),
            tasks,
            incoming: Arc::new(Mutex::new(Some(incoming))),
        }
    }

    /// Follows the topics of all rooms, and makes secrets where an earlier run owed them.
    pub async fn start(&self) -> Result<(), Error> {
        if !self.shared.is_able() {
            return Ok(());
        }
        let incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(incoming) = incoming {
            self.tasks.spawn(publish::run(Arc::clone(&self.shared), incoming));
        }
        let own = self.shared.ctx.server_name.clone();
        let read = self.shared.ctx.store.read(move |txn| {
            let mut rooms: BTreeSet<OwnedRoomId> = txn.rooms_with_topics()?.into_iter().collect();
            rooms.extend(txn.rooms_of_server(&own)?);
            let with_members = rooms.into_iter().map(|room| {
                let members = txn.joined_servers(&room)?;
                let replaced = txn.topics(&room)?.len() > 1;
                Ok((room, members, replaced))
            });
            with_members.collect::<Result<Vec<_>, Error>>()
        });
        for (room, members, replaced) in read.await? {
            self.handle_members(&room, &members).await;
            if replaced {
                self.shared.handle_replaced(&room).await?;
            }
        }
        Ok(())
    }

    /// Ends all tasks.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    /// What this node has published since it was started.
    pub fn figures(&self) -> TopicFigures {
        self.shared.followed().figures
    }

    /// The room of a topic, and what its messages say; none if the message is not a member's.
    pub(crate) fn open(&self, topic: &TopicName, message: &[u8]) -> Option<(OwnedRoomId, Vec<u8>)> {
        let (room, secret) = self.shared.followed().topics.get(topic).cloned()?;
        match secret.open(message) {
            Ok(content) => Some((room, content)),
            Err(error) => {
                tracing::debug!(%room, %error, "a message of a topic does not open");
                None
            }
        }
    }

    /// A room had a message that its topic should have brought, and did not: it was found when heads were compared. Of what is
    /// found soon after it nothing is made, since one breach explains all of it.
    pub(crate) async fn note_missed(&self, room: &RoomId, from: &ServerName) {
        let (of, ctx, now) = (room.to_owned(), self.shared.ctx.clone(), self.shared.ctx.world.now());
        let secret = self
            .shared
            .ctx
            .store
            .read(move |txn| publish::usable(txn, &ctx, &of, now))
            .await;
        let Ok(Some(secret)) = secret else { return };
        {
            let missed = &mut self.shared.followed().missed;
            let now = Instant::now();
            missed.retain(|_, last| now.duration_since(*last) < TOPIC_CHECK_AFTER);
            if missed.insert(room.to_owned(), now).is_some() {
                return;
            }
        }
        self.shared.ctx.network.missed(&secret.public().name(), from).await;
    }

    /// Takes in who is in a room now.
    pub(crate) async fn handle_members(&self, room: &RoomId, servers: &[OwnedServerName]) {
        if !self.shared.is_able() {
            return;
        }
        if let Err(error) = self.shared.handle_members(room, servers).await {
            tracing::warn!(%room, %error, "a room's topic could not be looked after");
        }
    }

    /// Takes in secrets that another server tells. Those of rooms that not both servers are in, and those that are older
    /// than what is used, change nothing.
    pub(crate) async fn handle_told(
        &self,
        peer: &ServerName,
        told: BTreeMap<OwnedRoomId, ToldTopic>,
    ) -> Result<(), Error> {
        let now = self.shared.ctx.world.now();
        let told = told
            .into_iter()
            .filter_map(|(room, told)| Some((room, told.parse(now)?)));
        let told: Vec<(OwnedRoomId, NewTopic)> = told.collect();
        let (own, peer) = (self.shared.ctx.server_name.clone(), peer.to_owned());
        let teller = peer.clone();
        let read = self.shared.ctx.store.read(move |txn| {
            let mut new = Vec::new();
            for (room, told) in told {
                let used = txn
                    .topic(&room)?
                    .filter(|used| is_generation_believed(used.generation, now));
                let used = used.map(|used| (used.generation, used.secret));
                let later = used < Some((told.generation, told.secret));
                if later && txn.is_server_joined(&room, &own)? && txn.is_server_joined(&room, &peer)? {
                    new.push((room, told));
                }
            }
            Ok::<_, Error>(new)
        });
        for (room, told) in read.await? {
            if self.shared.adopt(&room, told).await? {
                // Its maker may not reach everybody.
                let mut others = self.shared.neighbours(&room, TOPIC_NEIGHBOURS);
                others.retain(|server| *server != teller);
                self.shared.news.note_to_compare(&room, others);
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Whether the network has topics at all.
    fn is_able(&self) -> bool {
        self.ctx.network.has_topics()
    }

    /// A poisoned lock only says that another thread panicked; the lists are whole at every step.
    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edus(&self) -> MutexGuard<'_, edus::Waiting> {
        self.edus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle_members(self: &Arc<Self>, room: &RoomId, servers: &[OwnedServerName]) -> Result<(), Error> {
        let servers: BTreeSet<OwnedServerName> = servers.iter().cloned().collect();
        if !servers.contains(&self.ctx.server_name) {
            return self.leave(room).await;
        }
        let few = servers.len() <= self.ctx.config.gossip_from;
        if few && !self.followed().members.contains_key(room) {
            return Ok(());
        }
        let before = self.followed().members.insert(room.to_owned(), servers.clone());
        if before.is_none_or(|before| before != servers)
            && let Err(error) = self.follow(room).await
        {
            self.followed().members.remove(room);
            return Err(error);
        }
        if few {
            return Ok(());
        }
        let wanted = room.to_owned();
        let read = self.ctx.store.read(move |txn| {
            let lacks = txn.topic(&wanted)?.is_none();
            Ok::<_, Error>((lacks, lacks || txn.is_topic_stale(&wanted)?))
        });
        let (lacks, wants) = read.await?;
        if wants && self.followed().making.insert(room.to_owned()) {
            if lacks {
                // The others may have one.
                self.news.note_to_compare(room, self.neighbours(room, 1));
            }
            let (shared, room) = (Arc::clone(self), room.to_owned());
            self.tasks.spawn(async move { shared.make_in_turn(room).await });
        }
        Ok(())
    }

    /// Connected members who are next to this node in the order of names.
    fn neighbours(&self, room: &RoomId, count: usize) -> Vec<OwnedServerName> {
        let peers = self.ctx.network.peers();
        let followed = self.followed();
        let Some(members) = followed.members.get(room) else {
            return Vec::new();
        };
        let connected = peers.iter().map(|peer| &peer.server_name);
        let connected = connected.filter(|server| members.contains(*server));
        let found = neighbours(&self.ctx.server_name, connected, count);
        found.into_iter().cloned().collect()
    }

    /// This node is in a room no more.
    async fn leave(&self, room: &RoomId) -> Result<(), Error> {
        let known = self.followed().members.remove(room).is_some();
        let gone = room.to_owned();
        let held = self.ctx.store.read(move |txn| txn.topics(&gone)).await?;
        if !known && held.is_empty() {
            return Ok(());
        }
        let gone = room.to_owned();
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.forget_topics(&gone)?))
            .await?;
        self.follow(room).await
    }

    /// Follows the topics of a room's secrets, among those who are in it, and no others of it.
    async fn follow(&self, room: &RoomId) -> Result<(), Error> {
        let wanted = room.to_owned();
        let topics = self.ctx.store.read(move |txn| txn.topics(&wanted)).await?;
        let secrets = topics
            .iter()
            .map(|topic| Arc::new(TopicSecret::from_bytes(&topic.secret)));
        let secrets: HashMap<TopicName, Arc<TopicSecret>> =
            secrets.map(|secret| (secret.public().name(), secret)).collect();
        let (members, dropped) = {
            let mut followed = self.followed();
            let members = followed.members.get(room).cloned().unwrap_or_default();
            let of_room = followed.topics.iter().filter(|(_, (of, _))| of == room);
            let dropped = of_room.filter(|(name, _)| !secrets.contains_key(*name));
            let dropped: BTreeSet<TopicName> = dropped.map(|(name, _)| name.clone()).collect();
            followed.topics.retain(|name, _| !dropped.contains(name));
            for (name, secret) in &secrets {
                followed
                    .topics
                    .insert(name.clone(), (room.to_owned(), Arc::clone(secret)));
            }
            (members, dropped)
        };
        for name in dropped {
            self.ctx.network.unfollow(&name).await;
        }
        let members: Vec<OwnedServerName> = members.into_iter().collect();
        for secret in secrets.values() {
            self.ctx.network.follow(secret.public(), members.clone()).await;
        }
        Ok(())
    }

    /// Takes a secret that another member told into use.
    async fn adopt(self: &Arc<Self>, room: &RoomId, told: NewTopic) -> Result<bool, Error> {
        let (own, wanted) = (self.ctx.server_name.clone(), room.to_owned());
        let write = self.ctx.store.write(move |txn| {
            let adopted = txn.adopt_topic(&wanted, &told)?;
            let wake = match adopted {
                // Who was told only of the one that lost is told by nobody else.
                Adopted::OverOwn => hand_out(txn, &wanted, &own)?,
                Adopted::Yes | Adopted::No => Vec::new(),
            };
            Ok::<_, Error>((adopted != Adopted::No, wake))
        });
        let (adopted, wake) = write.await?;
        self.outbox.wake(wake);
        if adopted {
            self.handle_replaced(room).await?;
        }
        Ok(adopted)
    }

    /// A room has a new secret: it is followed, and the one before is not for much longer.
    async fn handle_replaced(self: &Arc<Self>, room: &RoomId) -> Result<(), Error> {
        self.follow(room).await?;
        let (shared, room) = (Arc::clone(self), room.to_owned());
        self.tasks.spawn(async move {
            sleep(GRACE).await;
            if let Err(error) = shared.forget_replaced(&room).await {
                tracing::warn!(%room, %error, "a topic that was replaced is still followed");
            }
        });
        Ok(())
    }

    async fn forget_replaced(&self, room: &RoomId) -> Result<(), Error> {
        let (wanted, before) = (room.to_owned(), self.before_grace());
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.forget_replaced_topics(&wanted, before)?))
            .await?;
        self.follow(room).await
    }

    fn before_grace(&self) -> MilliSecondsSinceUnixEpoch {
        let grace = UInt::new_saturating(GRACE.as_secs() * 1_000);
        // The clock may tell a millisecond less than the sleep took.
        let slack = UInt::from(1_000_u32);
        MilliSecondsSinceUnixEpoch(self.ctx.world.now().get().saturating_sub(grace) + slack)
    }

    /// Makes a secret for a room when it is this node's turn, unless the room has one by then that nobody who left has.
    async fn make_in_turn(self: Arc<Self>, room: OwnedRoomId) {
        sleep(MAKE_AFTER).await;
        let peers = self.ctx.network.peers();
        let members = self.followed().members.get(&room).cloned().unwrap_or_default();
        let before = peers
            .iter()
            .map(|peer| &peer.server_name)
            .filter(|server| **server < self.ctx.server_name && members.contains(*server));
        let turn = u32::try_from(before.count().min(MAX_TURNS)).unwrap_or(u32::MAX);
        sleep(TURN.saturating_mul(turn)).await;
        self.followed().making.remove(&room);
        for _ in 0..MAX_TURNS {
            match self.make(&room).await {
                Ok(true) => return,
                // A second later there is a further generation.
                Ok(false) => sleep(TURN).await,
                Err(error) => {
                    tracing::warn!(%room, %error, "no secret could be made for a room's topic");
                    return;
                }
            }
        }
    }

    /// Makes a secret for a room if it lacks one. False if it could not be one that comes after the one that is used.
    async fn make(self: &Arc<Self>, room: &RoomId) -> Result<bool, Error> {
        let (ctx, wanted) = (self.ctx.clone(), room.to_owned());
        let write = self.ctx.store.write(move |txn| {
            let servers = txn.joined_servers(&wanted)?;
            let used = txn.topic(&wanted)?;
            let fresh = used.is_some() && !txn.is_topic_stale(&wanted)?;
            if fresh || servers.len() <= ctx.config.gossip_from || !servers.contains(&ctx.server_name) {
                return Ok(Some(Vec::new()));
            }
            let now = ctx.world.now();
            // One that is not believed was taken by an earlier version, or the clock has fallen behind since.
            let used = used.filter(|used| is_generation_believed(used.generation, now));
            let new = NewTopic {
                generation: used.map_or(1, |used| used.generation + 1),
                secret: *TopicSecret::generate(&mut ctx.world.rng()).as_bytes(),
                gone: None,
                now,
            };
            if txn.adopt_topic(&wanted, &new)? == Adopted::No {
                return Ok(None);
            }
            Ok::<_, Error>(Some(hand_out(txn, &wanted, &ctx.server_name)?))
        });
        let Some(wake) = write.await? else {
            return Ok(false);
        };
        if !wake.is_empty() {
            self.outbox.wake(wake);
            self.handle_replaced(room).await?;
        }
        Ok(true)
    }
}

/// Queues a room's secret for all other servers in it.
fn hand_out(txn: &WriteTxn<'_>, room: &RoomId, own: &ServerName) -> Result<Vec<OwnedServerName>, Error> {
    let Some(told) = ToldTopic::of(txn, room)? else {
        return Ok(Vec::new());
    };
    let (edu, slot) = (told.edu(room)?, topic_slot(room));
    let mut servers = txn.joined_servers(room)?;
    servers.retain(|server| *server != *own);
    for server in &servers {
        txn.enqueue_edu_in(server, &slot, &edu)?;
    }
    Ok(servers)
}
