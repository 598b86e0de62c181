//! A circuit relay v2: nodes that nobody can reach keep a place here, and others reach them through it. It also serves the DHT,
//! and tells nodes whether they are reachable without it (AutoNAT v2). It forwards ciphertext between PeerIds, and knows no
//! server name, no hello and no key document.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use futures::StreamExt;
use kith_identity::TransportKey;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    autonat::v2::server as autonat,
    connection_limits,
    core::transport::ListenerId,
    identify,
    identity::Keypair,
    memory_connection_limits, ping, relay,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    DhtServerConfig, DhtStatus, StartError, Timing,
    address::{sort_for_ticket, split_peer_id},
    dht, dial_back, swarm,
};

/// libp2p's AutoNAT gives a dial ten seconds, and takes one that is still under way then for its own fault, so that the node asks
/// again and again. Dials may take two handshakes.
const MAX_HANDSHAKE: Duration = Duration::from_secs(4);

/// Nodes ask for signs of life, and the relay answers: to ask as well would wake phones. libp2p's ping asks once all the same.
const PING_INTERVAL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a relay is started with.
pub struct RelayConfig {
    /// The secret behind its PeerId. A relay's PeerId stands in tickets, so it should stay.
    pub transport_key: TransportKey,
    /// Addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach it. When empty, those that it listens on.
    pub external: Vec<Multiaddr>,
    /// What it gives at the most.
    pub limits: RelayLimits,
    /// How it serves the DHT.
    pub dht: DhtServerConfig,
    /// How long things may take.
    pub timing: Timing,
}

/// What a relay gives at the most.
#[derive(Debug, Clone)]
pub struct RelayLimits {
    /// Connections at once.
    pub connections: u32,
    /// Connections with one PeerId.
    pub connections_per_peer: u32,
    /// Bytes of memory of the process beyond which no connection is taken.
    pub memory: usize,
    /// Nodes that hold a place.
    pub reservations: usize,
    /// How long a place lasts; it is renewed before.
    pub reservation: Duration,
    /// Circuits at once.
    pub circuits: usize,
    /// Circuits at once with one node.
    pub circuits_per_peer: usize,
    /// How long a circuit lasts. Nodes open another when it ends.
    pub circuit: Duration,
    /// Bytes that one circuit carries each way.
    pub circuit_bytes: u64,
    /// Places that one IP address may ask for in a minute; circuits likewise. Many nodes may share an address.
    pub per_ip_minute: NonZeroU32,
    /// Places that one PeerId may ask for in a minute; circuits likewise.
    pub per_peer_minute: NonZeroU32,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_peer: 4,
            memory: 512 << 20,
            reservations: 1024,
            reservation: Duration::from_secs(60 * 60),
            circuits: 512,
            circuits_per_peer: 16,
            circuit: Duration::from_secs(30 * 60),
            circuit_bytes: 64 << 20,
            per_ip_minute: NonZeroU32::MIN.saturating_add(119),
            per_peer_minute: NonZeroU32::MIN.saturating_add(29),
        }
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    dial_back: dial_back::Behaviour,
    relay: relay::Behaviour,
    autonat: autonat::Behaviour,
    identify: identify::Behaviour,
    dht: dht::Server,
    ping: ping::Behaviour,
}

/// A running relay. Dropping it stops it at once; [`Relay::shutdown`] stops it in good order.
pub struct Relay {
    peer_id: PeerId,
    listen: Vec<Multiaddr>,
    external: Vec<Multiaddr>,
    dht: watch::Receiver<DhtStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Relay {
    /// Starts the relay; returns once every address is bound. Needs a tokio runtime.
    pub async fn start(config: RelayConfig) -> Result<Self, StartError> {
        let keypair = Keypair::ed25519_from_bytes(config.transport_key.to_bytes())
            .map_err(|error| StartError::Transport(Box::new(error)))?;
        let peer_id = keypair.public().to_peer_id();
        let timing = Timing {
            handshake: config.timing.handshake.min(MAX_HANDSHAKE),
            ..config.timing
        };
        // Most of those who come give or ask for a record, and go.
        let transport = swarm::brief_transport(&keypair, &timing, false)?;
        let reached_at = if config.external.is_empty() {
            &config.listen
        } else {
            &config.external
        };
        let behaviour = behaviour(&keypair, &config.limits, config.dht, reached_at);
        let mut swarm = swarm::swarm(transport, behaviour, peer_id, &timing);
        let listeners = swarm::listen(&mut swarm, &config.listen, drop).await?;
        let listen: Vec<_> = swarm.listeners().cloned().collect();
        let given = !config.external.is_empty();
        let mut external = if given { config.external } else { listen.clone() };
        for address in &mut external {
            *address = split_peer_id(address.clone()).0;
        }
        sort_for_ticket(&mut external);
        for address in &external {
            swarm.add_external_address(address.clone());
        }
        let dht = swarm.behaviour().dht.status();
        let stop = CancellationToken::new();
        let arrivals = Arrivals::new(timing.handshake * 2);
        let task = tokio::spawn(run(swarm, arrivals, listeners, !given, stop.clone()));
        Ok(Self {
            peer_id,
            listen,
            external,
            dht,
            stop,
            task,
        })
    }

    /// The relay's PeerId.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The addresses that it listened on when it started.
    pub fn listen_addrs(&self) -> &[Multiaddr] {
        &self.listen
    }

    /// The addresses to give to nodes; each ends in `/p2p` and the PeerId.
    pub fn addrs(&self) -> Vec<Multiaddr> {
        let with_peer = |address: &Multiaddr| address.clone().with_p2p(self.peer_id).unwrap_or_else(|address| address);
        self.external.iter().map(with_peer).collect()
    }

    /// What it knows and keeps as a server of the DHT, now and whenever it changes.
    pub fn dht(&self) -> watch::Receiver<DhtStatus> {
        self.dht.clone()
    }

    /// Closes every connection and ends.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the relay's task failed");
        }
    }
}

fn behaviour(keypair: &Keypair, limits: &RelayLimits, dht: DhtServerConfig, reached_at: &[Multiaddr]) -> Behaviour {
    let peer_id = keypair.public().to_peer_id();
    let (per_peer, per_ip) = (limits.per_peer_minute, limits.per_ip_minute);
    let config = relay::Config {
        max_reservations: limits.reservations,
        max_reservations_per_peer: limits.connections_per_peer as usize,
        reservation_duration: limits.reservation,
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.circuits,
        max_circuits_per_peer: limits.circuits_per_peer,
        max_circuit_duration: limits.circuit,
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    }
    .reservation_rate_per_peer(per_peer, refill(per_peer))
    .reservation_rate_per_ip(per_ip, refill(per_ip))
    .circuit_src_per_peer(per_peer, refill(per_peer))
    .circuit_src_per_ip(per_ip, refill(per_ip));
    Behaviour {
        limits: connection_limits::Behaviour::new(
            connection_limits::ConnectionLimits::default()
                .with_max_established(Some(limits.connections))
                .with_max_established_per_peer(Some(limits.connections_per_peer))
                .with_max_pending_incoming(Some(limits.connections / 8 + 1))
                // What strangers have us dial.
                .with_max_pending_outgoing(Some(limits.connections / 32 + 1)),
        ),
        memory: memory_connection_limits::Behaviour::with_max_bytes(limits.memory),
        dial_back: dial_back::Behaviour::new(reached_at),
        relay: relay::Behaviour::new(peer_id, config),
        autonat: autonat::Behaviour::default(),
        identify: swarm::identify_behaviour(keypair),
        dht: dht::Server::started(peer_id, dht),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL)),
    }
}

/// When one more may be asked for, where so many are in a minute. libp2p takes this time, not that in which the whole number comes back.
fn refill(per_minute: NonZeroU32) -> Duration {
    Duration::from_secs(60) / per_minute.get()
}

/// The connections that nodes opened, in the order in which they came.
struct Arrivals {
    connections: HashMap<PeerId, Vec<(ConnectionId, Instant)>>,
    /// Those of a node that come within this belong to one dial, of which the node keeps one.
    one_dial: Duration,
}

impl Arrivals {
    fn new(one_dial: Duration) -> Self {
        Self {
            connections: HashMap::new(),
            one_dial,
        }
    }

    fn note(&mut self, node: PeerId, id: ConnectionId, now: Instant) {
        self.connections.entry(node).or_default().push((id, now));
    }

    fn forget(&mut self, node: PeerId, id: ConnectionId) {
        if let Some(connections) = self.connections.get_mut(&node) {
            connections.retain(|(known, _)| *known != id);
            if connections.is_empty() {
                self.connections.remove(&node);
            }
        }
    }

    /// What a node that has just been given a place has left behind. libp2p's relay takes any connection with a place for a circuit, and one
    /// whose path is lost leads nowhere until it is noticed.
    fn left_behind(&self, node: PeerId) -> Vec<ConnectionId> {
        let connections = self.connections.get(&node).map(Vec::as_slice).unwrap_or_default();
        let Some((_, newest)) = connections.last() else {
            return Vec::new();
        };
        let older = connections.iter().filter(|(_, came)| *newest - *came > self.one_dial);
        older.map(|(id, _)| *id).collect()
    }
}

/// `follow` says whether interfaces that come up later are given to nodes too.
async fn run(
    mut swarm: Swarm<Behaviour>,
    mut arrivals: Arrivals,
    listeners: Vec<ListenerId>,
    follow: bool,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } if endpoint.is_listener() => {
                    arrivals.note(peer_id, connection_id, Instant::now());
                }
                SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => arrivals.forget(peer_id, connection_id),
                SwarmEvent::Behaviour(BehaviourEvent::Relay(relay::Event::ReservationReqAccepted {
                    src_peer_id, renewed: false,
                })) => {
                    tracing::debug!("a place was given");
                    for id in arrivals.left_behind(src_peer_id) {
                        swarm.close_connection(id);
                    }
                }
                SwarmEvent::NewListenAddr { address, .. } if follow => swarm.add_external_address(address),
                SwarmEvent::ExpiredListenAddr { address, .. } if follow => swarm.remove_external_address(&address),
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                    connection_id, peer_id, info, ..
                })) => swarm.behaviour_mut().dht.identified(connection_id, peer_id, &info),
                event => log(&event),
            },
            () = stop.cancelled() => break,
        }
    }
    swarm::release(swarm, listeners).await;
}

/// A volunteer's log names no peer.
fn log(event: &SwarmEvent<BehaviourEvent>) {
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => match event {
            relay::Event::ReservationReqDenied { .. } => tracing::info!("a place was denied"),
            relay::Event::CircuitReqAccepted { .. } => tracing::debug!("a circuit was opened"),
            relay::Event::CircuitReqDenied { .. } => tracing::info!("a circuit was denied"),
            _ => {}
        },
        SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_comes_anew_has_left_its_older_connections() {
        let mut arrivals = Arrivals::new(Duration::from_secs(10));
        let (node, other) = (PeerId::random(), PeerId::random());
        let [stale, quic, tcp, another] = [1, 2, 3, 4].map(ConnectionId::new_unchecked);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        arrivals.note(node, stale, start);
        arrivals.note(other, another, after(1));
        assert!(arrivals.left_behind(node).is_empty());
        arrivals.note(node, quic, after(60));
        arrivals.note(node, tcp, after(61));
        assert_eq!(arrivals.left_behind(node), [stale]);
        assert!(arrivals.left_behind(other).is_empty());
        for id in [stale, quic, tcp] {
            arrivals.forget(node, id);
        }
        assert_eq!(arrivals.connections.len(), 1);
    }

    #[test]
    fn what_may_be_asked_for_in_a_minute_comes_back_in_a_minute() {
        for (per_minute, millis) in [(1, 60_000), (30, 2_000), (120, 500)] {
            let per_minute = NonZeroU32::new(per_minute).unwrap();
            assert_eq!(refill(per_minute), Duration::from_millis(millis));
        }
    }
}
