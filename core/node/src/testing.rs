//! Tests' own world: several homeservers with real stores, joined by a network in memory, and a small JSON client.
//! It never runs outside tests, and no test waits on time: every helper waits for an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use kith_store::{Store, StoreConfig};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, broadcast, watch};
use tower::ServiceExt;

use crate::{
    Homeserver, client_api,
    clock::{Clock, SystemClock, SystemEntropy, World},
    config::Config,
    federation::{self, Peer},
    homeserver::Context,
    network::{Limits, Network, NetworkError, PeerEvent, PeerStatus},
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

/// What joins the nodes: requests go straight into the other's federation router, with the caller as [`Peer`].
#[derive(Clone, Default)]
pub(crate) struct Wires(Arc<Mutex<WiresInner>>, watch::Sender<()>);

/// Answers are held back while this lives.
pub(crate) struct HeldAnswers {
    wires: Wires,
    gate: Arc<Semaphore>,
}

impl Drop for HeldAnswers {
    fn drop(&mut self) {
        self.wires
            .lock()
            .held
            .retain(|(_, gate)| !Arc::ptr_eq(gate, &self.gate));
        self.gate.close();
    }
}

#[derive(Default)]
struct WiresInner {
    nodes: BTreeMap<OwnedServerName, End>,
    /// Pairs (smaller name first) whose wire is cut.
    cut: BTreeSet<(OwnedServerName, OwnedServerName)>,
    /// Every request that reached its target: from, to, method, path without query.
    log: Vec<(OwnedServerName, OwnedServerName, Method, String)>,
    /// Answers held back, by part of the request's path.
    held: Vec<(String, Arc<Semaphore>)>,
    /// Answers that lie, by part of the request's path.
    lies: Vec<(String, Lie)>,
}

/// Turns a true JSON answer into another one.
type Lie = Arc<dyn Fn(&mut Value) + Send + Sync>;

struct End {
    router: Option<Router>,
    up: bool,
    events: broadcast::Sender<PeerEvent>,
}

fn pair(a: &ServerName, b: &ServerName) -> (OwnedServerName, OwnedServerName) {
    if a < b {
        (a.to_owned(), b.to_owned())
    } else {
        (b.to_owned(), a.to_owned())
    }
}

impl WiresInner {
    fn connected(&self, a: &ServerName, b: &ServerName) -> bool {
        let up = |name| self.nodes.get(name).is_some_and(|end| end.up && end.router.is_some());
        a != b && up(a) && up(b) && !self.cut.contains(&pair(a, b))
    }

    fn pairs(&self) -> BTreeSet<(OwnedServerName, OwnedServerName)> {
        let names: Vec<_> = self.nodes.keys().collect();
        let mut pairs = BTreeSet::new();
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                if self.connected(a, b) {
                    pairs.insert(pair(a, b));
                }
            }
        }
        pairs
    }

    fn tell(&self, to: &ServerName, event: PeerEvent) {
        if let Some(end) = self.nodes.get(to) {
            let _ = end.events.send(event);
        }
    }
}

impl Wires {
    fn lock(&self) -> MutexGuard<'_, WiresInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the wiring and tells both ends of every pair that came up or went down.
    fn change(&self, change: impl FnOnce(&mut WiresInner)) {
        let mut inner = self.lock();
        let before = inner.pairs();
        change(&mut inner);
        let after = inner.pairs();
        for (a, b) in before.difference(&after) {
            inner.tell(a, PeerEvent::Down(b.clone()));
            inner.tell(b, PeerEvent::Down(a.clone()));
        }
        for (a, b) in after.difference(&before) {
            inner.tell(a, PeerEvent::Up(b.clone()));
            inner.tell(b, PeerEvent::Up(a.clone()));
        }
    }

    /// Cuts the wire between two nodes; both stay up.
    pub(crate) fn cut(&self, a: &ServerName, b: &ServerName) {
        self.change(|inner| {
            inner.cut.insert(pair(a, b));
        });
    }

    /// Mends the wire between two nodes.
    pub(crate) fn mend(&self, a: &ServerName, b: &ServerName) {
        self.change(|inner| {
            inner.cut.remove(&pair(a, b));
        });
    }

    /// How many requests whose path holds `part` arrived so far.
    pub(crate) fn requests(&self, part: &str) -> usize {
        self.lock()
            .log
            .iter()
            .filter(|(_, _, _, path)| path.contains(part))
            .count()
    }

    /// Holds back the answers to requests whose path holds `part`, until the guard is dropped.
    pub(crate) fn hold_answers(&self, part: &str) -> HeldAnswers {
        let gate = Arc::new(Semaphore::new(0));
        self.lock().held.push((part.to_owned(), Arc::clone(&gate)));
        HeldAnswers {
            wires: self.clone(),
            gate,
        }
    }

    /// From now on changes the JSON answers to requests whose path holds `part`, in place of earlier lies about it.
    pub(crate) fn lie(&self, part: &str, lie: impl Fn(&mut Value) + Send + Sync + 'static) {
        let mut inner = self.lock();
        inner.lies.retain(|(held, _)| held != part);
        inner.lies.push((part.to_owned(), Arc::new(lie)));
    }

    /// From now on all answers are true.
    pub(crate) fn be_honest(&self) {
        self.lock().lies.clear();
    }

    /// Waits until so many requests whose path holds `part` have been sent.
    pub(crate) async fn until_requests(&self, part: &str, count: usize) {
        let mut news = self.1.subscribe();
        while self.requests(part) < count {
            news.changed().await.unwrap();
        }
    }

    fn set_up(&self, name: &ServerName, up: bool) {
        self.change(|inner| {
            if let Some(end) = inner.nodes.get_mut(name) {
                end.up = up;
            }
        });
    }

    fn set_router(&self, name: &ServerName, router: Option<Router>) {
        self.change(|inner| {
            if let Some(end) = inner.nodes.get_mut(name) {
                end.router = router;
            }
        });
    }
}

/// One node's end of the [`Wires`].
struct MemoryNetwork {
    me: OwnedServerName,
    wires: Wires,
    events: broadcast::Sender<PeerEvent>,
}

#[async_trait]
impl Network for MemoryNetwork {
    async fn request(
        &self,
        to: &ServerName,
        mut request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        let (router, held, lie) = {
            let mut inner = self.wires.lock();
            if !inner.connected(&self.me, to) {
                return Err(NetworkError::Unreachable(to.to_owned()));
            }
            let path = request.uri().path().to_owned();
            let method = request.method().clone();
            let held = inner.held.iter().find(|(part, _)| path.contains(part));
            let held = held.map(|(_, gate)| Arc::clone(gate));
            let lie = inner.lies.iter().find(|(part, _)| path.contains(part));
            let lie = lie.map(|(_, lie)| Arc::clone(lie));
            inner.log.push((self.me.clone(), to.to_owned(), method, path));
            self.wires.1.send_replace(());
            (inner.nodes.get(to).and_then(|end| end.router.clone()), held, lie)
        };
        let Some(router) = router else {
            return Err(NetworkError::Unreachable(to.to_owned()));
        };
        request.extensions_mut().insert(Peer(self.me.clone()));
        // The other node works on though the asker gives up, as over a real wire.
        let serving = tokio::spawn(async move {
            let response = router.oneshot(request.map(Body::from)).await.unwrap();
            let (head, body) = response.into_parts();
            let body = axum::body::to_bytes(body, limits.max_answer).await;
            body.map(|body| Response::from_parts(head, body))
        });
        let broken = |reason: String| NetworkError::Broken {
            server: to.to_owned(),
            reason,
        };
        let mut response = tokio::time::timeout(limits.deadline, serving)
            .await
            .map_err(|_| NetworkError::TimedOut(to.to_owned()))?
            .map_err(|error| broken(error.to_string()))?
            .map_err(|error| broken(error.to_string()))?;
        if let Some(lie) = lie
            && let Ok(mut answer) = serde_json::from_slice(response.body())
        {
            lie(&mut answer);
            *response.body_mut() = answer.to_string().into();
        }
        if let Some(held) = held {
            // Nobody ever gives a permit: the wait ends when the gate is closed.
            let _ = held.acquire().await;
        }
        // A wire that was cut meanwhile loses the answer, though the work is done: the case retries must survive.
        if !self.wires.lock().connected(&self.me, to) {
            return Err(broken("the wire was cut".to_owned()));
        }
        Ok(response)
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let inner = self.wires.lock();
        let connected = inner.nodes.keys().filter(|name| inner.connected(&self.me, name));
        connected
            .map(|name| PeerStatus {
                server_name: name.clone(),
                addresses: Vec::new(),
            })
            .collect()
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
        Client {
            router: client_api::router(self.hs.clone()),
            token: None,
            user_id: String::new(),
            device_id: String::new(),
        }
    }

    /// The same device on the node as it runs now, after a restart.
    pub(crate) fn again(&self, client: &Client) -> Client {
        Client {
            router: client_api::router(self.hs.clone()),
            ..client.clone()
        }
    }

    /// Registers a user with password `secret` and returns its first device.
    pub(crate) async fn register(&self, localpart: &str) -> Client {
        let mut client = self.client();
        let body = json!({"username": localpart, "password": "secret", "auth": {"type": "m.login.dummy"}});
        let (status, answer) = client.post("/_matrix/client/v3/register", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        client.adopt(&answer);
        client
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

async fn open(keys: &Keys, data: &TempDir, wires: &Wires, clock: &ManualClock) -> Homeserver {
    let name = &keys.document.server_name();
    let mut config = Config::new(data.path());
    config.open_registration = true;
    let events = wires.lock().nodes[name].events.clone();
    let hs = Homeserver::new(Context {
        store: Store::open(&StoreConfig::new(data.path().join("kith.db"))).unwrap(),
        config: Arc::new(config),
        world: World::new(clock.clone(), SystemEntropy),
        network: Arc::new(MemoryNetwork {
            me: name.clone(),
            wires: wires.clone(),
            events,
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
            let end = End {
                router: None,
                up: true,
                events: broadcast::channel(64).0,
            };
            wires.lock().nodes.insert(keys.document.server_name(), end);
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

/// A JSON client on a node's own router. Cheap to clone; clones are the same device.
#[derive(Clone)]
pub(crate) struct Client {
    router: Router,
    /// Its access token, once it has one.
    pub(crate) token: Option<String>,
    /// Its user, once logged in.
    pub(crate) user_id: String,
    /// Its device, once logged in.
    pub(crate) device_id: String,
}

impl Client {
    fn adopt(&mut self, answer: &Value) {
        self.token = Some(answer["access_token"].as_str().unwrap().to_owned());
        self.user_id = answer["user_id"].as_str().unwrap().to_owned();
        self.device_id = answer["device_id"].as_str().unwrap().to_owned();
    }

    /// Sends any request and returns the whole response.
    pub(crate) async fn raw(&self, method: Method, path: &str, body: Vec<u8>) -> Response<Bytes> {
        let headers = [(header::CONTENT_TYPE.as_str(), "application/json")];
        self.raw_with(method, path, &headers, body).await
    }

    /// [`Client::raw`] with headers of one's own.
    pub(crate) async fn raw_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, axum::body::to_bytes(body, usize::MAX).await.unwrap())
    }

    async fn json(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let response = self.raw(method, path, body).await;
        let value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status(), value)
    }

    /// `GET path`; the path holds the query too.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, Vec::new()).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::POST, path, body.to_string().into_bytes()).await
    }

    /// `PUT path` with a JSON body.
    pub(crate) async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::PUT, path, body.to_string().into_bytes()).await
    }

    /// `DELETE path` without a body.
    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::DELETE, path, Vec::new()).await
    }

    /// [`Client::get`] that must succeed.
    pub(crate) async fn get_ok(&self, path: &str) -> Value {
        ok(path, self.get(path).await)
    }

    /// [`Client::post`] that must succeed.
    pub(crate) async fn post_ok(&self, path: &str, body: Value) -> Value {
        ok(path, self.post(path, body).await)
    }

    /// [`Client::put`] that must succeed.
    pub(crate) async fn put_ok(&self, path: &str, body: Value) -> Value {
        ok(path, self.put(path, body).await)
    }
}

fn ok(path: &str, (status, answer): (StatusCode, Value)) -> Value {
    assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    answer
}

/// Asserts that a request was refused with this status and Matrix error code.
#[track_caller]
pub(crate) fn assert_refused((status, answer): (StatusCode, Value), expected: (u16, &str)) {
    assert_eq!(
        (status.as_u16(), answer["errcode"].as_str().unwrap_or("")),
        expected,
        "{answer}"
    );
}

/// Escapes one path segment or query value: room ids and aliases hold `!`, `#`, `$` and `:`.
pub(crate) fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
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
    assert!(matches!(ask().await, Err(NetworkError::Unreachable(_))));
    b.come_up();
    cluster.wires.cut(&a.name, &b.name);
    cluster.wires.mend(&a.name, &b.name);
    assert_eq!(ask().await.unwrap().status(), StatusCode::NOT_FOUND);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(matches!(event, PeerEvent::Up(name) if name == b.name));
    }
    assert_eq!(seen, [false, true, false, true]);
    assert_eq!(cluster.wires.requests("/nowhere"), 2);
}
