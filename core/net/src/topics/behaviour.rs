//! Lets gossipsub work for topics that are followed, among their members. Decides who takes part and what is passed on;
//! dials nobody.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use kith_identity::{TopicKey, TopicName};
use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    gossipsub::{
        self, AllowAllSubscriptionFilter, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter, Message,
        MessageAcceptance, MessageAuthenticity, MessageId, PublishError, TopicHash,
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};
use ruma::OwnedServerName;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    BACKOFF_BEATS, BEAT, Handler, KEPT_BEATS, MESH, MESH_LOW, TellError, TopicMessage,
    allowance::Allowance,
    config,
    handler::{Gossip, News, Order},
    scores,
    silence::{Bringers, Silent},
    topic_scores,
};
use crate::BoxError;

/// Topics that this node follows, and that it believes one peer to follow.
pub(super) const MAX_TOPICS: usize = 2048;

/// Beats after something happened: until nobody can ask for a message any more.
const BEATS: usize = KEPT_BEATS + 1;

/// Beats after that, while a topic's mesh is thin: until those who turned this node away may be asked again.
const MENDING_BEATS: usize = BEATS + 2 * BACKOFF_BEATS as usize;

pub(super) type Router =
    gossipsub::Behaviour<IdentityTransform, MaxCountSubscriptionFilter<AllowAllSubscriptionFilter>>;
type RouterEvent = ToSwarm<gossipsub::Event, THandlerInEvent<Router>>;
pub(super) type Event = ToSwarm<TopicEvent, Order>;

/// The servers that may take part in a topic.
pub(crate) type Members = Arc<HashSet<OwnedServerName>>;

/// How many nodes that are connected follow each topic.
pub(crate) type Followers = BTreeMap<TopicName, usize>;

/// What becomes of topics.
#[derive(Debug)]
pub(crate) enum TopicEvent {
    /// A message came in.
    Message(TopicMessage),
    /// Followers came or went.
    Followers(Followers),
    /// A server passes nothing on, and is not counted on for so long.
    Silent(OwnedServerName, Duration),
    /// It passed something on all the same.
    Heard(OwnedServerName),
}

/// A topic that this node follows.
pub(super) struct Followed {
    key: TopicKey,
    pub(super) members: Members,
    allowance: Allowance,
    pub(super) bringers: Bringers,
}

/// A connection.
pub(super) struct Link {
    pub(super) peer_id: PeerId,
    pub(super) endpoint: ConnectedPoint,
    /// Gossipsub knows it.
    pub(super) admitted: bool,
}

/// A peer that said who it is.
pub(super) struct Follower {
    pub(super) server: OwnedServerName,
    /// Connections that gossipsub knows.
    pub(super) admitted: usize,
    /// What gossipsub was told that it is worth.
    pub(super) score: f64,
    /// What it said last of topics in which it has no part, or we have none, as far as is known yet.
    pub(super) said: HashMap<TopicHash, News>,
}

/// See the module.
pub(crate) struct Behaviour {
    pub(super) router: Router,
    /// How gossipsub accepts streams.
    protocol: <Gossip as ConnectionHandler>::InboundProtocol,
    pub(super) followed: HashMap<TopicHash, Followed>,
    pub(super) links: HashMap<ConnectionId, Link>,
    /// Servers that passed on what no member made, and until when that is remembered.
    pub(super) shunned: HashMap<OwnedServerName, Instant>,
    /// Servers that pass nothing on.
    pub(super) silent: HashMap<OwnedServerName, Silent>,
    /// Servers that passed something on.
    pub(super) proven: HashSet<OwnedServerName>,
    pub(super) followers: HashMap<PeerId, Follower>,
    pub(super) events: VecDeque<Event>,
    /// What gossipsub said out of turn.
    early: VecDeque<RouterEvent>,
    /// Followers came or went, which was not told yet.
    pub(super) changed: bool,
    /// Beats to come.
    beats: usize,
    next_beat: Pin<Box<Sleep>>,
}

/// Gossipsub, mending its meshes this often.
fn router(heart: Duration) -> Result<Router, BoxError> {
    let filter = MaxCountSubscriptionFilter {
        filter: AllowAllSubscriptionFilter::default(),
        max_subscribed_topics: MAX_TOPICS,
        max_subscriptions_per_request: MAX_TOPICS,
    };
    let config = config(heart)?;
    let mut router = Router::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)?;
    let (params, thresholds) = scores();
    router.with_peer_score(params, thresholds)?;
    Ok(router)
}

pub(super) fn hash_of(topic: &TopicName) -> TopicHash {
    TopicHash::from_raw(topic.as_str())
}

impl Behaviour {
    /// Follows nothing yet. Needs a tokio runtime.
    pub(crate) fn new() -> Result<Self, BoxError> {
        Self::with_heart(BEAT)
    }

    /// [`Behaviour::new`] with a heart that beats at another pace.
    pub(super) fn with_heart(heart: Duration) -> Result<Self, BoxError> {
        // A handler of a router that is thrown away shows how streams are accepted.
        let nowhere = Multiaddr::empty();
        let example = router(heart)?.handle_established_inbound_connection(
            ConnectionId::new_unchecked(0),
            PeerId::random(),
            &nowhere,
            &nowhere,
        )?;
        Ok(Self {
            router: router(heart)?,
            protocol: example.listen_protocol().into_upgrade().0,
            followed: HashMap::new(),
            links: HashMap::new(),
            shunned: HashMap::new(),
            silent: HashMap::new(),
            proven: HashSet::new(),
            followers: HashMap::new(),
            events: VecDeque::new(),
            early: VecDeque::new(),
            changed: false,
            beats: 0,
            next_beat: Box::pin(sleep(BEAT)),
        })
    }

    /// Follows a topic among its members, or lets it have other members. Whoever took part before and is no member any more
    /// does so until its connection ends: it is for another topic to shut it out.
    pub(crate) fn follow(&mut self, key: TopicKey, members: Members) {
        let name = key.name();
        let hash = hash_of(&name);
        if self.followed.len() >= MAX_TOPICS && !self.followed.contains_key(&hash) {
            tracing::warn!("too many topics: one is not followed");
            return;
        }
        let allowance = Allowance::new(Instant::now());
        let followed = self.followed.entry(hash.clone()).or_insert_with(|| Followed {
            key,
            members: Members::default(),
            allowance,
            bringers: Bringers::default(),
        });
        followed.members = members;
        // Both fail only without scores, and when the filter refuses.
        let _ = self
            .router
            .set_topic_params(IdentTopic::new(name.as_str()), topic_scores());
        if let Err(error) = self.router.subscribe(&IdentTopic::new(name.as_str())) {
            tracing::warn!(%error, "a topic is not followed");
        }
        let known: Vec<_> = self.links.keys().copied().collect();
        for id in known {
            self.admit(id);
        }
        self.listen_again(&hash);
        self.changed = true;
        self.stir();
    }

    /// Follows a topic no longer.
    pub(crate) fn unfollow(&mut self, topic: &TopicName) {
        self.router.unsubscribe(&IdentTopic::new(topic.as_str()));
        self.followed.remove(&hash_of(topic));
        self.changed = true;
        self.stir();
    }

    /// Gives a message of a topic to a few of its followers, and says to how many.
    pub(crate) fn tell(&mut self, topic: &TopicKey, message: Bytes) -> Result<usize, TellError> {
        let hash = hash_of(&topic.name());
        if !self.followed.contains_key(&hash) {
            return Err(TellError::NotFollowed);
        }
        // The others would take us for a forger.
        if !topic.verify(&message) {
            return Err(TellError::NotValid);
        }
        self.beat_before();
        let subscribed = self.router.all_peers();
        let there = subscribed.filter(|(_, topics)| topics.contains(&&hash)).count();
        let mesh = self.router.mesh_peers(&hash).count();
        match self.router.publish(hash, message) {
            Ok(_) => {
                self.stir();
                Ok(mesh.max(MESH).min(there))
            }
            Err(PublishError::NoPeersSubscribedToTopic) => Err(TellError::NobodyThere),
            Err(PublishError::Duplicate) => Err(TellError::Duplicate),
            Err(PublishError::AllQueuesFull(_)) => Err(TellError::Busy),
            Err(PublishError::MessageTooLarge | PublishError::SigningError(_) | PublishError::TransformFailed(_)) => {
                Err(TellError::NotValid)
            }
        }
    }

    /// A message came in for the first time. It is passed on if the topic's key signed it.
    fn handle_message(&mut self, hop: PeerId, id: &MessageId, message: Message) -> Option<TopicMessage> {
        let judged = |behaviour: &mut Self, acceptance| {
            behaviour.router.report_message_validation_result(id, &hop, acceptance);
        };
        let (Some(followed), Some(follower)) = (self.followed.get_mut(&message.topic), self.followers.get(&hop)) else {
            judged(self, MessageAcceptance::Ignore);
            return None;
        };
        if !followed.key.verify(&message.data) {
            tracing::info!(server = %follower.server, "a forged message was passed on");
            judged(self, MessageAcceptance::Reject);
            self.shun(hop);
            return None;
        }
        if !followed.allowance.take(message.data.len(), Instant::now()) {
            tracing::debug!(server = %follower.server, "too much is said on a topic");
            judged(self, MessageAcceptance::Ignore);
            return None;
        }
        let topic = message.topic;
        let message = TopicMessage {
            topic: followed.key.name(),
            from: follower.server.clone(),
            message: message.data.into(),
        };
        judged(self, MessageAcceptance::Accept);
        self.note_first(hop, &topic, &message.message);
        self.stir();
        Some(message)
    }

    /// Lets a beat that is overdue happen now. It would otherwise come right after the message that is about to be handled, and
    /// tell of it those whom the message itself is on its way to.
    fn beat_before(&mut self) {
        let mut unnoticed = Context::from_waker(Waker::noop());
        while let Poll::Ready(event) = self.router.poll(&mut unnoticed) {
            self.early.push_back(event);
        }
    }

    /// How many connected servers' nodes follow each topic.
    fn followers(&self) -> Followers {
        let mut counts: Followers = self.followed.values().map(|topic| (topic.key.name(), 0)).collect();
        for topic in self.router.all_peers().flat_map(|(_, topics)| topics) {
            if let Some(followed) = self.followed.get(topic)
                && let Some(count) = counts.get_mut(&followed.key.name())
            {
                *count += 1;
            }
        }
        counts
    }

    /// Something happened: time passes for a while.
    pub(super) fn stir(&mut self) {
        if !self.is_beating() {
            self.next_beat.as_mut().reset(Instant::now() + BEAT);
        }
        self.beats = MENDING_BEATS;
    }

    /// Whether there may be something to do at the next beat.
    fn is_beating(&self) -> bool {
        self.beats > MENDING_BEATS - BEATS || (self.beats > 0 && self.is_thin())
    }

    /// To whom messages of a topic are passed on.
    #[cfg(test)]
    pub(super) fn mesh(&self, topic: &TopicName) -> HashSet<PeerId> {
        self.router.mesh_peers(&hash_of(topic)).copied().collect()
    }

    /// Whether a topic has fewer peers in its mesh than it could have.
    fn is_thin(&self) -> bool {
        let followers = |topic: &TopicHash| {
            let peers = self.router.all_peers();
            peers
                .filter(|(_, topics)| topics.contains(&topic))
                .take(MESH_LOW)
                .count()
        };
        let mut topics = self.followed.keys();
        topics.any(|topic| self.router.mesh_peers(topic).count() < followers(topic))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = TopicEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let link = Link {
                    peer_id: established.peer_id,
                    endpoint: established.endpoint.clone(),
                    admitted: false,
                };
                self.links.insert(established.connection_id, link);
            }
            FromSwarm::ConnectionClosed(closed) => self.handle_closed(closed),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer_id: PeerId, id: ConnectionId, news: THandlerOutEvent<Self>) {
        // What an order to stop has crossed.
        if self
            .followers
            .get(&peer_id)
            .is_none_or(|follower| follower.admitted == 0)
        {
            return;
        }
        if let News::Message { rpc, invalid_messages } = &news {
            // No honest node names an author, or sends what is too large.
            if !invalid_messages.is_empty() {
                return self.shun(peer_id);
            }
            if !rpc.messages.is_empty() {
                self.beat_before();
                self.note_again(peer_id, &rpc.messages);
            }
        }
        if let Some(news) = self.sort(peer_id, news) {
            self.router.on_connection_handler_event(peer_id, id, news);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            let polled = match self.early.pop_front() {
                Some(event) => Poll::Ready(event),
                None => self.router.poll(cx),
            };
            match polled {
                Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler {
                        peer_id,
                        handler,
                        event: Order::Gossip(event),
                    });
                }
                Poll::Ready(ToSwarm::GenerateEvent(event)) => match event {
                    gossipsub::Event::Message {
                        propagation_source,
                        message_id,
                        message,
                    } => {
                        if let Some(message) = self.handle_message(propagation_source, &message_id, message) {
                            return Poll::Ready(ToSwarm::GenerateEvent(TopicEvent::Message(message)));
                        }
                    }
                    gossipsub::Event::Subscribed { .. } | gossipsub::Event::Unsubscribed { .. } => {
                        self.changed = true;
                        self.stir();
                    }
                    gossipsub::Event::GossipsubNotSupported { .. } | gossipsub::Event::SlowPeer { .. } => {}
                },
                // It would dial only those whom it is told of explicitly.
                Poll::Ready(_) => {}
                Poll::Pending if std::mem::take(&mut self.changed) => {
                    let followers = TopicEvent::Followers(self.followers());
                    return Poll::Ready(ToSwarm::GenerateEvent(followers));
                }
                // Gossipsub's heart beats only when it is asked after.
                Poll::Pending if self.is_beating() && self.next_beat.as_mut().poll(cx).is_ready() => {
                    self.beats = self.beats.saturating_sub(1);
                    self.next_beat.as_mut().reset(Instant::now() + BEAT);
                    self.look_around();
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
