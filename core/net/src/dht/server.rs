//! The serving side of the DHT: answers lookups, checks what others publish before it is kept, and knows other servers.
//! It publishes nothing of its own and looks nothing up: see [`super::errand`].

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify, kad,
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep},
};

use super::{
    Clock, PROTOCOL, known_servers, settings,
    shelf::{Shelf, ShelfLimits},
};
use crate::{
    PeerAddresses,
    address::{is_dialable, is_lan, is_relayed, split_peer_id},
    gate::host,
};

/// Buckets are refreshed this often. Whoever joins or leaves is noticed in between by those who look something up.
const REFRESH: Duration = Duration::from_secs(15 * 60);

/// As many as a lookup gives. A server that knows fewer joins again, because those it came through may not have been reached: after
/// this at first, then after pauses that double up to [`REFRESH`].
const ENOUGH: usize = 20;
const JOIN_AGAIN: Duration = Duration::from_secs(10);

/// Servers of one host that are known: an attacker with one address gets no more places than this in anyone's table.
/// Addresses of the local network are not counted; an attacker there has all that it wants.
const MAX_PER_HOST: usize = 8;

/// Dials that fail, one after another, until a server is taken for gone.
const MAX_FAILURES: u8 = 2;

/// Addresses of one server that are believed.
const MAX_ADDRESSES: usize = 4;

/// How a DHT server is set up.
pub struct ServerConfig {
    /// By which records are judged and kept.
    pub clock: Clock,
    /// How much is kept for others.
    pub limits: ShelfLimits,
    /// Other servers, each ending in `/p2p/SERVER`, through which this one joins the DHT. Others join through this one.
    pub servers: Vec<Multiaddr>,
}

/// What a server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DhtStatus {
    /// Other servers that are known.
    pub servers: usize,
    /// Records kept for others.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Kademlia as kith's servers speak it.
pub(crate) struct Behaviour {
    kad: kad::Behaviour<Shelf>,
    /// Who is at the other end of each connection. Nobody can tell for those through a relay.
    hosts: HashMap<ConnectionId, Option<IpAddr>>,
    failures: HashMap<PeerId, u8>,
    serving: bool,
    status: watch::Sender<DhtStatus>,
    joining: Option<Joining>,
}

/// A server that may have to join once more.
struct Joining {
    through: Vec<PeerAddresses>,
    pause: Duration,
    due: Pin<Box<Sleep>>,
}

impl Behaviour {
    /// Serves nobody yet, and tells nobody that it could.
    pub(crate) fn new(local: PeerId, clock: Clock, limits: ShelfLimits) -> Self {
        let mut settings = settings();
        settings
            .set_record_filtering(kad::StoreInserts::FilterBoth)
            .set_periodic_bootstrap_interval(Some(REFRESH));
        let shelf = Shelf::new(local, limits, clock);
        let mut kad = kad::Behaviour::with_config(local, shelf, settings);
        kad.set_mode(Some(kad::Mode::Client));
        Self {
            kad,
            hosts: HashMap::new(),
            failures: HashMap::new(),
            serving: false,
            status: watch::Sender::default(),
            joining: None,
        }
    }

    /// Serves at once, and joins the other servers.
    pub(crate) fn started(local: PeerId, config: ServerConfig) -> Self {
        let mut server = Self::new(local, config.clock, config.limits);
        server.serve(true);
        server.join(&known_servers(&config.servers));
        server
    }

    /// Serves from now on, or no more. Says whether that is new.
    pub(crate) fn serve(&mut self, serve: bool) -> bool {
        if self.serving == serve {
            return false;
        }
        self.serving = serve;
        let mode = if serve { kad::Mode::Server } else { kad::Mode::Client };
        self.kad.set_mode(Some(mode));
        true
    }

    /// What this server has, now and whenever it changes.
    pub(crate) fn status(&self) -> watch::Receiver<DhtStatus> {
        self.status.subscribe()
    }

    /// Joins the DHT through these servers, and again while hardly any are known.
    pub(crate) fn join(&mut self, servers: &[PeerAddresses]) {
        self.add(servers);
        self.joining = (!servers.is_empty()).then(|| Joining {
            through: servers.to_vec(),
            pause: JOIN_AGAIN,
            due: Box::pin(sleep(JOIN_AGAIN)),
        });
    }

    fn add(&mut self, servers: &[PeerAddresses]) {
        for PeerAddresses { peer_id, addresses } in servers {
            for address in addresses {
                self.kad.add_address(peer_id, address.clone());
            }
        }
    }

    /// Joins once more when it is time for that.
    fn join_again(&mut self, cx: &mut Context<'_>) {
        while let Some(mut joining) = self.joining.take() {
            if joining.due.as_mut().poll(cx).is_pending() {
                self.joining = Some(joining);
                return;
            }
            if self.status.borrow().servers >= ENOUGH {
                return;
            }
            self.add(&joining.through);
            // There is nobody to ask when all addresses are our own.
            let _ = self.kad.bootstrap();
            joining.pause = REFRESH.min(joining.pause * 2);
            joining.due.as_mut().reset(Instant::now() + joining.pause);
            self.joining = Some(joining);
        }
    }

    /// What a peer says of itself. If it serves, it is made known to others under those of its addresses that are where
    /// it connected from: nobody can name somebody else's.
    pub(crate) fn identified(&mut self, connection: ConnectionId, peer: PeerId, info: &identify::Info) {
        if !self.serving || !info.protocols.contains(&PROTOCOL) {
            return;
        }
        let Some(Some(from)) = self.hosts.get(&connection).copied() else {
            return;
        };
        let addresses = info
            .listen_addrs
            .iter()
            .cloned()
            .map(|address| split_peer_id(address).0);
        let own = addresses.filter(|address| host(address) == Some(from) && is_server_address(address));
        for address in own.take(MAX_ADDRESSES).collect::<Vec<_>>() {
            self.admit(peer, address);
        }
    }

    fn admit(&mut self, peer: PeerId, address: Multiaddr) {
        if !is_lan(&address) && self.known_at(host(&address), peer) >= MAX_PER_HOST {
            return;
        }
        self.kad.add_address(&peer, address);
    }

    /// How many other servers are known at a host.
    fn known_at(&mut self, at: Option<IpAddr>, but: PeerId) -> usize {
        let buckets = self.kad.kbuckets();
        buckets
            .map(|bucket| {
                let others = bucket.iter().filter(|entry| *entry.node.key.preimage() != but);
                others
                    .filter(|entry| entry.node.value.iter().any(|address| host(address) == at))
                    .count()
            })
            .sum()
    }

    /// A server was not reached. When it keeps happening while others are reached, it is not told to anyone any more.
    fn note_failure(&mut self, peer: PeerId) {
        if self.hosts.is_empty() || self.kad.kbucket(peer).is_none_or(|bucket| !holds(&bucket, peer)) {
            return;
        }
        let failures = self.failures.entry(peer).or_default();
        *failures += 1;
        if *failures >= MAX_FAILURES {
            self.failures.remove(&peer);
            self.kad.remove_peer(&peer);
            self.tell_status();
        }
    }

    fn tell_status(&mut self) {
        let servers = self.kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let (records, bytes) = self.kad.store_mut().size();
        let now = DhtStatus {
            servers,
            records,
            bytes,
        };
        self.status
            .send_if_modified(|status| std::mem::replace(status, now) != now);
    }

    fn handle(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request:
                    kad::InboundRequest::PutRecord {
                        connection,
                        record: Some(record),
                        ..
                    },
            } => {
                let host = self.hosts.get(&connection).copied().flatten();
                // A refusal is not told to who asked: libp2p has answered already.
                if let Err(refusal) = self.kad.store_mut().take(record.key.as_ref(), &record.value, host) {
                    tracing::debug!(%refusal, "a record was not taken");
                }
                self.tell_status();
            }
            kad::Event::RoutingUpdated { .. } => self.tell_status(),
            kad::Event::RoutablePeer { peer, address } | kad::Event::PendingRoutablePeer { peer, address } => {
                let address = split_peer_id(address).0;
                if self.serving && is_server_address(&address) {
                    self.admit(peer, address);
                }
            }
            _ => {}
        }
    }
}

fn is_server_address(address: &Multiaddr) -> bool {
    is_dialable(address) && !is_relayed(address)
}

fn holds(bucket: &kad::KBucketRef<'_, kad::KBucketKey<PeerId>, kad::Addresses>, peer: PeerId) -> bool {
    bucket.iter().any(|entry| *entry.node.key.preimage() == peer)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <kad::Behaviour<Shelf> as NetworkBehaviour>::ConnectionHandler;
    /// Something was handled; nobody need do more.
    type ToSwarm = ();

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.hosts.insert(id, host(remote));
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let at = if is_relayed(address) { None } else { host(address) };
        self.hosts.insert(id, at);
        self.failures.remove(&peer);
        self.kad
            .handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionClosed(closed) => drop(self.hosts.remove(&closed.connection_id)),
            FromSwarm::ListenFailure(failure) => drop(self.hosts.remove(&failure.connection_id)),
            FromSwarm::DialFailure(failure) => {
                self.hosts.remove(&failure.connection_id);
                if let (Some(peer), DialError::Transport(_) | DialError::WrongPeerId { .. }) =
                    (failure.peer_id, failure.error)
                {
                    self.note_failure(peer);
                }
            }
            _ => {}
        }
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.join_again(cx);
        let polled = self.kad.poll(cx);
        polled.map(|event| event.map_out(|event| self.handle(event)))
    }
}
