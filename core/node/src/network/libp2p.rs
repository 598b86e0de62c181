//! The network of a real node: puts kith-net behind [`Network`], and hands what peers ask to the federation routes. The
//! homeserver lives longer than a connection to the world: kith-net is attached when the node goes online, and detached
//! when it goes offline or changes its transport key.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use kith_identity::{TopicKey, TopicName};
use kith_net::{InboundService, Net, RequestError, RequestLimits, TellError};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{
    Mutex,
    broadcast::{self, error::RecvError},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Limits, Network, NetworkError, PeerEvent, PeerPath, PeerStatus, PublishError, TopicMessage};
use crate::federation::Peer;

/// Events that a slow receiver may be behind before it misses some.
const EVENT_QUEUE: usize = 256;

/// Messages of topics likewise.
const MESSAGE_QUEUE: usize = 256;

/// kith-net, while there is one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Libp2p {
    inner: Arc<Inner>,
}

struct Inner {
    attached: RwLock<Option<Attached>>,
    events: broadcast::Sender<PeerEvent>,
    /// What is followed whenever there is a network. Held while kith-net is told, so that it hears of changes in their order.
    topics: Mutex<Topics>,
    messages: broadcast::Sender<TopicMessage>,
}

/// Topics and their members.
type Topics = BTreeMap<TopicName, (TopicKey, Vec<OwnedServerName>)>;

#[derive(Clone)]
struct Attached {
    net: Net,
    detached: CancellationToken,
}

impl Libp2p {
    /// Without a network: nobody is reachable.
    pub(crate) fn new() -> Self {
        let inner = Inner {
            attached: RwLock::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            topics: Mutex::default(),
            messages: broadcast::Sender::new(MESSAGE_QUEUE),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Goes online through `net`, which must be the only one. Gives what is cancelled when it goes offline again.
    pub(crate) fn attach(&self, net: Net) -> CancellationToken {
        let detached = CancellationToken::new();
        tokio::spawn(forward(net.clone(), self.inner.events.clone(), detached.clone()));
        let messages = forward_messages(net.clone(), self.inner.messages.clone());
        tokio::spawn(detached.clone().run_until_cancelled_owned(messages));
        tokio::spawn(follow_all(net.clone(), self.inner.clone()));
        let attached = Attached {
            net,
            detached: detached.clone(),
        };
        *self.inner.attached.write().unwrap_or_else(PoisonError::into_inner) = Some(attached);
        detached
    }

    /// Goes offline: peers are said to be down, and kith-net is shut down in good order.
    pub(crate) async fn detach(&self) {
        let attached = self
            .inner
            .attached
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Attached { net, detached }) = attached {
            detached.cancel();
            net.shutdown().await;
        }
    }

    /// kith-net, while online.
    pub(crate) fn net(&self) -> Option<Net> {
        let attached = self.inner.attached.read().unwrap_or_else(PoisonError::into_inner);
        attached.as_ref().map(|attached| attached.net.clone())
    }
}

#[async_trait]
impl Network for Libp2p {
    async fn request(
        &self,
        to: &ServerName,
        request: http::Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, NetworkError> {
        let net = self.net().ok_or_else(|| NetworkError::Unreachable(to.to_owned()))?;
        let limits = RequestLimits {
            deadline: limits.deadline,
            max_answer: limits.max_answer,
            bulk: limits.bulk,
        };
        net.request(to, request, limits).await.map_err(|error| match error {
            RequestError::Unreachable(server) => NetworkError::Unreachable(server),
            RequestError::TimedOut(server) => NetworkError::TimedOut(server),
            RequestError::Broken { server, reason } => NetworkError::Broken {
                server,
                reason: reason.to_string(),
            },
        })
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.events.subscribe()
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.net().map(|net| net.peers()).unwrap_or_default();
        let status = |peer: kith_net::PeerInfo| PeerStatus {
            server_name: peer.server_name,
            path: match peer.connections.first() {
                Some(best) if best.relayed => PeerPath::Relayed,
                Some(best) if best.lan => PeerPath::Lan,
                _ => PeerPath::Direct,
            },
            addresses: peer.connections.iter().map(|c| c.address.to_string()).collect(),
        };
        peers.into_iter().map(status).collect()
    }

    fn note_spoken(&self, server: &ServerName) {
        if let Some(net) = self.net() {
            net.note_spoken(server);
        }
    }

    async fn follow(&self, topic: TopicKey, members: Vec<OwnedServerName>) {
        let mut topics = self.inner.topics.lock().await;
        topics.insert(topic.name(), (topic, members.clone()));
        if let Some(net) = self.net() {
            net.follow(topic, members).await;
        }
    }

    async fn unfollow(&self, topic: &TopicName) {
        let mut topics = self.inner.topics.lock().await;
        topics.remove(topic);
        if let Some(net) = self.net() {
            net.unfollow(topic).await;
        }
    }

    async fn publish(&self, topic: &TopicKey, message: Bytes) -> Result<usize, PublishError> {
        let net = self.net().ok_or(PublishError::Busy)?;
        net.tell(topic, message).await.map_err(|error| match error {
            TellError::NotFollowed => PublishError::NotFollowed,
            TellError::NobodyThere => PublishError::NobodyThere,
            TellError::NotValid => PublishError::NotValid,
            TellError::Duplicate => PublishError::Duplicate,
            TellError::Busy | TellError::ShuttingDown => PublishError::Busy,
        })
    }

    async fn missed(&self, topic: &TopicName, from: &ServerName) {
        if let Some(net) = self.net() {
            net.missed(topic, from).await;
        }
    }

    fn has_topics(&self) -> bool {
        true
    }

    fn topic_messages(&self) -> Option<broadcast::Receiver<TopicMessage>> {
        Some(self.inner.messages.subscribe())
    }
}

/// Has a new kith-net follow what is followed.
async fn follow_all(net: Net, inner: Arc<Inner>) {
    let topics = inner.topics.lock().await;
    for (topic, members) in topics.values() {
        net.follow(*topic, members.clone()).await;
    }
}

/// Passes on what comes in on topics.
async fn forward_messages(net: Net, messages: broadcast::Sender<TopicMessage>) {
    let mut incoming = net.topic_messages();
    // Whoever keeps kith-net keeps it from stopping.
    drop(net);
    loop {
        match incoming.recv().await {
            Ok(message) => {
                let message = TopicMessage {
                    topic: message.topic,
                    from: message.from,
                    message: message.message,
                };
                // Having no listener is no fault.
                let _ = messages.send(message);
            }
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "messages of topics were not read in time"),
            Err(RecvError::Closed) => break,
        }
    }
}

/// Passes one kith-net's events on, and says at its end that everyone is down, those that were let go too. Nobody is up twice or down twice.
async fn forward(net: Net, events: broadcast::Sender<PeerEvent>, detached: CancellationToken) {
    // Subscribed before looking, so that nobody is missed in between.
    let mut incoming = net.events();
    let (mut up, mut let_go) = (BTreeSet::new(), BTreeSet::new());
    let listed = |net: &Net| {
        net.peers()
            .into_iter()
            .map(|peer| peer.server_name)
            .collect::<BTreeSet<_>>()
    };
    // Having no listener is no fault.
    let tell = |event| drop(events.send(event));
    let follow = |up: &mut BTreeSet<OwnedServerName>, now: BTreeSet<OwnedServerName>| {
        up.difference(&now).cloned().map(PeerEvent::Down).for_each(tell);
        now.difference(up).cloned().map(PeerEvent::Up).for_each(tell);
        *up = now;
    };
    follow(&mut up, listed(&net));
    loop {
        let event = tokio::select! {
            () = detached.cancelled() => break,
            event = incoming.recv() => event,
        };
        match event {
            Ok(kith_net::PeerEvent::Up(server)) => {
                let_go.remove(&server);
                if up.insert(server.clone()) {
                    tell(PeerEvent::Up(server));
                }
            }
            Ok(kith_net::PeerEvent::LetGo(server)) => {
                if up.remove(&server) {
                    let_go.insert(server.clone());
                    tell(PeerEvent::LetGo(server));
                }
            }
            Ok(kith_net::PeerEvent::Down(server)) => {
                // One that was let go is down once it is out of reach.
                if up.remove(&server) | let_go.remove(&server) {
                    tell(PeerEvent::Down(server));
                }
            }
            Err(RecvError::Lagged(_)) => follow(&mut up, listed(&net)),
            Err(RecvError::Closed) => break,
        }
    }
    follow(&mut up, BTreeSet::new());
    let_go.into_iter().map(PeerEvent::Down).for_each(tell);
}

/// Hands the requests of verified peers to the federation routes, with [`Peer`] saying who asks.
pub(crate) fn inbound(router: Router) -> InboundService {
    Arc::new(move |server, request| {
        let router = router.clone();
        Box::pin(async move {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(Peer(server));
            let response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            response.map(|body| body.map_err(kith_net::BoxError::from).boxed_unsync())
        })
    })
}
