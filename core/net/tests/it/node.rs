//! A node for tests: real keys, a real [`Net`] on loopback, and a directory in memory.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kith_identity::{IdentityKey, KeyDocument, NodeKey, TransportKey};
use kith_net::{
    Body, ConnectionLimits, DhtConfig, InboundService, Multiaddr, Net, NetConfig, PeerEvent, PeerInfo, RequestError,
    RequestLimits, Timing, testing::MemoryDirectory,
};
use rand::rngs::OsRng;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};
use tokio::{sync::broadcast, time::timeout};

pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";

/// For what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A day in 2026, in milliseconds.
pub(crate) const NOW: u64 = 1_790_000_000_000;

pub(crate) fn timestamp(millis: u64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new(millis).unwrap())
}

/// The keys of one installation.
pub(crate) struct Keys {
    pub(crate) identity: IdentityKey,
    pub(crate) node: Arc<NodeKey>,
    pub(crate) transport: TransportKey,
    pub(crate) document: KeyDocument,
}

impl Keys {
    pub(crate) fn generate() -> Self {
        let identity = IdentityKey::generate(&mut OsRng);
        let node = Arc::new(NodeKey::generate(&mut OsRng));
        let document = KeyDocument::new(&identity, &node.public(), timestamp(NOW), timestamp(NOW * 2)).unwrap();
        Self {
            identity,
            node,
            transport: TransportKey::generate(&mut OsRng),
            document,
        }
    }

    pub(crate) fn server_name(&self) -> OwnedServerName {
        self.document.server_name()
    }
}

/// A service from a plain async function.
pub(crate) fn service<F, R>(answer: F) -> InboundService
where
    F: Fn(OwnedServerName, Request<Body>) -> R + Send + Sync + Clone + 'static,
    R: Future<Output = Response<Bytes>> + Send + 'static,
{
    Arc::new(move |peer, request| {
        let answer = answer(peer, request);
        async move {
            answer
                .await
                .map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync())
        }
        .boxed()
    })
}

/// Answers with who asked, what for, and the body.
pub(crate) fn echo() -> InboundService {
    service(|peer, request| async move {
        let (head, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                let mut answer = Response::new(Bytes::from(error.to_string()));
                *answer.status_mut() = http::StatusCode::BAD_REQUEST;
                return answer;
            }
        };
        let line = format!("{peer} {} {}\n", head.method, head.uri);
        Response::new([line.as_bytes(), &body].concat().into())
    })
}

/// A node of which every part can be set before it starts.
pub(crate) struct Setup {
    pub(crate) keys: Keys,
    pub(crate) directory: Arc<MemoryDirectory>,
    pub(crate) service: InboundService,
    pub(crate) listen: Vec<Multiaddr>,
    pub(crate) relays: Vec<Multiaddr>,
    pub(crate) dht: DhtConfig,
    pub(crate) limits: ConnectionLimits,
    pub(crate) timing: Timing,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let keys = Keys::generate();
        Self {
            directory: MemoryDirectory::new(Some(keys.document.clone()), Arc::new(|| timestamp(NOW))),
            keys,
            service: echo(),
            listen: vec![QUIC.parse().unwrap()],
            relays: Vec::new(),
            dht: DhtConfig::default(),
            limits: ConnectionLimits::default(),
            timing: quick(),
        }
    }

    pub(crate) fn listen(mut self, addresses: &[&str]) -> Self {
        self.listen = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self
    }

    pub(crate) fn config(&self) -> NetConfig {
        NetConfig {
            server_name: self.directory.own.lock().unwrap().as_ref().unwrap().server_name(),
            transport_key: TransportKey::from_bytes(&self.keys.transport.to_bytes()),
            node_key: self.keys.node.clone(),
            directory: self.directory.clone(),
            service: self.service.clone(),
            listen: self.listen.clone(),
            relays: self.relays.clone(),
            external: Vec::new(),
            mdns: false,
            dht: self.dht.clone(),
            upnp: false,
            limits: self.limits.clone(),
            timing: self.timing.clone(),
        }
    }

    pub(crate) async fn start(self) -> Node {
        let net = Net::start(self.config()).await.unwrap();
        net.await_places().await;
        Node { setup: self, net }
    }
}

/// Pauses short enough for a test, and long enough for a busy machine.
pub(crate) fn quick() -> Timing {
    Timing {
        redial: Duration::from_millis(50),
        ..Timing::default()
    }
}

/// [`quick`], and within a second or two it is noticed that an idle connection leads nowhere.
pub(crate) fn wary() -> Timing {
    Timing {
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(1000),
        active_ping_timeout: Duration::from_millis(500),
        ..quick()
    }
}

pub(crate) struct Node {
    pub(crate) setup: Setup,
    pub(crate) net: Net,
}

impl Node {
    pub(crate) fn name(&self) -> OwnedServerName {
        self.setup.keys.server_name()
    }

    /// Tells this node where `other` listens.
    pub(crate) async fn learn(&self, other: &Self) {
        self.net
            .add_addresses(&other.name(), other.net.local_peer_id(), &other.net.listen_addrs())
            .await;
    }

    pub(crate) async fn get(&self, other: &Self, path: &str) -> Result<Response<Bytes>, RequestError> {
        let request = Request::get(path).body(Bytes::new()).unwrap();
        self.net.request(&other.name(), request, RequestLimits::default()).await
    }

    /// What the echo service of `other` answers to [`Node::get`].
    pub(crate) fn expected(&self, path: &str) -> String {
        format!("{} GET {path}\n", self.name())
    }
}

/// What must come, and comes soon unless something is broken: then the test fails instead of waiting for ever.
pub(crate) async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    timeout(PATIENCE, awaited).await.expect("it never came")
}

/// The next event of a kind; others are passed over.
pub(crate) async fn wait_for(events: &mut broadcast::Receiver<PeerEvent>, wanted: &PeerEvent) {
    soon(async { while events.recv().await.unwrap() != *wanted {} }).await;
}

/// Waits until the connections of `node` are as wanted.
pub(crate) async fn connections(node: &Node, wanted: impl Fn(&[PeerInfo]) -> bool) {
    let mut changes = node.net.peer_changes();
    soon(changes.wait_for(|_| wanted(&node.net.peers()))).await.unwrap();
}
