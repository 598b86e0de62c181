//! Tests' own world: several homeservers with real stores, joined by a network in memory, and a small JSON client.
//! It never runs outside tests, and no test waits on time: every helper waits for an event.

mod client;
pub(crate) mod rooms;
mod wires;

pub(crate) use client::{Client, assert_refused, escape};
pub(crate) use wires::Wires;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use kith_store::{Store, StoreConfig};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use self::wires::MemoryNetwork;
use crate::{
    Homeserver, client_api,
    clock::{Clock, SystemClock, SystemEntropy, World},
    config::Config,
    federation,
    homeserver::Context,
    network::Limits,
};

/// A clock that stands at a real time and moves only when told. Shared by the nodes of one [`Cluster`].
#[derive(Clone)]
pub(crate) struct ManualClock {
    millis: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl ManualClock {
    pub(crate) fn starting_now() -> Self {
        Self {
            millis: Arc::new(AtomicU64::new(SystemClock.now().get().into())),
            stopped: Arc::default(),
        }
    }

    /// Moves all nodes' time forward.
    pub(crate) fn advance(&self, by: Duration) {
        self.millis
            .fetch_add(by.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }

    /// From now on everything happens in one and the same millisecond.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        // One millisecond a look, so that no two events of a test carry the same time.
        let step = u64::from(!self.stopped.load(Ordering::SeqCst));
        MilliSecondsSinceUnixEpoch(self.millis.fetch_add(step, Ordering::SeqCst).try_into().unwrap())
    }
}

/// What a node is named and signs with; kept over restarts.
#[derive(Clone)]
struct Keys {
    node: Arc<NodeKey>,
    document: Arc<KeyDocument>,
}

impl Keys {
    fn generate(clock: &ManualClock) -> Self {
        let world = World::system();
        let identity = IdentityKey::generate(&mut world.rng());
        let node = NodeKey::generate(&mut world.rng());
        let now = clock.now();
        let year = MilliSecondsSinceUnixEpoch(now.0 + ruma::UInt::new_saturating(31_536_000_000));
        let document = KeyDocument::new(&identity, &node.public(), now, year).unwrap();
        Self {
            node: Arc::new(node),
            document: Arc::new(document),
        }
    }
}

/// One homeserver of a [`Cluster`].
pub(crate) struct Node {
    /// Its server name.
    pub(crate) name: OwnedServerName,
    /// Its services.
    pub(crate) hs: Homeserver,
    keys: Keys,
    data: TempDir,
    wires: Wires,
    clock: ManualClock,
}

impl Node {
    async fn start(keys: Keys, data: TempDir, wires: Wires, clock: ManualClock) -> Self {
        let name = keys.document.server_name();
        let hs = open(&keys, &data, &wires, &clock).await;
        Self {
            name,
            hs,
            keys,
            data,
            wires,
            clock,
        }
    }

    /// The file of its database.
    pub(crate) fn database(&self) -> PathBuf {
        self.data.path().join("kith.db")
    }

    /// Takes the node off the network; its clients still reach it.
    pub(crate) fn go_down(&self) {
        self.wires.set_up(&self.name, false);
    }

    /// Brings it back.
    pub(crate) fn come_up(&self) {
        self.wires.set_up(&self.name, true);
    }

    /// Ends the node and starts it again over the same files, as after a crash between two commits.
    pub(crate) async fn restart(&mut self) {
        self.wires.set_router(&self.name, None);
        self.hs.shutdown().await;
        self.hs.context.store.close().await;
        self.hs = open(&self.keys, &self.data, &self.wires, &self.clock).await;
    }

    /// Waits until something is true of this node, looking again after every commit. Fails after a long time.
    pub(crate) async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let mut committed = self.hs.context.store.committed();
        let waiting = async {
            loop {
                committed.mark_unchanged();
                if is_so().await {
                    return;
                }
                committed.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "waited in vain until {what}");
    }

    /// Sends another node a federation request with a JSON body, or with none for null.
    pub(crate) async fn ask(&self, to: &Node, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        let network = &self.hs.context.network;
        let response = network.request(&to.name, request, Limits::default()).await.unwrap();
        let answer = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status(), answer)
    }

    /// A client without an access token.
    pub(crate) fn client(&self) -> Client {
        Client::new(client_api::router(self.hs.clone()))
    }

    /// The same device on the node as it runs now, after a restart.
    pub(crate) fn again(&self, client: &Client) -> Client {
        client.on(client_api::router(self.hs.clone()))
    }

    /// Registers a user with password `secret` and returns its first device.
    pub(crate) async fn register(&self, localpart: &str) -> Client {
        Client::registered(client_api::router(self.hs.clone()), localpart).await
    }

    /// Logs a registered user in on a further device.
    pub(crate) async fn login(&self, localpart: &str) -> Client {
        let mut client = self.client();
        let body = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": localpart},
            "password": "secret",
        });
        let (status, answer) = client.post("/_matrix/client/v3/login", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        client.adopt(&answer);
        client
    }
}

/// The wires hold the node's router, and the node holds the wires: this ends both.
impl Drop for Node {
    fn drop(&mut self) {
        self.wires.set_router(&self.name, None);
    }
}

async fn open(keys: &Keys, data: &TempDir, wires: &Wires, clock: &ManualClock) -> Homeserver {
    let name = &keys.document.server_name();
    let mut config = Config::new(data.path());
    config.open_registration = true;
    let hs = Homeserver::new(Context {
        store: Store::open(&StoreConfig::new(data.path().join("kith.db"))).unwrap(),
        config: Arc::new(config),
        world: World::new(clock.clone(), SystemEntropy),
        network: Arc::new(MemoryNetwork {
            me: name.clone(),
            wires: wires.clone(),
            events: wires.events(name),
        }),
        server_name: name.clone(),
        node_key: Arc::clone(&keys.node),
        key_document: watch::channel(Arc::clone(&keys.document)).1,
    });
    wires.set_router(name, Some(federation::router(hs.clone())));
    hs.start().await.unwrap();
    hs
}

/// Several homeservers that reach each other.
pub(crate) struct Cluster {
    /// The nodes.
    pub(crate) nodes: Vec<Node>,
    /// What joins them.
    pub(crate) wires: Wires,
    /// Their common time.
    pub(crate) clock: ManualClock,
}

impl Cluster {
    /// Starts `count` homeservers.
    pub(crate) async fn start(count: usize) -> Self {
        let wires = Wires::default();
        let clock = ManualClock::starting_now();
        let mut nodes = Vec::new();
        for _ in 0..count {
            let keys = Keys::generate(&clock);
            wires.add(keys.document.server_name());
            let data = tempfile::tempdir().unwrap();
            nodes.push(Node::start(keys, data, wires.clone(), clock.clone()).await);
        }
        Self { nodes, wires, clock }
    }
}

impl std::ops::Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

#[tokio::test]
async fn nodes_reach_each_other_until_the_wire_is_cut() {
    let cluster = Cluster::start(3).await;
    let (a, b) = (&cluster[0], &cluster[1]);
    let ask = async || {
        let request = Request::get("/nowhere").body(Bytes::new()).unwrap();
        a.hs.context.network.request(&b.name, request, Limits::default()).await
    };
    assert_eq!(ask().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(a.hs.context.network.peers().len(), 2);

    let mut events = a.hs.context.network.events();
    b.go_down();
    assert!(matches!(ask().await, Err(crate::network::NetworkError::Unreachable(_))));
    b.come_up();
    cluster.wires.cut(&a.name, &b.name);
    cluster.wires.mend(&a.name, &b.name);
    assert_eq!(ask().await.unwrap().status(), StatusCode::NOT_FOUND);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(matches!(event, crate::network::PeerEvent::Up(name) if name == b.name));
    }
    assert_eq!(seen, [false, true, false, true]);
    assert_eq!(cluster.wires.requests("/nowhere"), 2);
}

/// Files under a folder that this process holds open.
#[cfg(target_os = "linux")]
pub(crate) fn open_files(folder: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(folder)).count()
}

/// Every service holds the settings, and an open database holds files.
#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_of_a_cluster() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let left: Vec<_> = runtime.block_on(async {
        let cluster = Cluster::start(2).await;
        let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
        let room = alice
            .post_ok("/_matrix/client/v3/createRoom", json!({"invite": [bob.user_id]}))
            .await;
        let room = escape(room["room_id"].as_str().unwrap());
        bob.post_ok(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
        let typing = format!("/_matrix/client/v3/rooms/{room}/typing/{}", escape(&bob.user_id));
        bob.put_ok(&typing, json!({"typing": true, "timeout": 30_000})).await;
        let sent = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
        bob.put_ok(&sent, json!({"msgtype": "m.text", "body": "hi"})).await;
        let left = |node: &Node| (Arc::downgrade(&node.hs.context.config), node.data.path().to_owned());
        let left: Vec<_> = cluster.nodes.iter().map(left).collect();
        assert!(left.iter().all(|(_, folder)| open_files(folder) > 0));
        left
    });
    drop(runtime);
    for (services, folder) in left {
        assert!(services.upgrade().is_none());
        // The writer's thread closes the file when it finds no handle left.
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        while open_files(&folder) > 0 {
            assert!(std::time::Instant::now() < patience);
            std::thread::yield_now();
        }
    }
}
