//! The task that owns the swarm: connections, who is behind them, and which of them stay. Never awaits the directory, a
//! peer or a request; whatever takes time runs beside it and reports back.

mod circuits;
mod dialling;
mod reservations;
mod sleep;
mod surroundings;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::{ConnectedPoint, transport::ListenerId},
    identify, mdns,
    swarm::{ConnectionId, SwarmEvent},
};
use ruma::OwnedServerName;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    circuits::Circuits, dialling::Dialling, reservations::Reservations, sleep::Rest, surroundings::Surroundings,
};
use crate::{
    PeerAddresses, StartError,
    address::{self, Path},
    dht::{Dht, Found},
    hello::{Turn, Verified},
    peers::{NotConnected, Peer, Peers},
    session::{Greeting, News, Report, Session, SessionFault, Shared},
    streams,
    swarm::{self, Behaviour, BehaviourEvent},
};

/// For answers under way when the node stops, and then for tasks to end.
const GRACE: Duration = Duration::from_secs(2);

/// How often one connection's addresses are kept: when it comes up, and when they change a few times after.
const MAX_KEPT: u8 = 8;

/// Addresses that a peer may name as its own.
const MAX_NAMED_ADDRESSES: usize = 8;

/// Addresses from the DHT that the owner has not read yet.
const FOUND_QUEUE: usize = 64;

/// What comes of connecting to a server.
pub(crate) type Connected = Result<Arc<Peer>, NotConnected>;

/// What handles ask of the owner.
pub(crate) enum Command {
    /// Connect to a server; the reply comes when a connection to it takes requests, or no attempt is left.
    Connect(OwnedServerName, oneshot::Sender<Connected>),
    /// Remember where a server may be found.
    AddAddresses(OwnedServerName, PeerId, Vec<Multiaddr>),
    /// Check every connection, and dial lost contacts again.
    NetworkChanged,
    /// Dial the contacts that are not connected.
    DialContacts,
    /// Hold places at these relays, and at no others.
    SetRelays(Vec<Multiaddr>),
    /// Give up every connection but one to a relay, and say when that is done.
    Doze(oneshot::Sender<()>),
    /// Hold connections again.
    Wake,
}

/// What the owner started beside itself and is told of when done.
enum Later {
    /// What the directory remembers about a server.
    Found(OwnedServerName, Vec<PeerAddresses>),
    /// There is no more to find in the DHT about a server; the number is the attempt's.
    Searched(OwnedServerName, u64),
    /// The DHT is to be joined through these.
    DhtServers(Vec<PeerAddresses>),
    /// The servers to connect to.
    Contacts(Vec<OwnedServerName>),
    /// A contact that was lost is to be dialled again.
    Redial(OwnedServerName),
    /// A server that was lost, if it is a contact.
    Lost(Option<OwnedServerName>),
    /// A peer on the local network has had time to dial us.
    DialLan(PeerId),
    /// This relay may be asked for a place again.
    Rested(PeerId),
    /// This dial through a relay is to be started.
    Circuit(ConnectionId),
    /// This relay was not reached over QUIC yet.
    RelayOverTcp(PeerId),
    /// The other end of this connection has had time to identify itself.
    Identified(ConnectionId),
    /// Interfaces changed, and no further change came with it.
    NetworkChanged,
    /// Enough strangers were asked whether they reach us.
    LookedAround(u64),
    /// Peers had time to take leave before this node rests.
    Dozed,
    /// A peer that came while this node rests had time to speak.
    Visited(ConnectionId),
    /// Connections to this server were checked; the best one can be told now.
    Settle(OwnedServerName),
    /// Nothing follows from it.
    Done,
}

/// Where we listen and how others reach us.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listening {
    pub(crate) listen: Vec<Multiaddr>,
    pub(crate) external: Vec<Multiaddr>,
    /// No relay is being asked for a place.
    pub(crate) settled: bool,
}

struct Entry {
    session: Arc<Session>,
    peer: Option<Arc<Peer>>,
    /// Where the peer says that it listens.
    named: Vec<Multiaddr>,
    /// How often its addresses were kept.
    kept: u8,
}

pub(crate) struct Owner {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Receiver<Report>,
    listening: watch::Sender<Listening>,
    stop: CancellationToken,
    /// Those that are no places at relays.
    listeners: Vec<ListenerId>,
    sessions: HashMap<ConnectionId, Entry>,
    /// Connections so far: numbers them by age.
    connections: u64,
    /// As the directory last gave them.
    contacts: HashSet<OwnedServerName>,
    dialling: Dialling,
    circuits: Circuits,
    reservations: Reservations,
    dht: Dht,
    /// Where searches in the DHT put what they find.
    found: (mpsc::Sender<Found>, mpsc::Receiver<Found>),
    surroundings: Surroundings,
    rest: Rest,
    later: JoinSet<Later>,
}

/// The queues between the owner and everyone else.
pub(crate) struct Channels {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) listening: watch::Sender<Listening>,
    pub(crate) stop: CancellationToken,
}

impl Owner {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        shared: Arc<Shared>,
        peers: Arc<Peers>,
        dht: Dht,
        channels: Channels,
    ) -> Self {
        Self {
            swarm,
            shared,
            peers,
            commands: channels.commands,
            reports: channels.reports,
            listening: channels.listening,
            stop: channels.stop,
            listeners: Vec::new(),
            sessions: HashMap::new(),
            connections: 0,
            contacts: HashSet::new(),
            dialling: Dialling::default(),
            circuits: Circuits::default(),
            reservations: Reservations::default(),
            dht,
            found: mpsc::channel(FOUND_QUEUE),
            surroundings: Surroundings::default(),
            rest: Rest::default(),
            later: JoinSet::new(),
        }
    }

    /// Starts to listen, and returns once every listener has said where. Relays are asked for a place without waiting.
    pub(crate) async fn listen(
        &mut self,
        addresses: &[Multiaddr],
        external: &[Multiaddr],
        relays: &[Multiaddr],
    ) -> Result<(), StartError> {
        // A peer may connect to the first address before the last is bound.
        let mut early = Vec::new();
        self.listeners = swarm::listen(&mut self.swarm, addresses, |event| early.push(event)).await?;
        for event in early {
            if !matches!(event, SwarmEvent::NewListenAddr { .. }) {
                self.handle_swarm_event(event);
            }
        }
        self.set_external(external);
        self.serve_dht_if_reachable();
        self.set_relays(relays);
        self.publish_listening();
        Ok(())
    }

    /// Runs until told to stop, then says farewell to every peer.
    pub(crate) async fn run(mut self) {
        self.look_up_contacts();
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_swarm_event(event),
                Some(command) = self.commands.recv() => self.handle_command(command),
                Some(report) = self.reports.recv() => self.handle_report(report),
                Some((server, found)) = self.found.1.recv() => self.handle_found_in_dht(&server, &found),
                Some(later) = self.later.join_next(), if !self.later.is_empty() => match later {
                    Ok(later) => self.handle_later(later),
                    Err(error) => tracing::error!(%error, "a task of the network failed"),
                },
                () = self.stop.cancelled() => break,
            }
        }
        self.finish().await;
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Connect(server, reply) => self.connect(server, Some(reply)),
            Command::AddAddresses(server, peer_id, addresses) => {
                self.dialling.book.add(&server, peer_id, &addresses);
            }
            Command::NetworkChanged => self.handle_network_changed(),
            Command::SetRelays(relays) => {
                self.set_relays(&relays);
                self.publish_listening();
            }
            Command::DialContacts => self.look_up_contacts(),
            Command::Doze(reply) => self.doze(reply),
            Command::Wake => self.wake(),
        }
    }

    fn handle_later(&mut self, later: Later) {
        match later {
            Later::Found(server, found) => self.handle_found(&server, &found),
            Later::Searched(server, number) => self.handle_searched(&server, number),
            Later::DhtServers(servers) => {
                if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
                    dht.join(&servers);
                }
            }
            Later::Contacts(contacts) => self.connect_to_contacts(contacts),
            Later::Redial(server) => self.connect(server, None),
            Later::Lost(Some(server)) => self.redial_later(server),
            Later::DialLan(peer_id) => self.dial_lan_peer(peer_id),
            Later::Rested(relay) => self.handle_rested(relay),
            Later::Circuit(id) => self.start_circuit(id),
            Later::RelayOverTcp(relay) => self.dial_relay_over_tcp(relay),
            Later::Identified(id) => self.handle_identified(id),
            Later::NetworkChanged => self.handle_network_changed(),
            Later::LookedAround(look) => self.handle_looked_around(look),
            Later::Dozed => self.handle_dozed(),
            Later::Visited(id) => self.handle_visited(id),
            Later::Settle(server) => self.settle(&server),
            Later::Lost(None) | Later::Done => {}
        }
    }

    fn handle_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Streams(connection)) => self.handle_connection(connection),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.handle_identify(event),
            SwarmEvent::Behaviour(BehaviourEvent::Upnp(event)) => self.handle_upnp(&event),
            SwarmEvent::Behaviour(BehaviourEvent::Punching(event)) => {
                tracing::debug!(peer_id = %event.remote_peer_id, punched = event.result.is_ok(), "a hole was tried");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => self.handle_lan(found),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Expired(gone))) => self.dialling.forget_lan(&gone),
            SwarmEvent::ConnectionClosed { connection_id, .. } => self.handle_closed(connection_id),
            SwarmEvent::OutgoingConnectionError {
                connection_id, error, ..
            } => {
                self.handle_dial_error(connection_id, error);
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.reservations.granted(listener_id);
                self.handle_interface(&address);
                self.publish_listening();
            }
            SwarmEvent::ListenerClosed {
                listener_id, reason, ..
            } => {
                tracing::debug!(?reason, "a listener closed");
                self.handle_listener_closed(listener_id);
                self.publish_listening();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.handle_interface(&address);
                self.publish_listening();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.serve_dht_if_reachable();
                self.publish_listening();
            }
            _ => {}
        }
    }

    /// Serves the DHT while there is an address at which anyone reaches this node itself.
    fn serve_dht_if_reachable(&mut self) {
        let reachable = self
            .swarm
            .external_addresses()
            .any(|address| !address::is_relayed(address));
        let Some(server) = self.swarm.behaviour_mut().dht.as_mut() else {
            return;
        };
        if server.serve(reachable) && reachable {
            let dht = self.dht.clone();
            self.later.spawn(async move { Later::DhtServers(dht.servers().await) });
        }
    }

    fn publish_listening(&self) {
        self.listening.send_replace(Listening {
            listen: self.swarm.listeners().cloned().collect(),
            external: self.swarm.external_addresses().cloned().collect(),
            settled: !self.reservations.is_unsettled(),
        });
    }

    fn handle_connection(&mut self, connection: streams::Connection) {
        if self.stop.is_cancelled() {
            self.swarm.close_connection(connection.id);
            return;
        }
        self.connections += 1;
        let greeting = match self.dialling.established(connection.id) {
            Some(turn) => Greeting::Dialler(turn),
            None => self.greeting_unasked(&connection),
        };
        let id = connection.id;
        let session = Session::new(&connection, greeting, self.connections, self.shared.clone());
        self.shared.tasks.spawn(session.clone().run(connection.accepted));
        let entry = Entry {
            session,
            peer: None,
            named: Vec::new(),
            kept: 0,
        };
        self.sessions.insert(id, entry);
        self.note_relay_connected(id);
        self.make_room();
    }

    /// Who speaks first on a connection that we did not dial for a server: to a relay nobody does; through a hole that was
    /// punched from both sides the two ends have agreed on it.
    fn greeting_unasked(&self, connection: &streams::Connection) -> Greeting {
        let relayed =
            |entry: &Entry| entry.session.peer_id == connection.peer_id && entry.session.path() == Path::Relayed;
        match connection.endpoint {
            ConnectedPoint::Listener { .. } => Greeting::Listener,
            ConnectedPoint::Dialer { .. } if !self.sessions.values().any(relayed) => Greeting::None,
            // Over QUIC, each end's dial is a connection of its own, whatever role libp2p gave it.
            ConnectedPoint::Dialer { role_override, .. } if role_override.is_dialer() => Greeting::Dialler(Turn::First),
            ConnectedPoint::Dialer { ref address, .. } => match Path::of(address) {
                Path::Quic => Greeting::Dialler(Turn::First),
                Path::Tcp | Path::Relayed => Greeting::Listener,
            },
        }
    }

    /// Retires the connection that was silent for longest when few places are left, so that new ones can come: those of
    /// contacts last.
    fn make_room(&self) {
        let places = self.shared.limits.connections as usize;
        if self.sessions.len() <= places - places / 8 {
            return;
        }
        let known = self
            .sessions
            .values()
            .filter_map(|entry| Some((&entry.session, entry.peer.as_ref()?)));
        let spare = known.filter(|(session, _)| session.is_usable());
        let silent = spare.min_by_key(|(session, peer)| (self.contacts.contains(&peer.server_name), session.heard()));
        if let Some((session, _)) = silent {
            tracing::debug!("many connections: the one that was silent for longest goes");
            session.retire();
        }
    }

    fn handle_report(&mut self, report: Report) {
        match report.news {
            News::Known(verified) => self.handle_known(report.id, verified),
            News::Nameless => self.dial_ended(report.id),
            News::Over(fault) => {
                if let SessionFault::Dead = fault {
                    self.doubt_relays(report.id);
                }
                match &fault {
                    SessionFault::Drained => tracing::debug!("a spare connection is done"),
                    fault => tracing::info!(error = fault as &dyn std::error::Error, "a connection is given up"),
                }
                self.swarm.close_connection(report.id);
            }
        }
    }

    fn handle_known(&mut self, id: ConnectionId, verified: Verified) {
        // The connection may have ended while the report was under way.
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        self.swarm.behaviour_mut().gate.forget(id);
        let server = verified.server_name.clone();
        let session = entry.session.clone();
        let peer = self.peers.add(verified, session.clone());
        entry.peer = Some(peer.clone());
        if session.dialled {
            entry.named.insert(0, session.address.clone());
        }
        self.keep_addresses(id);
        self.connected(&server, id, &peer);
        self.watch_visitor(id);
        self.seek_straight_path(&session, &peer);
        self.check_all(&peer);
    }

    /// A connection went dead: that may be because of its relay, or of the network, and then relays are out of reach as well.
    fn doubt_relays(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get(&id) else { return };
        let relay = address::relay_of(&entry.session.address).filter(|_| entry.session.path() == Path::Relayed);
        match relay {
            Some((relay, _)) => self.doubt_relay(relay),
            None => self.doubt_all_relays(),
        }
    }

    fn handle_closed(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.remove(&id) else { return };
        entry.session.closed.cancel();
        self.dial_ended(id);
        self.handle_relay_closed(id, entry.session.peer_id);
        let Some(peer) = entry.peer else { return };
        if self.peers.remove(&peer, id) && !self.stop.is_cancelled() && !self.rest.is_on() {
            self.look_up_lost(peer.server_name.clone());
        }
        self.note_quiet();
    }

    fn handle_identify(&mut self, event: identify::Event) {
        let (connection_id, peer_id, info) = match event {
            identify::Event::Received {
                connection_id,
                peer_id,
                info,
                ..
            } => (connection_id, peer_id, info),
            identify::Event::Error { connection_id, .. } => return self.handle_identified(connection_id),
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => return,
        };
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
            dht.identified(connection_id, peer_id, &info);
        }
        let Some(entry) = self.sessions.get_mut(&connection_id) else {
            return;
        };
        let straight = entry.session.dialled && entry.session.path() != Path::Relayed;
        let (session, peer) = (entry.session.clone(), entry.peer.clone());
        self.note_named(connection_id, info.listen_addrs);
        if straight {
            self.handle_observed(info.observed_addr);
        }
        self.handle_identified(connection_id);
        if let Some(peer) = peer {
            self.keep_addresses(connection_id);
            self.seek_straight_path(&session, &peer);
        }
    }

    /// Where a peer says that it listens.
    fn note_named(&mut self, id: ConnectionId, addresses: Vec<Multiaddr>) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let here = address::is_loopback(&entry.session.address);
        let named = addresses.into_iter().map(|address| address::split_peer_id(address).0);
        let named = named.filter(|address| address::is_dialable(address) && (here || !address::is_loopback(address)));
        entry.named.extend(named.take(MAX_NAMED_ADDRESSES));
    }

    /// Remembers where a known peer was reached or says that it listens.
    fn keep_addresses(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(peer) = &entry.peer else { return };
        let mut addresses = std::mem::take(&mut entry.named);
        addresses.dedup();
        if addresses.is_empty() {
            return;
        }
        let (server, peer_id) = (peer.server_name.clone(), entry.session.peer_id);
        let news = self.dialling.book.add(&server, peer_id, &addresses);
        // A peer could name new addresses all day, each of them a write.
        if (!news && entry.kept > 0) || entry.kept >= MAX_KEPT {
            return;
        }
        entry.kept += 1;
        let known = self
            .dialling
            .book
            .lookup(&server)
            .iter()
            .find(|known| known.peer_id == peer_id);
        let Some(addresses) = known.cloned() else { return };
        let shared = self.shared.clone();
        self.later.spawn(async move {
            if let Err(error) = shared.own.directory.keep_addresses(&server, addresses).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "addresses were not kept");
            }
            Later::Done
        });
    }

    /// Checks a server's connections when it gets another: one may be what is left of a peer that restarted, and the newest
    /// may not be known at the other end yet. What is alive is settled afterwards.
    fn check_all(&mut self, peer: &Arc<Peer>) {
        let sessions = peer.sessions();
        if sessions.len() < 2 {
            return;
        }
        let server = peer.server_name.clone();
        self.later.spawn(async move {
            join_all(sessions.iter().map(|session| session.probe())).await;
            Later::Settle(server)
        });
    }

    /// Leaves one connection between this node and each of the server's. Of the two ends, the one with the lower PeerId
    /// chooses, so that both never close what the other keeps. A node's former PeerId has nobody to choose for it.
    fn settle(&mut self, server: &ruma::ServerName) {
        let Some(peer) = self.peers.get(server) else { return };
        let local = *self.swarm.local_peer_id();
        let mut kept: HashMap<[u8; 32], PeerId> = HashMap::new();
        let usable = peer.sessions().into_iter().filter(|session| session.is_usable());
        for session in usable {
            let Some(verified) = session.verified() else { continue };
            let node = *verified.node_key.as_bytes();
            match kept.get(&node) {
                None => drop(kept.insert(node, session.peer_id)),
                Some(best) if *best != session.peer_id || local < session.peer_id => session.retire(),
                Some(_) => {}
            }
        }
    }

    /// Ends every connection so that peers notice at once, then every task; then nothing of ours is bound any more.
    async fn finish(mut self) {
        for entry in self.sessions.values().filter(|entry| entry.peer.is_some()) {
            entry.session.retire();
        }
        // Strangers and relays have nothing under way that could be lost, but what goes through relays has.
        let _ = timeout(GRACE, self.drain(|entry| entry.peer.is_some())).await;
        for id in self.sessions.keys() {
            self.swarm.close_connection(*id);
        }
        let _ = timeout(GRACE, self.drain(|_| true)).await;
        let left: Vec<_> = self.sessions.keys().copied().collect();
        for id in left {
            self.handle_closed(id);
        }
        self.later.shutdown().await;
        swarm::release(self.swarm, self.listeners).await;
        self.shared.tasks.close();
        let _ = timeout(GRACE, self.shared.tasks.wait()).await;
    }

    /// Waits until no such connection is left.
    async fn drain(&mut self, such: fn(&Entry) -> bool) {
        while self.sessions.values().any(such) {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_swarm_event(event),
                Some(report) = self.reports.recv() => self.handle_report(report),
            }
        }
    }

    /// A relayed connection is a makeshift: whoever dialled it dials the straight addresses of the same node, once it
    /// knows some.
    fn seek_straight_path(&mut self, session: &Session, peer: &Peer) {
        let same_node = |other: &Arc<Session>| other.peer_id == session.peer_id && other.path() != Path::Relayed;
        if session.path() != Path::Relayed || !session.dialled || peer.sessions().iter().any(same_node) {
            return;
        }
        let known = self.dialling.book.lookup(&peer.server_name);
        let known = known.iter().filter(|known| known.peer_id == session.peer_id);
        let addresses = known.flat_map(|known| &known.addresses);
        let straight: Vec<_> = addresses
            .filter(|address| !address::is_relayed(address))
            .cloned()
            .collect();
        self.dial_beside(session.peer_id, straight);
    }
}
