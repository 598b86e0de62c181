//! The network between the nodes: it delays, reorders, repeats and loses requests and answers, and is split by partitions.
//! What it carries goes into the other node's own federation router. It reads no more of a request than its path.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, Response};
use kith_node::{
    federation::Peer,
    identity::{TopicKey, TopicName},
    network::{Limits, Network, NetworkError, PeerEvent, PeerPath, PeerStatus, PublishError, TopicMessage},
};
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{broadcast, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tower::ServiceExt;

use crate::{
    disk::Machine,
    faults::{Fault, Faults},
    gossip::Following,
    random::Dice,
    trace::{Trace, digest},
    variant::Variant,
};

/// Bytes of an answer to a client at the most.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Chances in a hundred of what may befall a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// That it is lost on its way.
    pub(crate) loss: u32,
    /// That it is served and the answer lost.
    pub(crate) answer_loss: u32,
    /// That it arrives twice.
    pub(crate) repeat: u32,
    /// That it takes seconds, and so its answer.
    pub(crate) slow: u32,
}

/// The network. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wires {
    pub(crate) inner: Arc<Mutex<Inner>>,
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    pub(crate) trace: Trace,
    pub(crate) variant: Variant,
}

pub(crate) struct Inner {
    pub(crate) ends: Vec<End>,
    pub(crate) weather: Weather,
    /// From whom to whom nothing comes through, by a partition that both ends notice in time.
    parted: BTreeSet<(usize, usize)>,
    /// From whom to whom nothing comes through, though it does the other way: nobody is told.
    one_way: BTreeSet<(usize, usize)>,
    /// The number of the latest request sent and of the latest that arrived, by pair.
    order: BTreeMap<(usize, usize), (u64, u64)>,
}

pub(crate) struct End {
    pub(crate) name: OwnedServerName,
    attached: Option<Attached>,
    /// The nodes that it believes to be connected with.
    pub(crate) sees: BTreeSet<usize>,
    /// The topics that it follows.
    pub(crate) following: Following,
}

/// A running node, as the network and its own clients reach it.
#[derive(Clone)]
pub(crate) struct Attached {
    /// What it runs on.
    pub(crate) machine: Arc<Machine>,
    /// Its server-server API.
    pub(crate) federation: Router,
    /// Its client-server API.
    pub(crate) client_api: Router,
    /// Where it hears of peers.
    pub(crate) events: broadcast::Sender<PeerEvent>,
    /// Where it hears of messages of topics.
    pub(crate) messages: broadcast::Sender<TopicMessage>,
    /// What it is doing for others.
    pub(crate) tasks: Tasks,
}

/// Tasks that end with their machine.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.0);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Drops them wherever they are.
    pub(crate) fn abort(&self) {
        lock(&self.0).abort_all();
    }
}

impl Attached {
    /// Has the node serve a request. None if its machine stops before the answer is out.
    async fn serve(&self, router: Router, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let (answer, answered) = oneshot::channel();
        self.tasks.spawn(async move {
            // The router's error type has no values.
            let Ok(response) = router.oneshot(request.map(Body::from)).await;
            let (head, body) = response.into_parts();
            if let Ok(body) = axum::body::to_bytes(body, MAX_ANSWER).await {
                let _ = answer.send(Response::from_parts(head, body));
            }
        });
        let response = answered.await.ok()?;
        self.machine.runs().then_some(response)
    }
}

impl Wires {
    /// Wires between nodes of these names, none of which is attached yet.
    pub(crate) fn new(
        names: impl IntoIterator<Item = OwnedServerName>,
        dice: Dice,
        faults: Faults,
        trace: Trace,
        variant: Variant,
    ) -> Self {
        let ends = names.into_iter().map(|name| End {
            name,
            attached: None,
            sees: BTreeSet::new(),
            following: Following::default(),
        });
        Self {
            inner: Arc::new(Mutex::new(Inner {
                ends: ends.collect(),
                weather: Weather::default(),
                parted: BTreeSet::new(),
                one_way: BTreeSet::new(),
                order: BTreeMap::new(),
            })),
            dice,
            faults,
            trace,
            variant,
        }
    }

    /// Attaches a node that has started; its peers meet it anew.
    pub(crate) fn attach(&self, node: usize, attached: Attached) {
        let count = {
            let mut inner = lock(&self.inner);
            inner.ends[node].attached = Some(attached);
            inner.ends[node].following = Following::default();
            for other in 0..inner.ends.len() {
                inner.set_seen(node, other, false);
            }
            inner.ends.len()
        };
        (0..count).for_each(|other| self.reconsider(node, other, 1_000));
    }

    /// Takes a stopped node away. Its peers notice later.
    pub(crate) fn detach(&self, node: usize) -> Option<Attached> {
        let (attached, count) = {
            let mut inner = lock(&self.inner);
            (inner.ends[node].attached.take(), inner.ends.len())
        };
        (0..count).for_each(|other| self.reconsider(node, other, 40_000));
        attached
    }

    /// Sets what befalls requests from now on.
    pub(crate) fn set_weather(&self, weather: Weather) {
        lock(&self.inner).weather = weather;
    }

    /// Sets between which nodes nothing comes through, in place of earlier partitions.
    pub(crate) fn part(&self, pairs: impl IntoIterator<Item = (usize, usize)>) {
        let parted = pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        let changed = {
            let mut inner = lock(&self.inner);
            let before = std::mem::replace(&mut inner.parted, parted);
            let changed: Vec<_> = before.symmetric_difference(&inner.parted).copied().collect();
            changed
        };
        for (a, b) in changed.into_iter().filter(|(a, b)| a < b) {
            self.reconsider(a, b, 40_000);
        }
    }

    /// Sets from which node to which nothing comes through while the other way works.
    pub(crate) fn part_one_way(&self, pairs: impl IntoIterator<Item = (usize, usize)>) {
        lock(&self.inner).one_way = pairs.into_iter().collect();
    }

    /// Whether nothing comes through between some nodes, one way or both.
    pub(crate) fn are_parted(&self) -> bool {
        let inner = lock(&self.inner);
        !inner.parted.is_empty() || !inner.one_way.is_empty()
    }

    /// Breaks every connection and makes it again, as when everybody comes back to one good network.
    pub(crate) fn reconnect(&self) {
        let count = {
            let mut inner = lock(&self.inner);
            let count = inner.ends.len();
            for a in 0..count {
                for b in a + 1..count {
                    inner.set_seen(a, b, false);
                }
            }
            count
        };
        for a in 0..count {
            for b in a + 1..count {
                self.reconsider(a, b, 5_000);
            }
        }
    }

    /// The running node of this number.
    pub(crate) fn attached(&self, node: usize) -> Option<Attached> {
        let inner = lock(&self.inner);
        inner.ends[node].attached.clone().filter(|end| end.machine.runs())
    }

    /// Sends a client's request to its own node. None if there is no answer: whether it was served, nobody knows.
    pub(crate) async fn ask_own(&self, node: usize, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let attached = self.attached(node)?;
        let follows = request.uri().path().ends_with("/sync");
        let line = format!("{node} client {} {}", request.method(), request.uri());
        let answer = attached.serve(attached.client_api.clone(), request).await;
        let line = match &answer {
            Some(answer) => format!("{line} {} {}", answer.status().as_u16(), digest(answer.body())),
            None => format!("{line} lost"),
        };
        match follows {
            true => self.trace.aside(line),
            false => self.trace.note(line),
        }
        answer
    }

    /// Has two nodes find out, within some time, whether they are connected.
    fn reconsider(&self, a: usize, b: usize, within_millis: u64) {
        if a == b {
            return;
        }
        let wires = self.clone();
        let delay = Duration::from_millis(self.dice.between(1, within_millis));
        tokio::spawn(async move {
            sleep(delay).await;
            let mut inner = lock(&wires.inner);
            let connected = inner.runs(a) && inner.runs(b) && !inner.parted.contains(&(a, b));
            inner.set_seen(a, b, connected);
        });
    }

    /// What stands in the way from one node to another, if anything does.
    pub(crate) fn obstacle(&self, from: usize, to: usize) -> Option<Fault> {
        let inner = lock(&self.inner);
        if inner.parted.contains(&(from, to)) {
            Some(Fault::Partitioned)
        } else if inner.one_way.contains(&(from, to)) {
            Some(Fault::OneWay)
        } else {
            None
        }
    }

    /// Waits as long as a way takes.
    async fn travel(&self) {
        let slow = lock(&self.inner).weather.slow;
        let millis = if self.dice.percent(slow) {
            self.faults.count(Fault::Delayed);
            self.dice.between(1_000, 12_000)
        } else {
            self.dice.between(2, 120)
        };
        sleep(Duration::from_millis(millis)).await;
    }

    /// Notes that a request arrives, and whether a later one overtook it.
    fn arrive(&self, from: usize, to: usize, number: u64) {
        let mut inner = lock(&self.inner);
        let (_, latest) = inner.order.entry((from, to)).or_default();
        if number < *latest {
            self.faults.count(Fault::Reordered);
        }
        *latest = number.max(*latest);
        // Whoever is reached is connected.
        inner.set_seen(from, to, true);
    }

    /// Delivers a request, and once more if it is repeated.
    async fn deliver(&self, from: usize, to: usize, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let end = self.attached(to)?;
        let peer = Peer(lock(&self.inner).ends[from].name.clone());
        let repeat = lock(&self.inner).weather.repeat;
        let with_peer = |request: &Request<Bytes>| {
            let mut request = request.clone();
            request.extensions_mut().insert(peer.clone());
            request
        };
        if self.dice.percent(repeat) {
            let (wires, again) = (self.clone(), with_peer(&request));
            let delay = Duration::from_millis(self.dice.between(0, 20_000));
            tokio::spawn(async move {
                sleep(delay).await;
                if let Some(end) = wires.attached(to) {
                    wires.faults.count(Fault::Duplicated);
                    wires
                        .trace
                        .note(format_args!("{from}>{to} again {} {}", again.method(), again.uri()));
                    end.serve(end.federation.clone(), again).await;
                }
            });
        }
        end.serve(end.federation.clone(), with_peer(&request)).await
    }
}

impl Inner {
    fn runs(&self, node: usize) -> bool {
        let attached = self.ends[node].attached.as_ref();
        attached.is_some_and(|attached| attached.machine.runs())
    }

    /// Has two nodes believe that they are connected, or not, and tells those to whom it is news.
    fn set_seen(&mut self, a: usize, b: usize, seen: bool) {
        for (me, other) in [(a, b), (b, a)] {
            let name = self.ends[other].name.clone();
            let end = &mut self.ends[me];
            let news = if seen {
                end.sees.insert(other).then_some(PeerEvent::Up(name))
            } else {
                end.sees.remove(&other).then_some(PeerEvent::Down(name))
            };
            if let (Some(news), Some(attached)) = (news, &end.attached) {
                let _ = attached.events.send(news);
            }
        }
    }
}

/// The [`Network`] of one node, for as long as its machine runs.
pub(crate) struct Interface {
    /// Its number.
    pub(crate) node: usize,
    /// The wires.
    pub(crate) wires: Wires,
    /// Its machine.
    pub(crate) machine: Arc<Machine>,
    /// Where it hears of peers.
    pub(crate) events: broadcast::Sender<PeerEvent>,
    /// Where it hears of messages of topics.
    pub(crate) messages: broadcast::Sender<TopicMessage>,
}

/// How a request came to nothing.
enum Lost {
    /// It is known at once.
    Refused,
    /// Nobody says anything.
    Silent,
}

impl Interface {
    async fn carry(&self, to: usize, request: Request<Bytes>) -> Result<Response<Bytes>, Lost> {
        let wires = &self.wires;
        let number = {
            let mut inner = lock(&wires.inner);
            let (sent, _) = inner.order.entry((self.node, to)).or_default();
            *sent += 1;
            *sent
        };
        let seen = lock(&wires.inner).ends[self.node].sees.contains(&to);
        wires.travel().await;
        if let Some(fault) = wires.obstacle(self.node, to) {
            wires.faults.count(fault);
            // Without a connection, dialling fails; over one that is believed to stand, nothing ever comes back.
            return Err(if seen { Lost::Silent } else { Lost::Refused });
        }
        let weather = lock(&wires.inner).weather;
        if wires.dice.percent(weather.loss) {
            wires.faults.count(Fault::RequestLost);
            return Err(Lost::Silent);
        }
        if !self.machine.runs() {
            return Err(Lost::Refused);
        }
        if wires.attached(to).is_none() {
            return Err(if seen { Lost::Silent } else { Lost::Refused });
        }
        wires.arrive(self.node, to, number);
        let answer = wires.deliver(self.node, to, request).await.ok_or(Lost::Refused)?;
        wires.travel().await;
        if let Some(fault) = wires.obstacle(to, self.node) {
            wires.faults.count(fault);
            return Err(Lost::Silent);
        }
        if wires.dice.percent(weather.answer_loss) {
            wires.faults.count(Fault::AnswerLost);
            return Err(Lost::Silent);
        }
        Ok(answer)
    }

    fn number_of(&self, name: &ServerName) -> Option<usize> {
        lock(&self.wires.inner).ends.iter().position(|end| end.name == name)
    }
}

#[async_trait]
impl Network for Interface {
    async fn request(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        let deadline = Instant::now() + limits.deadline;
        let unreachable = || NetworkError::Unreachable(to.to_owned());
        let other = self
            .number_of(to)
            .filter(|_| self.machine.runs())
            .ok_or_else(unreachable)?;
        let line = format!(
            "{}>{other} {} {} {}",
            self.node,
            request.method(),
            request.uri(),
            digest(request.body())
        );
        if let Some(answer) = self.wires.variant.answer_instead(&request) {
            return Ok(answer);
        }
        let carried = timeout_at(deadline, self.carry(other, request)).await;
        if !self.machine.runs() {
            return Err(unreachable());
        }
        let outcome = match carried {
            Ok(Ok(answer)) if answer.body().len() > limits.max_answer => Err(NetworkError::Broken {
                server: to.to_owned(),
                reason: "the answer is too large".to_owned(),
            }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Lost::Refused)) => Err(unreachable()),
            Ok(Err(Lost::Silent)) | Err(_) => {
                sleep_until(deadline).await;
                Err(NetworkError::TimedOut(to.to_owned()))
            }
        };
        match &outcome {
            Ok(answer) => self.wires.trace.note(format_args!(
                "{line} {} {}",
                answer.status().as_u16(),
                digest(answer.body())
            )),
            Err(NetworkError::TimedOut(_)) => self.wires.trace.note(format_args!("{line} timed out")),
            Err(_) => self.wires.trace.note(format_args!("{line} failed")),
        }
        outcome
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    fn peers(&self) -> Vec<PeerStatus> {
        if !self.machine.runs() {
            return Vec::new();
        }
        let inner = lock(&self.wires.inner);
        let seen = inner.ends[self.node].sees.iter();
        seen.map(|other| PeerStatus {
            server_name: inner.ends[*other].name.clone(),
            path: PeerPath::Direct,
            addresses: Vec::new(),
        })
        .collect()
    }

    async fn follow(&self, topic: TopicKey, members: Vec<OwnedServerName>) {
        if self.machine.runs() {
            lock(&self.wires.inner).ends[self.node].following.follow(topic, members);
        }
    }

    async fn unfollow(&self, topic: &TopicName) {
        if self.machine.runs() {
            lock(&self.wires.inner).ends[self.node].following.unfollow(topic);
        }
    }

    async fn publish(&self, topic: &TopicKey, message: Bytes) -> Result<usize, PublishError> {
        match self.machine.runs() {
            true => self.wires.publish(self.node, topic, &message),
            false => Err(PublishError::Busy),
        }
    }

    async fn missed(&self, _: &TopicName, _: &ServerName) {
        // Nobody keeps silent here.
    }

    fn has_topics(&self) -> bool {
        true
    }

    fn topic_messages(&self) -> Option<broadcast::Receiver<TopicMessage>> {
        Some(self.messages.subscribe())
    }
}

/// A request with a JSON body, as a client of one's own node sends it.
pub(crate) fn client_request(
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<&serde_json::Value>,
) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = body.map(ToString::to_string).unwrap_or_default();
    request.body(Bytes::from(body)).expect("paths and tokens are made here")
}

/// A poisoned lock only says that another task panicked, which the run reports anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
