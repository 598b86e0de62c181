//! The nodes of a run: real homeservers over real stores, each on a machine that can stop and start again. It decides
//! nothing about when they do.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::Method;
use kith_engine::RoomReader;
use kith_node::{
    Homeserver, client_api,
    clock::{Clock, Computing, World as NodeWorld},
    config::Config,
    federation,
    homeserver::Context,
    identity::{IdentityKey, KeyDocument, NodeKey},
};
use kith_store::{Execution, Store, StoreConfig};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, UInt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{broadcast, mpsc, watch};

use crate::{
    checker::Finding,
    clock::WallClock,
    disk::{self, DiskDrive, Machine},
    faults::{Fault, Faults},
    network::{Attached, Interface, Tasks, Wires, client_request},
    random::Dice,
    trace::Trace,
    variant::Variant,
    vfs,
    workload::{Sent, Society},
};

/// Milliseconds for which the nodes' key documents hold: longer than any run, clocks that are wrong included.
const YEAR: u32 = 2_147_483_647;
/// Peer events, and messages of topics, that a node may lag behind.
const EVENTS: usize = 256;
/// Other servers in a room from which on its events go over its topic: few, since there are few nodes.
const GOSSIP_FROM: usize = 2;

/// What a run is made from.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// From what everything follows.
    pub(crate) seed: u64,
    /// How many nodes.
    pub(crate) nodes: usize,
    /// What is different about it.
    pub(crate) variant: Variant,
    /// Whether the trace goes to standard error.
    pub(crate) shown: bool,
    /// Where its files go, if that is given.
    pub(crate) folder: Option<PathBuf>,
}

/// A folder that goes when it is dropped, in memory where there is a file system in it: what a disk does wrong is simulated,
/// what it does right need not last.
pub(crate) fn folder_in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::Builder::new().prefix("kith-sim-").tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder for the databases")
}

/// What stays of a node over its restarts.
pub(crate) struct Node {
    /// Its server name.
    pub(crate) name: OwnedServerName,
    /// Its wall clock.
    pub(crate) clock: WallClock,
    /// Its disk.
    pub(crate) disk: Arc<DiskDrive>,
    key: Arc<NodeKey>,
    document: Arc<KeyDocument>,
    folder: PathBuf,
    entropy: Dice,
}

/// All nodes of a run, and what joins them.
pub(crate) struct World {
    /// The nodes.
    pub(crate) nodes: Vec<Node>,
    /// What joins them.
    pub(crate) wires: Wires,
    /// What went wrong on purpose.
    pub(crate) faults: Faults,
    /// What happened.
    pub(crate) trace: Trace,
    /// What the people have done, and were told.
    pub(crate) society: Society,
    findings: Mutex<Vec<Finding>>,
    /// Tells the number of a node that stopped.
    stopped: mpsc::Sender<usize>,
    homeservers: Mutex<Vec<Option<Homeserver>>>,
    _folder: Option<TempDir>,
}

impl World {
    /// Makes the nodes; none runs yet. The receiver tells of nodes that stop.
    pub(crate) fn new(plan: &Plan) -> (Arc<Self>, mpsc::Receiver<usize>) {
        let (stopped, stops) = mpsc::channel(plan.nodes * 4);
        let trace = Trace::new(plan.shown);
        let faults = Faults::default();
        let own = plan.folder.is_none().then(folder_in_memory);
        let folder = own.as_ref().map(|folder| folder.path().to_owned());
        let folder = folder.or(plan.folder.clone()).expect("a folder for the databases");
        let nodes: Vec<Node> = (0..plan.nodes)
            .map(|number| {
                let dice = |part: &str| Dice::new(plan.seed, &format!("{part} {number}"));
                let folder = folder.join(number.to_string());
                let settings = disk::Settings {
                    file: folder.join("kith.db"),
                    skips_syncs: plan.variant.skips_syncs(),
                    flips: plan.variant.flips(number),
                };
                let disk = DiskDrive::new(number, settings, dice("disk"), faults.clone(), stopped.clone());
                Node::new(folder, dice("entropy"), disk)
            })
            .collect();
        let wires = Wires::new(
            nodes.iter().map(|node| node.name.clone()),
            Dice::new(plan.seed, "network"),
            faults.clone(),
            trace.clone(),
            plan.variant,
        );
        let world = Self {
            homeservers: Mutex::new(vec![None; nodes.len()]),
            nodes,
            wires,
            faults,
            trace,
            society: Society::default(),
            findings: Mutex::default(),
            stopped,
            _folder: own,
        };
        let disks: Vec<_> = world.nodes.iter().map(|node| Arc::clone(&node.disk)).collect();
        vfs::install(plan.seed, move |path| disks.iter().find_map(|disk| disk.watch(path)));
        (Arc::new(world), stops)
    }

    /// Starts a node over whatever its disk holds. One whose disk fails meanwhile stops, to be started again.
    pub(crate) async fn boot(&self, number: usize) {
        let node = &self.nodes[number];
        let machine = Machine::start();
        let loss = node.disk.start(&machine).expect("files can be copied");
        self.trace.note(format_args!("{number} starts; {loss:?}"));
        node.disk.quietly(|file| self.check_file(number, file));
        let failed = node.disk.failed();
        let started = self.start(number, &machine).await;
        let Err(problem) = started else { return };
        if node.disk.failed() == failed && machine.runs() {
            self.find(format!("node {number} does not start: {problem}"));
        }
        let problem = self.without_folder(&problem.to_string());
        self.trace.note(format_args!("{number} does not start: {problem}"));
        if machine.stop() {
            // The queue has room for several stops of every node.
            let _ = self.stopped.try_send(number);
        }
    }

    /// After any crash, the file passes what `kith check` does, and holds every message that was acknowledged.
    fn check_file(&self, number: usize, file: &Path) {
        if !file.exists() {
            return;
        }
        match kith_store::check(file) {
            Ok(checked) if checked.is_sound() => {}
            Ok(checked) => self.find(format!(
                "the file of node {number} is damaged by a crash: {:?}",
                checked.problems
            )),
            Err(error) => self.find(format!(
                "the file of node {number} does not open after a crash: {error}"
            )),
        }
    }

    async fn start(&self, number: usize, machine: &Arc<Machine>) -> Result<(), Box<dyn Error>> {
        let node = &self.nodes[number];
        let mut config = Config::new(&node.folder);
        config.open_registration = true;
        config.gossip_from = GOSSIP_FROM;
        let mut store = StoreConfig::new(node.folder.join("kith.db"));
        store.readers = 1;
        store.execution = Execution::InPlace(Arc::new(disk::Attached {
            drive: Arc::clone(&node.disk),
            machine: Arc::clone(machine),
        }));
        let events = broadcast::channel(EVENTS).0;
        let messages = broadcast::channel(EVENTS).0;
        let hs = Homeserver::new(Context {
            store: Store::open(&store)?,
            config: Arc::new(config),
            world: NodeWorld::new(node.clock.clone(), node.entropy.clone()).computing(Computing::InPlace),
            network: Arc::new(Interface {
                node: number,
                wires: self.wires.clone(),
                machine: Arc::clone(machine),
                events: events.clone(),
                messages: messages.clone(),
            }),
            server_name: node.name.clone(),
            node_key: Arc::clone(&node.key),
            key_document: watch::channel(Arc::clone(&node.document)).1,
        });
        self.wires.attach(
            number,
            Attached {
                machine: Arc::clone(machine),
                federation: federation::router(hs.clone()),
                client_api: client_api::router(hs.clone()),
                events,
                messages,
                tasks: Tasks::default(),
            },
        );
        lock(&self.homeservers)[number] = Some(hs.clone());
        hs.start().await?;
        self.check_kept(number, &hs).await;
        Ok(())
    }

    /// What a node has acknowledged it has.
    async fn check_kept(&self, number: usize, hs: &Homeserver) {
        let own = |sent: &Sent| sent.user.ends_with(hs.context.server_name.as_str());
        let sent = self.society.sent().into_iter().filter(own);
        let sent: Vec<OwnedEventId> = sent.filter_map(|sent| sent.event.try_into().ok()).collect();
        let lost: Result<Vec<OwnedEventId>, kith_node::Error> = hs
            .context
            .store
            .read(move |txn| {
                let mut lost = sent;
                lost.retain(|id| !txn.has_event(id).unwrap_or(true));
                Ok(lost)
            })
            .await;
        for event in lost.unwrap_or_default() {
            self.find(format!(
                "node {number} has acknowledged {event}, and lost it in a crash"
            ));
        }
    }

    /// A text as it is in every run of a seed, wherever the files are.
    fn without_folder(&self, text: &str) -> String {
        let folder = self.nodes.first().and_then(|node| node.folder.parent());
        text.replace(&folder.unwrap_or(Path::new("")).display().to_string(), "")
    }

    fn find(&self, what: String) {
        self.trace.note(self.without_folder(&what));
        lock(&self.findings).push(Finding(what));
    }

    /// What was found wrong so far.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        lock(&self.findings).clone()
    }

    /// Stops a node's machine now.
    pub(crate) fn crash(&self, number: usize) {
        if let Some(attached) = self.wires.detach(number) {
            attached.tasks.abort();
            // One that has just stopped by itself has told so.
            if attached.machine.stop() {
                self.faults.count(Fault::Crashed);
                // The queue has room for several stops of every node.
                let _ = self.stopped.try_send(number);
            }
        }
    }

    /// Clears away what a stopped machine left in memory.
    pub(crate) fn bury(&self, number: usize) {
        self.trace.note(format_args!("{number} stopped"));
        if let Some(attached) = self.wires.detach(number) {
            attached.tasks.abort();
        }
        lock(&self.homeservers)[number] = None;
    }

    /// The services of a node that runs.
    pub(crate) fn homeserver(&self, number: usize) -> Option<Homeserver> {
        lock(&self.homeservers)[number].clone()
    }
}

impl Node {
    fn new(folder: PathBuf, entropy: Dice, disk: Arc<DiskDrive>) -> Self {
        let clock = WallClock::new();
        let world = NodeWorld::new(clock.clone(), entropy.clone());
        let identity = IdentityKey::generate(&mut world.rng());
        let key = NodeKey::generate(&mut world.rng());
        let now = clock.now();
        let year = MilliSecondsSinceUnixEpoch(now.0 + UInt::from(YEAR));
        let document = KeyDocument::new(&identity, &key.public(), now, year).expect("a key document");
        std::fs::create_dir(&folder).expect("a folder for one node");
        Self {
            name: document.server_name(),
            clock,
            disk,
            key: Arc::new(key),
            document: Arc::new(document),
            folder,
            entropy,
        }
    }
}

/// A logged-in device on one of the nodes.
#[derive(Clone)]
pub(crate) struct Client {
    /// The number of its node.
    pub(crate) node: usize,
    /// Its user.
    pub(crate) user: String,
    token: String,
    wires: Wires,
}

/// What became of a client's request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// 200 with this body.
    Done(Value),
    /// An error that will stay one: its Matrix error code and the body.
    Refused(String, Value),
    /// None, or one that says to try again: whether it was done, nobody knows.
    Unknown,
}

impl Client {
    /// Registers a user.
    pub(crate) async fn register(world: &World, node: usize, name: &str) -> Self {
        let body = json!({"username": name, "password": "secret", "auth": {"type": "m.login.dummy"}});
        let request = client_request(Method::POST, "/_matrix/client/v3/register", None, Some(&body));
        let answer = world.wires.ask_own(node, request).await.expect("nothing is wrong yet");
        let answer: Value = serde_json::from_slice(answer.body()).expect("JSON");
        let text = |field: &str| answer[field].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        Self {
            node,
            user: text("user_id"),
            token: text("access_token"),
            wires: world.wires.clone(),
        }
    }

    /// Whether something keeps some nodes from reaching others now.
    pub(crate) fn is_world_split(&self) -> bool {
        self.wires.are_parted()
    }

    /// Asks its node; the path holds the query too.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let request = client_request(method, path, Some(&self.token), body);
        let Some(answer) = self.wires.ask_own(self.node, request).await else {
            return Answer::Unknown;
        };
        let status = answer.status();
        let body: Value = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
        if status.is_success() {
            return Answer::Done(body);
        }
        if status.is_server_error() || status.as_u16() == 429 {
            return Answer::Unknown;
        }
        Answer::Refused(body["errcode"].as_str().unwrap_or_default().to_owned(), body)
    }
}

/// Escapes one path segment or query value: ids hold `!`, `#`, `$`, `@` and `:`.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
