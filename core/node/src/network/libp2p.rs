//! The network of a real node: puts kith-net behind [`Network`], and hands what peers ask to the federation routes. The
//! homeserver lives longer than a connection to the world: kith-net is attached when the node goes online, and detached
//! when it goes offline or changes its transport key.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use kith_net::{InboundService, Net, RequestError, RequestLimits};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Limits, Network, NetworkError, PeerEvent, PeerPath, PeerStatus};
use crate::federation::Peer;

/// Events that a slow receiver may be behind before it misses some.
const EVENT_QUEUE: usize = 256;

/// kith-net, while there is one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Libp2p {
    inner: Arc<Inner>,
}

struct Inner {
    attached: RwLock<Option<Attached>>,
    events: broadcast::Sender<PeerEvent>,
}

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
        };
        Self { inner: Arc::new(inner) }
    }

    /// Goes online through `net`, which must be the only one. Gives what is cancelled when it goes offline again.
    pub(crate) fn attach(&self, net: Net) -> CancellationToken {
        let detached = CancellationToken::new();
        tokio::spawn(forward(net.clone(), self.inner.events.clone(), detached.clone()));
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
}

/// Passes one kith-net's events on, and says at its end that everyone is down. Nobody is up twice or down twice.
async fn forward(net: Net, events: broadcast::Sender<PeerEvent>, detached: CancellationToken) {
    // Subscribed before looking, so that nobody is missed in between.
    let mut incoming = net.events();
    let mut up = BTreeSet::new();
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
                if up.insert(server.clone()) {
                    tell(PeerEvent::Up(server));
                }
            }
            Ok(kith_net::PeerEvent::Down(server)) => {
                if up.remove(&server) {
                    tell(PeerEvent::Down(server));
                }
            }
            Err(RecvError::Lagged(_)) => follow(&mut up, listed(&net)),
            Err(RecvError::Closed) => break,
        }
    }
    follow(&mut up, BTreeSet::new());
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
