//! A node's life: opened over its data folder, put online, serving, and shut down with everything committed. It decides
//! nothing about rooms or users; it only joins keys, store, services and network.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use kith_identity::{IdentityKey, IdentityPublicKey, KeyDocument, RecoveryPhrase};
use kith_net::{Multiaddr, Net, NetConfig};
use kith_store::{OpenError, Store, StoreConfig, StoreError};
use rand::Rng;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, Homeserver, client_api,
    clock::World,
    config::Config,
    data_folder::{DataFolder, DataFolderError},
    federation,
    homeserver::Context,
    keystore::{Keystore, KeystoreError},
    listener::{self, ListenError},
    network::{
        directory::StoreDirectory,
        libp2p::{Libp2p, inbound},
    },
    publishing,
    suspend::Rest,
};

/// The setting that says whose database it is.
const OWNER: &str = "server_name";

/// The setting that holds the port of the default addresses.
const PORT: &str = "listen_port";

/// Ports tried for the default addresses before the system chooses them.
const PORT_TRIES: usize = 4;

/// The longest time between two looks at what must be renewed. Sleeping machines stop the timers of this process.
const LONGEST_NAP: Duration = Duration::from_secs(12 * 60 * 60);

/// Why a node cannot be opened, go online or serve. What was there before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeystoreError),
    /// The database cannot be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database was opened, but cannot be read or written.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// The database belongs to another identity than the keys.
    #[error("the database belongs to {0}, but the keys are another identity's; put the right keys back")]
    OtherOwner(String),
    /// The network cannot be started.
    #[error(transparent)]
    Network(#[from] kith_net::StartError),
    /// An address or socket cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A service cannot be started.
    #[error("the homeserver cannot be started")]
    Homeserver(#[source] Box<Error>),
    /// The node was shut down.
    #[error("the node is shut down")]
    ShutDown,
}

/// A node. Cheap to clone; ends with [`Node::shutdown`].
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) homeserver: Homeserver,
    pub(crate) identity: IdentityKey,
    pub(crate) keystore: Keystore,
    pub(crate) network: Libp2p,
    document: watch::Sender<Arc<KeyDocument>>,
    /// Held while going online or offline, so that only one of the two is under way.
    pub(crate) changing: AsyncMutex<()>,
    pub(crate) rest: Rest,
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    /// Given up only after everything is closed.
    folder: Mutex<Option<DataFolder>>,
}

impl Node {
    /// Opens the data folder, making what is missing: keys, database, services. The node is not on the network and
    /// serves nobody yet; commands that need neither work on it.
    pub async fn open(config: Config, world: World) -> Result<Self, StartError> {
        let folder = DataFolder::hold(&config.data)?;
        let keystore = Keystore::new(folder.path());
        let keys = keystore.open(&world)?;
        let server_name = keys.document.server_name();
        let store = Store::open(&StoreConfig::new(DataFolder::database(folder.path())))?;
        take_ownership(&store, keys.document.clone()).await?;

        let network = Libp2p::new();
        let (document, key_document) = watch::channel(Arc::new(keys.document));
        let homeserver = Homeserver::new(Context {
            config: Arc::new(config),
            store,
            world,
            network: Arc::new(network.clone()),
            server_name,
            node_key: Arc::new(keys.node),
            key_document,
        });
        let inner = Inner {
            homeserver,
            identity: keys.identity,
            keystore,
            network,
            document,
            changing: AsyncMutex::new(()),
            rest: Rest::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            folder: Mutex::new(Some(folder)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// [`Node::open`] on the machine's clock, and [`Node::go_online`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let node = Self::open(config, World::system()).await?;
        if let Err(error) = node.go_online().await {
            node.shutdown().await;
            return Err(error);
        }
        Ok(node)
    }

    /// Joins the network: listens, dials contacts, delivers what waits. Returns once every address is bound.
    pub async fn go_online(&self) -> Result<(), StartError> {
        let _changing = self.inner.changing.lock().await;
        if self.inner.stop.is_cancelled() {
            return Err(StartError::ShutDown);
        }
        if self.inner.network.net().is_some() {
            return Ok(());
        }
        self.attach(self.start_net().await?);
        let started = self.inner.homeserver.start().await;
        started.map_err(|error| StartError::Homeserver(Box::new(error)))?;
        if let Some(net) = self.inner.network.net() {
            net.await_places().await;
        }
        self.remember_addresses().await?;
        self.inner.tasks.spawn(keep_fresh(self.clone()));
        Ok(())
    }

    /// Serves the client-server API on a TCP address, and beside it the embedder's own `routes`, which get no CORS
    /// headers. Port 0 finds a free port. Returns the address bound.
    pub async fn serve_http(&self, address: SocketAddr, routes: Router) -> Result<SocketAddr, StartError> {
        let clients = client_api::with_cors(client_api::router(self.inner.homeserver.clone()));
        let router = |bound: SocketAddr| {
            let hosts = client_api::Hosts::of(bound.ip());
            client_api::only_hosts(routes.merge(clients), hosts)
        };
        Ok(listener::serve_tcp(address, router, &self.inner.stop, &self.inner.tasks).await?)
    }

    /// Serves the client-server API and the embedder's `routes` on a Unix socket that only this user may use.
    pub async fn serve_socket(&self, path: &Path, routes: Router) -> Result<(), StartError> {
        let router = routes.merge(client_api::router(self.inner.homeserver.clone()));
        Ok(listener::serve_unix(path, router, &self.inner.stop, &self.inner.tasks).await?)
    }

    /// Ends the node: answers what is under way, leaves the network, finishes every commit, closes the database, and
    /// gives up the data folder. Further calls return when the first one has.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        let _changing = inner.changing.lock().await;
        inner.homeserver.shutdown().await;
        inner.network.detach().await;
        inner.rest.wait().await;
        inner.homeserver.context.store.close().await;
        drop(inner.folder.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The services, for what has no method here.
    pub fn homeserver(&self) -> &Homeserver {
        &self.inner.homeserver
    }

    /// Whose node it is.
    pub fn identity(&self) -> IdentityPublicKey {
        self.inner.identity.public()
    }

    /// The words that restore the identity. To be shown on request only.
    pub fn recovery_phrase(&self) -> RecoveryPhrase {
        RecoveryPhrase::of(&self.inner.identity)
    }

    /// Goes online through `net`, and has the DHT know where.
    pub(crate) fn attach(&self, net: Net) {
        let detached = self.inner.network.attach(net.clone());
        let stop = self.inner.stop.clone();
        let publishing = publishing::run(self.clone(), net);
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = detached.cancelled() => {}
                () = publishing => {}
            }
        });
    }

    /// Starts kith-net on the configured addresses, or on the default ones.
    pub(crate) async fn start_net(&self) -> Result<Net, StartError> {
        let config = &self.inner.homeserver.context.config;
        if !config.listen.is_empty() {
            return self.start_net_on(config.listen.clone()).await;
        }
        let store = &self.inner.homeserver.context.store;
        let kept: Option<u16> = store
            .read(|txn| txn.setting(PORT))
            .await?
            .and_then(|port| port.parse().ok());
        let mut port = kept.unwrap_or_else(|| self.random_port());
        let mut with_ipv6 = true;
        let mut tries = 0;
        loop {
            match self.start_net_on(default_addresses(port, with_ipv6)).await {
                Ok(net) => {
                    if kept != Some(port) && port != 0 {
                        store.write(move |txn| txn.set_setting(PORT, &port.to_string())).await?;
                    }
                    return Ok(net);
                }
                // Machines without IPv6 are as good; there is no other way to ask.
                Err(StartError::Network(kith_net::StartError::Listen { address, .. }))
                    if with_ipv6 && address.to_string().starts_with("/ip6/") =>
                {
                    with_ipv6 = false;
                }
                Err(StartError::Network(kith_net::StartError::Listen { .. })) if port != 0 => {
                    tries += 1;
                    port = if tries < PORT_TRIES { self.random_port() } else { 0 };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Above the ports that programs commonly claim, below those that systems hand out to outgoing connections.
    fn random_port(&self) -> u16 {
        self.inner.homeserver.context.world.rng().gen_range(20_000..32_000)
    }

    async fn start_net_on(&self, listen: Vec<Multiaddr>) -> Result<Net, StartError> {
        let context = &self.inner.homeserver.context;
        let directory = StoreDirectory {
            store: context.store.clone(),
            world: context.world.clone(),
            own_document: context.key_document.clone(),
        };
        let config = NetConfig {
            server_name: context.server_name.clone(),
            transport_key: self.inner.keystore.transport_key(&context.world)?,
            node_key: Arc::clone(&context.node_key),
            directory: Arc::new(directory),
            service: inbound(federation::router(self.inner.homeserver.clone())),
            listen,
            relays: self.all_relays().await?,
            external: context.config.external.clone(),
            mdns: context.config.mdns,
            upnp: context.config.upnp,
            dht: context.config.dht.clone(),
            limits: context.config.limits.clone(),
            timing: context.config.timing.clone(),
        };
        Ok(Net::start(config).await?)
    }

    /// Signs the key document anew when it is half over, and takes a new transport key when the old one is a week old.
    /// Returns how long nothing is due.
    async fn renew(&self) -> Result<Duration, StartError> {
        let (inner, context) = (&self.inner, &self.inner.homeserver.context);
        let mut document = context.key_document();
        if Keystore::is_stale(&document, context.world.now()) {
            document = Arc::new(inner.keystore.renew(&inner.identity, &document, context.world.now())?);
            let kept = KeyDocument::clone(&document);
            context.store.write(move |txn| txn.keep_key_document(&kept)).await?;
            inner.document.send_replace(Arc::clone(&document));
            tracing::info!(version = document.version(), "signed the key document anew");
        }
        let mut transport_for = inner.keystore.transport_key_lasts(&context.world)?;
        // A network that did not come back after the last change is missing.
        let _changing = inner.changing.lock().await;
        if !inner.rest.is_on() && (transport_for.is_zero() || inner.network.net().is_none()) {
            inner.network.detach().await;
            self.attach(self.start_net().await?);
            self.remember_addresses().await?;
            transport_for = inner.keystore.transport_key_lasts(&context.world)?;
            tracing::info!("took a new transport key");
        }
        let document_for = Duration::from_millis(Keystore::fresh_for(&document, context.world.now()));
        // While the node rests, the key is renewed by whoever wakes it.
        match inner.rest.is_on() {
            true => Ok(document_for),
            false => Ok(transport_for.min(document_for)),
        }
    }
}

/// Renews what must be renewed, until the node stops. A failure is tried again later: nothing stops working at once.
async fn keep_fresh(node: Node) {
    let mut nap = Duration::ZERO;
    loop {
        tokio::select! {
            () = node.inner.stop.cancelled() => return,
            () = tokio::time::sleep(nap) => {}
        }
        nap = match node.renew().await {
            // A second more, so that what is due is surely due then.
            Ok(due) => due.saturating_add(Duration::from_secs(1)).min(LONGEST_NAP),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "renewing keys failed; trying again in a minute"
                );
                Duration::from_secs(60)
            }
        };
    }
}

/// A database has one owner for ever; and it holds its owner's key documents like everyone's.
async fn take_ownership(store: &Store, document: KeyDocument) -> Result<(), StartError> {
    let owner = store
        .write(move |txn| {
            let name = document.server_name();
            let owner = txn.setting(OWNER)?;
            if owner.is_none() {
                txn.set_setting(OWNER, name.as_str())?;
            }
            if owner.as_ref().is_none_or(|owner| *owner == name.as_str()) {
                txn.keep_key_document(&document)?;
                return Ok(None);
            }
            Ok::<_, StoreError>(owner)
        })
        .await?;
    owner.map_or(Ok(()), |owner| Err(StartError::OtherOwner(owner)))
}

/// Every interface, QUIC before TCP.
fn default_addresses(port: u16, with_ipv6: bool) -> Vec<Multiaddr> {
    let ip4 = [
        format!("/ip4/0.0.0.0/udp/{port}/quic-v1"),
        format!("/ip4/0.0.0.0/tcp/{port}"),
    ];
    let ip6 = [format!("/ip6/::/udp/{port}/quic-v1"), format!("/ip6/::/tcp/{port}")];
    let texts = ip4.into_iter().chain(ip6.into_iter().filter(|_| with_ipv6));
    texts.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "topic_tests.rs"]
mod topic_tests;
