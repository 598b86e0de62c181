//! The DHT `/kith/kad/1` (`protocol.md` section 2): sealed records under keys that are new every day. Relays and reachable
//! desktops serve ([`server`]); everybody publishes and looks up by errands ([`errand`]). Nothing here makes a record, and
//! nothing that a server gives is believed before it is checked.

pub(crate) mod errand;
mod lookup;
mod server;
mod shelf;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use kith_identity::{DhtKey, RecordError, RecordLifetime, SealedRecord};
use libp2p::{Multiaddr, PeerId, StreamProtocol, kad};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use self::errand::{Carrier, Errand, Learned, Put};
pub(crate) use self::lookup::Found;
pub(crate) use self::server::Behaviour as Server;
pub use self::{
    server::{DhtStatus, ServerConfig},
    shelf::ShelfLimits,
};
use crate::{
    Directory, PeerAddresses, StartError, Timing,
    address::{is_dialable, split_peer_id},
    peers::lock,
    swarm,
};

/// What its servers speak.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new("/kith/kad/1");

/// What servers and errands have in common: publishers publish again, and records say under signature how long they are
/// kept. Storers that published for others would keep a record alive that its publisher let end, and libp2p's job for it
/// remembers every key that a stranger names.
fn settings() -> kad::Config {
    let mut settings = kad::Config::new(PROTOCOL);
    settings
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    settings
}

/// Tells a server the time, by which it judges and keeps records.
pub type Clock = Arc<dyn Fn() -> MilliSecondsSinceUnixEpoch + Send + Sync>;

/// Until an errand must be over.
const ERRAND: Duration = Duration::from_secs(60);

/// For one server's handshake. Errands ask several side by side, and those that are slow are left out.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Paths that a lookup takes side by side.
const PATHS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(5);

/// Servers that are remembered, besides those that were configured.
const MAX_SERVERS: usize = 48;

/// A name that was looked up is not looked up again for this long, three times as long each time that nothing came of it, up to
/// [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Names that were looked up and are remembered.
const MAX_LOOKED_UP: usize = 1024;

/// A record is given to those who took it last, without looking who is nearest now, for this long after that was looked for.
/// Whoever looks it up asks the twenty nearest servers, so that these may be some places further away by then.
const STORERS_STAY: Duration = Duration::from_secs(6 * 60 * 60);

/// Records whose storers are remembered: those of a node, for a day and the one after it.
const MAX_STORED: usize = 8;

/// What a node does in the DHT.
#[derive(Debug, Clone)]
pub struct DhtConfig {
    /// Servers to begin with besides the relays, each ending in `/p2p/SERVER`. Others are learned, and kept by the
    /// [`Directory`].
    pub servers: Vec<Multiaddr>,
    /// How many servers are given each record.
    pub replicas: NonZeroUsize,
    /// Paths that a publication takes side by side to those servers. Each makes some connections more.
    pub paths: NonZeroUsize,
    /// For how long records are to hold that this node makes.
    pub lifetime: RecordLifetime,
    /// How many errands run at once; others wait.
    pub errands: usize,
    /// Whether to serve others while this node has an address that anyone reaches.
    pub serve: Option<ShelfLimits>,
}

impl DhtConfig {
    /// For a phone: serves nobody, and gives its records to few, seldom.
    pub fn phone() -> Self {
        Self {
            servers: Vec::new(),
            replicas: NonZeroUsize::MIN.saturating_add(5),
            paths: NonZeroUsize::MIN.saturating_add(1),
            lifetime: RecordLifetime::Long,
            errands: 2,
            serve: None,
        }
    }

    /// For a desktop; the default.
    pub fn desktop() -> Self {
        Self {
            servers: Vec::new(),
            replicas: NonZeroUsize::MIN.saturating_add(15),
            paths: PATHS,
            lifetime: RecordLifetime::Short,
            errands: 8,
            serve: Some(ShelfLimits::default()),
        }
    }
}

impl Default for DhtConfig {
    fn default() -> Self {
        Self::desktop()
    }
}

/// Why a record was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No server of the DHT is known: no relay is configured, and none was ever met.
    #[error("no server of the DHT is known; add a relay")]
    NoServers,
    /// None of those known, or named by them, took the record.
    #[error("no server of the DHT took the record")]
    NotTaken,
    /// The record cannot be sent.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No errand can be made.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What came of looking a name up.
struct LookedUp {
    until: Instant,
    pause: Duration,
}

/// Who took a record.
#[derive(Clone)]
struct Stored {
    servers: Vec<PeerAddresses>,
    /// How many it was given to.
    given: usize,
    /// When those nearest to its key were looked for.
    sought: Instant,
}

impl Stored {
    /// Whether so few have gone that as few new ones are likely to be nearer: at least two in three took it, and half of those
    /// that it was given to at first.
    fn is_enough(&self, taken: usize) -> bool {
        taken * 3 >= self.servers.len() * 2 && taken * 2 >= self.given
    }
}

/// Publishes and looks up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dht(Arc<Inner>);

struct Inner {
    directory: Arc<dyn Directory>,
    carrier: Carrier,
    timing: Timing,
    config: DhtConfig,
    /// Relays, and the servers of the configuration.
    configured: Mutex<Vec<PeerAddresses>>,
    errands: Semaphore,
    looked_up: Mutex<HashMap<OwnedServerName, LookedUp>>,
    stored: Mutex<HashMap<DhtKey, Stored>>,
}

impl Dht {
    pub(crate) fn new(config: DhtConfig, relays: &[Multiaddr], directory: Arc<dyn Directory>, timing: &Timing) -> Self {
        let timing = Timing {
            handshake: timing.handshake.min(HANDSHAKE),
            ..timing.clone()
        };
        let own = timing.clone();
        let carrier: Carrier = Arc::new(move |keypair, global| swarm::brief_transport(keypair, &own, global));
        let dht = Self::over(carrier, config, directory, timing);
        dht.set_relays(relays);
        dht
    }

    /// Over another transport than that of nodes.
    fn over(carrier: Carrier, config: DhtConfig, directory: Arc<dyn Directory>, timing: Timing) -> Self {
        // An errand ends its connections itself: what is handed to one that is just being closed for want of use is lost.
        let timing = Timing {
            unused: ERRAND,
            ..timing
        };
        Self(Arc::new(Inner {
            directory,
            carrier,
            timing,
            configured: Mutex::new(known_servers(&config.servers)),
            errands: Semaphore::new(config.errands.max(1)),
            config,
            looked_up: Mutex::default(),
            stored: Mutex::default(),
        }))
    }

    /// Begins at these relays from now on, and at the servers of the configuration.
    pub(crate) fn set_relays(&self, relays: &[Multiaddr]) {
        let servers = known_servers(&[relays, &self.0.config.servers].concat());
        *lock(&self.0.configured) = servers;
        self.forgive();
    }

    /// Gives a record to the servers nearest to its key, or to those who took the last one of its slot; says how many took
    /// it, or seemed to.
    pub(crate) async fn publish(&self, record: &SealedRecord) -> Result<usize, PublishError> {
        let _turn = self.0.errands.acquire().await;
        let (key, value) = (record.dht_key(), record.encode()?);
        if let Some(taken) = self.give_again(key, &value).await? {
            return Ok(taken);
        }
        let servers = self.servers().await;
        if servers.is_empty() {
            return Err(PublishError::NoServers);
        }
        let sought = Instant::now();
        let mut errand = self.errand(&servers, self.0.config.paths)?;
        let put = errand.put(key, value, self.0.config.replicas);
        let Put { given, taken } = timeout(ERRAND, put).await.unwrap_or_default();
        self.learn(&servers, errand).await;
        if taken.is_empty() {
            return Err(PublishError::NotTaken);
        }
        let count = taken.len();
        let stored = Stored {
            servers: taken,
            given,
            sought,
        };
        self.remember(key, stored);
        Ok(count)
    }

    /// Gives a record to those who took the last one of its slot. Says how many took it, if they are enough.
    async fn give_again(&self, key: DhtKey, value: &[u8]) -> Result<Option<usize>, StartError> {
        let stored = lock(&self.0.stored).get(&key).cloned();
        let Some(stored) = stored.filter(|stored| stored.sought.elapsed() < STORERS_STAY) else {
            return Ok(None);
        };
        let mut errand = self.errand(&stored.servers, PATHS)?;
        let given = errand.give(key, value.to_vec(), stored.servers.clone());
        let taken = timeout(ERRAND, given).await.map_or(0, |taken| taken.len());
        Ok(stored.is_enough(taken).then_some(taken))
    }

    fn remember(&self, key: DhtKey, taken: Stored) {
        let mut stored = lock(&self.0.stored);
        stored.insert(key, taken);
        while stored.len() > MAX_STORED {
            let oldest = stored.iter().min_by_key(|(_, stored)| stored.sought);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            stored.remove(&oldest);
        }
    }

    /// Whether the server may be looked up `now`: it was not a moment ago, nor at all since it was reached last if nothing is `awaited`
    /// from it. If so, it counts as looked up from now on.
    pub(crate) fn may_look_up(&self, server: &ServerName, awaited: bool, now: Instant) -> bool {
        let mut looked_up = lock(&self.0.looked_up);
        let before = looked_up.get(server);
        if before.is_some_and(|before| !awaited || now < before.until) {
            return false;
        }
        let pause = before.map_or(PAUSE, |before| (before.pause * 3).min(MAX_PAUSE));
        if before.is_none() && looked_up.len() >= MAX_LOOKED_UP {
            looked_up.retain(|_, before| now < before.until);
            if looked_up.len() >= MAX_LOOKED_UP {
                return false;
            }
        }
        let until = now + pause;
        looked_up.insert(server.to_owned(), LookedUp { until, pause });
        true
    }

    /// The server was reached: next time it is looked up without delay.
    pub(crate) fn reached(&self, server: &ServerName) {
        lock(&self.0.looked_up).remove(server);
    }

    /// On another network, or with other servers, everything may be found again.
    pub(crate) fn forgive(&self) {
        lock(&self.0.looked_up).clear();
    }

    fn errand(&self, servers: &[PeerAddresses], paths: NonZeroUsize) -> Result<Errand, StartError> {
        Errand::new(&self.0.carrier, &self.0.timing, servers, paths)
    }

    /// The servers to begin with.
    pub(crate) async fn servers(&self) -> Vec<PeerAddresses> {
        let mut servers = lock(&self.0.configured).clone();
        match self.0.directory.dht_servers().await {
            Ok(learned) => {
                let configured: Vec<_> = servers.iter().map(|server| server.peer_id).collect();
                let new = learned
                    .into_iter()
                    .filter(|server| !configured.contains(&server.peer_id));
                servers.extend(new);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the servers of the DHT that were met cannot be read"
            ),
        }
        servers
    }

    /// Forgets the servers that lied to an errand, and those that it missed while it met others; and remembers those that it met
    /// in the places that are left. Who is known and there stays: those who lead errands to their own friends would soon be
    /// all that is known.
    async fn learn(&self, servers: &[PeerAddresses], errand: Errand) {
        let Learned { met, missed, liars } = errand.end();
        if met.is_empty() && missed.is_empty() && liars.is_empty() {
            return;
        }
        let configured: Vec<_> = lock(&self.0.configured).iter().map(|server| server.peer_id).collect();
        let gone = |peer: &PeerId| !met.is_empty() && missed.contains(peer);
        let known = servers.iter().filter(|server| !gone(&server.peer_id));
        let new = met
            .iter()
            .filter(|met| !servers.iter().any(|server| server.peer_id == met.peer_id));
        let trusted = known
            .chain(new)
            .filter(|server| !configured.contains(&server.peer_id) && !liars.contains(&server.peer_id));
        let learned = trusted.take(MAX_SERVERS).cloned().collect();
        if let Err(error) = self.0.directory.keep_dht_servers(learned).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the servers of the DHT that were met are not kept"
            );
        }
    }
}

/// Addresses that each end in a PeerId, put together by it. Others are left out.
pub(crate) fn known_servers(addresses: &[Multiaddr]) -> Vec<PeerAddresses> {
    let split = addresses.iter().cloned().map(split_peer_id);
    PeerAddresses::grouped(
        split.filter_map(|(address, peer_id)| Some((peer_id?, address)).filter(|(_, address)| is_dialable(address))),
    )
}
