//! A network in memory that joins the nodes of a test. It can be cut, held up and made to lie.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, Response};
use kith_identity::{TopicKey, TopicName};
use ruma::{OwnedServerName, ServerName};
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast, watch};
use tower::ServiceExt;

use crate::{
    federation::Peer,
    network::{Limits, Network, NetworkError, PeerEvent, PeerPath, PeerStatus, PublishError, TopicMessage},
};

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
    /// Pairs that are not connected because nothing was said; a request connects them.
    let_go: BTreeSet<(OwnedServerName, OwnedServerName)>,
    /// Every request that reached its target: from, to, method, path without query.
    log: Vec<(OwnedServerName, OwnedServerName, Method, String)>,
    /// Answers held back, by part of the request's path.
    held: Vec<(String, Arc<Semaphore>)>,
    /// Answers that lie: of one node or of any, by part of the request's path.
    lies: Vec<(Option<OwnedServerName>, String, Lie)>,
    /// Messages of topics so far, and whether they are lost from now on.
    published: Vec<(OwnedServerName, Bytes)>,
    loses_gossip: bool,
    /// Who said that a topic did not bring a message.
    missed: BTreeSet<(OwnedServerName, TopicName)>,
    /// Requests that are never answered: to one node or to any, by part of their path.
    lost: Vec<(Option<OwnedServerName>, String)>,
}

/// Turns a true JSON answer into another one.
type Lie = Arc<dyn Fn(&mut Value) + Send + Sync>;

struct End {
    router: Option<Router>,
    up: bool,
    events: broadcast::Sender<PeerEvent>,
    /// The topics that it follows, and among whom.
    topics: BTreeMap<TopicName, BTreeSet<OwnedServerName>>,
    messages: broadcast::Sender<TopicMessage>,
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
        self.in_reach(a, b) && !self.let_go.contains(&pair(a, b))
    }

    fn in_reach(&self, a: &ServerName, b: &ServerName) -> bool {
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

    /// Lets every node let every other one go.
    pub(crate) fn let_all_go(&self) {
        let mut inner = self.lock();
        for (a, b) in inner.pairs() {
            inner.let_go.insert((a.clone(), b.clone()));
            inner.tell(&a, PeerEvent::LetGo(b.clone()));
            inner.tell(&b, PeerEvent::LetGo(a));
        }
    }

    /// Connects two nodes that let each other go, or shows the one that tries that the other is out of reach.
    fn dial(&self, from: &ServerName, to: &ServerName) {
        let mut inner = self.lock();
        let pair = pair(from, to);
        if !inner.let_go.contains(&pair) {
            return;
        }
        inner.let_go.remove(&pair);
        if inner.in_reach(from, to) {
            inner.tell(from, PeerEvent::Up(to.to_owned()));
            inner.tell(to, PeerEvent::Up(from.to_owned()));
        } else {
            inner.tell(from, PeerEvent::Down(to.to_owned()));
        }
    }

    /// Mends the wire between two nodes.
    pub(crate) fn mend(&self, a: &ServerName, b: &ServerName) {
        self.change(|inner| {
            inner.cut.remove(&pair(a, b));
        });
    }

    /// Who said that a topic did not bring a message.
    pub(crate) fn missed(&self) -> BTreeSet<(OwnedServerName, TopicName)> {
        self.lock().missed.clone()
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
        inner.lies.retain(|(of, held, _)| of.is_some() || held != part);
        inner.lies.push((None, part.to_owned(), Arc::new(lie)));
    }

    /// [`Wires::lie`] for the answers of one node only.
    pub(crate) fn lie_of(&self, of: &ServerName, part: &str, lie: impl Fn(&mut Value) + Send + Sync + 'static) {
        let mut inner = self.lock();
        inner
            .lies
            .retain(|(held_of, held, _)| held_of.as_deref() != Some(of) || held != part);
        inner.lies.push((Some(of.to_owned()), part.to_owned(), Arc::new(lie)));
    }

    /// From now on requests whose path holds `part` never arrive.
    pub(crate) fn lose(&self, part: &str) {
        self.lock().lost.push((None, part.to_owned()));
    }

    /// From now on one node never answers requests whose path holds `part`. They count as requests that arrived.
    pub(crate) fn silence(&self, node: &ServerName, part: &str) {
        self.lock().lost.push((Some(node.to_owned()), part.to_owned()));
    }

    /// How many requests whose path holds `part` arrived at one node so far.
    pub(crate) fn requests_to(&self, node: &ServerName, part: &str) -> usize {
        let inner = self.lock();
        let of_it = inner
            .log
            .iter()
            .filter(|(_, to, _, path)| to == node && path.contains(part));
        of_it.count()
    }

    /// From now on what is told over topics reaches nobody, or everybody again.
    pub(crate) fn lose_gossip(&self, lost: bool) {
        self.lock().loses_gossip = lost;
    }

    /// What was told over topics so far, and by whom.
    pub(crate) fn published(&self) -> Vec<(OwnedServerName, Bytes)> {
        self.lock().published.clone()
    }

    /// Changes when something was sent or followed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.1.subscribe()
    }

    /// The topics that a node follows.
    pub(crate) fn followed(&self, name: &ServerName) -> BTreeSet<TopicName> {
        self.lock().nodes[name].topics.keys().cloned().collect()
    }

    /// From now on all requests arrive again.
    pub(crate) fn lose_nothing(&self) {
        self.lock().lost.clear();
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

    /// [`Wires::until_requests`] for those that arrive at one node.
    pub(crate) async fn until_requests_to(&self, node: &ServerName, part: &str, count: usize) {
        let mut news = self.1.subscribe();
        while self.requests_to(node, part) < count {
            news.changed().await.unwrap();
        }
    }

    /// Adds a node, up but not serving yet.
    pub(super) fn add(&self, name: OwnedServerName) {
        let end = End {
            router: None,
            up: true,
            events: broadcast::channel(64).0,
            topics: BTreeMap::new(),
            messages: broadcast::channel(256).0,
        };
        self.lock().nodes.insert(name, end);
    }

    /// Where a node is told of peers coming and going.
    pub(super) fn events(&self, name: &ServerName) -> broadcast::Sender<PeerEvent> {
        self.lock().nodes[name].events.clone()
    }

    pub(super) fn set_up(&self, name: &ServerName, up: bool) {
        self.change(|inner| {
            if let Some(end) = inner.nodes.get_mut(name) {
                end.up = up;
            }
            if up {
                // A node that comes meets everybody, also those who have not noticed that it was away.
                inner.let_go.retain(|(a, b)| a != name && b != name);
            }
        });
    }

    pub(super) fn set_router(&self, name: &ServerName, router: Option<Router>) {
        self.change(|inner| {
            if let Some(end) = inner.nodes.get_mut(name) {
                end.router = router;
            }
        });
    }
}

/// Whether a request to a node is one of those that are spoken of.
fn is_about(of: Option<&OwnedServerName>, part: &str, to: &ServerName, path: &str) -> bool {
    of.is_none_or(|of| *of == *to) && path.contains(part)
}

/// One node's end of the [`Wires`].
pub(super) struct MemoryNetwork {
    pub(super) me: OwnedServerName,
    pub(super) wires: Wires,
    pub(super) events: broadcast::Sender<PeerEvent>,
}

#[async_trait]
impl Network for MemoryNetwork {
    async fn request(
        &self,
        to: &ServerName,
        mut request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        self.wires.dial(&self.me, to);
        let (router, held, lie) = {
            let mut inner = self.wires.lock();
            if !inner.connected(&self.me, to) {
                return Err(NetworkError::Unreachable(to.to_owned()));
            }
            let path = request.uri().path().to_owned();
            let method = request.method().clone();
            let lost = inner
                .lost
                .iter()
                .find(|(of, part)| is_about(of.as_ref(), part, to, &path));
            if let Some((of, _)) = lost {
                if of.is_some() {
                    inner.log.push((self.me.clone(), to.to_owned(), method, path));
                    self.wires.1.send_replace(());
                }
                return Err(NetworkError::TimedOut(to.to_owned()));
            }
            let held = inner.held.iter().find(|(part, _)| path.contains(part));
            let held = held.map(|(_, gate)| Arc::clone(gate));
            let lie = inner
                .lies
                .iter()
                .find(|(of, part, _)| is_about(of.as_ref(), part, to, &path));
            let lie = lie.map(|(_, _, lie)| Arc::clone(lie));
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
                path: PeerPath::Direct,
                addresses: Vec::new(),
            })
            .collect()
    }

    async fn follow(&self, topic: TopicKey, members: Vec<OwnedServerName>) {
        if let Some(end) = self.wires.lock().nodes.get_mut(&self.me) {
            end.topics.insert(topic.name(), members.into_iter().collect());
        }
        self.wires.1.send_replace(());
    }

    async fn unfollow(&self, topic: &TopicName) {
        if let Some(end) = self.wires.lock().nodes.get_mut(&self.me) {
            end.topics.remove(topic);
        }
        self.wires.1.send_replace(());
    }

    /// The mesh is whole: every connected follower gets the message from who made it.
    async fn publish(&self, topic: &TopicKey, message: Bytes) -> Result<usize, PublishError> {
        let name = topic.name();
        let mut inner = self.wires.lock();
        let Some(members) = inner.nodes.get(&self.me).and_then(|end| end.topics.get(&name)).cloned() else {
            return Err(PublishError::NotFollowed);
        };
        let follows = |(other, end): &(&OwnedServerName, &End)| {
            let listens = end.topics.get(&name).is_some_and(|members| members.contains(&self.me));
            listens && members.contains(*other) && inner.connected(&self.me, other)
        };
        let told: Vec<_> = inner
            .nodes
            .iter()
            .filter(follows)
            .map(|(_, end)| end.messages.clone())
            .collect();
        if told.is_empty() {
            return Err(PublishError::NobodyThere);
        }
        inner.published.push((self.me.clone(), message.clone()));
        for messages in told.iter().filter(|_| !inner.loses_gossip) {
            let _ = messages.send(TopicMessage {
                topic: name.clone(),
                from: self.me.clone(),
                message: message.clone(),
            });
        }
        self.wires.1.send_replace(());
        Ok(told.len())
    }

    async fn missed(&self, topic: &TopicName, _: &ServerName) {
        self.wires.lock().missed.insert((self.me.clone(), topic.clone()));
        self.wires.1.send_replace(());
    }

    fn has_topics(&self) -> bool {
        true
    }

    fn topic_messages(&self) -> Option<broadcast::Receiver<TopicMessage>> {
        let inner = self.wires.lock();
        inner.nodes.get(&self.me).map(|end| end.messages.subscribe())
    }
}
