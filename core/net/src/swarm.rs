//! Puts libp2p together: transports, limits and the protocols that every node speaks. Decides nothing afterwards.

use std::{collections::HashMap, io, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, ListenerId, OrTransport, global_only, timeout::TransportTimeout},
        upgrade::Version,
    },
    dcutr, dns, identify,
    identity::Keypair,
    mdns, memory_connection_limits, noise, quic, relay,
    swarm::{self, NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
    tcp, upnp, yamux,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout_at},
};

use crate::{BoxError, NetConfig, StartError, Timing, address, dht, gate, reachability, streams, topics};

/// What identify tells everyone we connect to, the same for every node.
pub(crate) const PROTOCOL_VERSION: &str = "/kith/1";
pub(crate) const AGENT_VERSION: &str = concat!("kith/", env!("CARGO_PKG_VERSION"));

/// Streams that the peer may have open on one connection.
const MAX_STREAMS: u32 = 64;

/// What may arrive unread, on one stream and on all of one connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Streams of one connection whose protocol is not agreed yet.
const MAX_NEGOTIATING: usize = 32;

/// Identify repeats itself this often; a change of address is pushed at once.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Connections that one PeerId may have: what is left of a lost one, a relayed one, and two that crossed.
const MAX_PER_PEER: u32 = 4;

/// Until every listener must have said where it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);

/// For farewells to go out.
const FAREWELL: Duration = Duration::from_millis(500);

/// For a dropped swarm's ports to be free again (a connection still in its handshake holds one for three seconds), and
/// between two looks.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// The protocols of a node. Limits come first: what they refuse, the others never see.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) gate: gate::Behaviour,
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    relay: relay::client::Behaviour,
    /// Turns relayed connections into straight ones.
    punching: dcutr::Behaviour,
    pub(crate) reachability: reachability::Behaviour,
    upnp: Toggle<upnp::tokio::Behaviour>,
    identify: identify::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    /// Serving others; this node's own errands have swarms of their own.
    pub(crate) dht: Toggle<dht::Server>,
    pub(crate) topics: topics::Behaviour,
    streams: streams::Behaviour,
}

/// A node's swarm. It listens on nothing yet.
pub(crate) fn build(config: &NetConfig, keypair: &Keypair) -> Result<Swarm<Behaviour>, StartError> {
    let peer_id = keypair.public().to_peer_id();
    let (relay_transport, relay) = relay::client::new(peer_id);
    let relayed = relay_transport
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).map_err(setup)?)
        .multiplex(muxer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // The relay is dialled first, and then the peer answers.
    let relayed = TransportTimeout::new(relayed, config.timing.handshake * 2);
    let transport = OrTransport::new(relayed, direct_transport(keypair, &config.timing)?)
        .map(|either, _| either.into_inner())
        .boxed();
    let mdns = config
        .mdns
        .then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), peer_id))
        .transpose()
        .map_err(setup)?;
    let behaviour = Behaviour {
        gate: gate::Behaviour::new(config.limits.strangers_per_host),
        limits: limits(&config.limits),
        memory: memory_connection_limits::Behaviour::with_max_bytes(config.limits.memory),
        relay,
        punching: dcutr::Behaviour::new(peer_id),
        reachability: reachability::Behaviour::default(),
        upnp: config.upnp.then(upnp::tokio::Behaviour::default).into(),
        identify: identify_behaviour(keypair),
        mdns: mdns.into(),
        dht: dht_server(config, peer_id).into(),
        topics: topics::Behaviour::new().map_err(setup)?,
        streams: streams::Behaviour::default(),
    };
    Ok(swarm(transport, behaviour, peer_id, &config.timing))
}

fn dht_server(config: &NetConfig, peer_id: PeerId) -> Option<dht::Server> {
    let directory = config.directory.clone();
    let limits = config.dht.serve.clone()?;
    Some(dht::Server::new(peer_id, Arc::new(move || directory.now()), limits))
}

/// QUIC, and TCP beside it, both by name or number.
pub(crate) fn direct_transport(keypair: &Keypair, timing: &Timing) -> Result<BoxedTransport, StartError> {
    with_names(|| numbered_transport(keypair, timing, PacketSizes::Sought))
}

/// The same where most connections are over after a few packets; it may dial only what the whole world can reach.
pub(crate) fn brief_transport(keypair: &Keypair, timing: &Timing, global: bool) -> Result<BoxedTransport, StartError> {
    with_names(|| {
        let numbered = numbered_transport(keypair, timing, PacketSizes::Least)?;
        Ok(match global {
            true => global_only::Transport::new(numbered).boxed(),
            false => numbered,
        })
    })
}

/// Whether QUIC looks for the largest packets that a path carries: some packets of 1,300 to 1,450 bytes each way, which come to
/// more than all else that a brief connection carries.
#[derive(Clone, Copy, PartialEq)]
enum PacketSizes {
    Sought,
    Least,
}

fn with_names(numbered: impl Fn() -> Result<BoxedTransport, StartError>) -> Result<BoxedTransport, StartError> {
    match dns::tokio::Transport::system(numbered()?) {
        Ok(named) => Ok(named.boxed()),
        // Without a resolver (a bare container, some phones), addresses in numbers still work.
        Err(error) => {
            tracing::warn!(%error, "no resolver: host names in addresses will not be found");
            numbered()
        }
    }
}

fn numbered_transport(keypair: &Keypair, timing: &Timing, sizes: PacketSizes) -> Result<BoxedTransport, StartError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).map_err(setup)?)
        .multiplex(muxer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = timing.handshake;
    config.keep_alive_interval = timing.keep_alive;
    config.max_idle_timeout = u32::try_from(timing.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    config.max_concurrent_stream_limit = MAX_STREAMS;
    config.max_stream_data = STREAM_WINDOW;
    config.max_connection_data = CONNECTION_WINDOW;
    if sizes == PacketSizes::Least {
        config = config.disable_path_mtu_discovery();
    }
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let either = OrTransport::new(quic, tcp).map(|either, _| either.into_inner());
    // A relayed dial takes two handshakes.
    Ok(TransportTimeout::new(either, timing.handshake * 2).boxed())
}

fn muxer() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS as usize);
    config
}

/// A swarm over any behaviour, tuned as every node's and relay's is.
pub(crate) fn swarm<B: NetworkBehaviour>(
    transport: BoxedTransport,
    behaviour: B,
    peer_id: PeerId,
    timing: &Timing,
) -> Swarm<B> {
    let config = swarm::Config::with_tokio_executor()
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
        .with_notify_handler_buffer_size(NonZeroUsize::MIN.saturating_add(15))
        .with_idle_connection_timeout(timing.unused)
        .with_smart_dial();
    Swarm::new(transport, behaviour, peer_id, config)
}

/// Listens on addresses, and returns once every listener has said where. Events that come meanwhile go to `handle`.
pub(crate) async fn listen<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    addresses: &[Multiaddr],
    mut handle: impl FnMut(SwarmEvent<B::ToSwarm>),
) -> Result<Vec<ListenerId>, StartError> {
    let mut starting = HashMap::new();
    for address in addresses {
        let listener = swarm
            .listen_on(address.clone())
            .map_err(|error| StartError::listen(address, &error))?;
        starting.insert(listener, address);
    }
    let listeners = starting.keys().copied().collect();
    let deadline = Instant::now() + LISTEN_DEADLINE;
    while let Some(address) = starting.values().next() {
        let Ok(event) = timeout_at(deadline, swarm.select_next_some()).await else {
            let none = io::Error::new(io::ErrorKind::AddrNotAvailable, "no interface came up");
            return Err(StartError::listen(address, &none));
        };
        match &event {
            SwarmEvent::NewListenAddr { listener_id, .. } => drop(starting.remove(listener_id)),
            SwarmEvent::ListenerClosed {
                listener_id, reason, ..
            } => {
                if let Some(address) = starting.remove(listener_id) {
                    let unknown = io::Error::other("the listener closed");
                    return Err(StartError::listen(address, reason.as_ref().err().unwrap_or(&unknown)));
                }
            }
            _ => {}
        }
        handle(event);
    }
    // A listener on every interface names them one by one; those that are known already belong to the start.
    while let Some(Some(event)) = swarm.next().now_or_never() {
        handle(event);
    }
    Ok(listeners)
}

/// Closes every connection and listener, drops the swarm, and returns once its UDP ports can be listened on again: a node
/// that is stopped and started in one process keeps its port. QUIC's sockets outlive their connections by a few round
/// trips (RFC 9000, section 10.2), and nothing tells when they are gone but trying.
pub(crate) async fn release<B: NetworkBehaviour>(mut swarm: Swarm<B>, listeners: Vec<ListenerId>) {
    let sockets: Vec<_> = swarm.listeners().filter_map(address::udp_socket).collect();
    for peer in swarm.connected_peers().copied().collect::<Vec<_>>() {
        // Gone meanwhile is fine.
        let _ = swarm.disconnect_peer_id(peer);
    }
    for listener in listeners {
        swarm.remove_listener(listener);
    }
    let farewell = Instant::now() + FAREWELL;
    while swarm.network_info().num_peers() > 0 {
        if timeout_at(farewell, swarm.select_next_some()).await.is_err() {
            break;
        }
    }
    drop(swarm);
    let deadline = Instant::now() + RELEASE_DEADLINE;
    for socket in sockets {
        while is_taken(socket).await && Instant::now() < deadline {
            sleep(RELEASE_PAUSE).await;
        }
    }
}

async fn is_taken(socket: SocketAddr) -> bool {
    let bound = UdpSocket::bind(socket).await;
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Identify, saying nothing that differs from node to node but PeerId and addresses.
pub(crate) fn identify_behaviour(keypair: &Keypair) -> identify::Behaviour {
    let config = identify::Config::new(PROTOCOL_VERSION.to_owned(), keypair.public())
        .with_agent_version(AGENT_VERSION.to_owned())
        .with_interval(IDENTIFY_INTERVAL)
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    identify::Behaviour::new(config)
}

/// A quarter of the connections is out of reach for those who dial us, so that we can always dial.
fn limits(limits: &crate::ConnectionLimits) -> connection_limits::Behaviour {
    let incoming = limits.connections - limits.connections / 4;
    connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_established(Some(limits.connections))
            .with_max_established_incoming(Some(incoming))
            .with_max_established_per_peer(Some(MAX_PER_PEER))
            .with_max_pending_incoming(Some(limits.pending))
            .with_max_pending_outgoing(Some(limits.pending)),
    )
}

fn setup<E: Into<BoxError>>(error: E) -> StartError {
    StartError::Transport(error.into())
}
