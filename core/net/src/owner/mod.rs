//! The task that owns the swarm: connections, who is behind them, and which of them stay. Never awaits the directory, a
//! peer or a request; whatever takes time runs beside it and reports back.

mod addresses;
mod circuits;
pub(crate) mod company;
mod dialling;
mod keeping;
mod reservations;
mod sleep;
mod surroundings;
mod visits;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use kith_identity::{TopicKey, TopicName};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::{ConnectedPoint, transport::ListenerId},
    mdns,
    swarm::{ConnectionId, SwarmEvent},
};
use ruma::OwnedServerName;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    circuits::Circuits, company::Company, dialling::Dialling, keeping::Keeping, reservations::Reservations,
    sleep::Rest, surroundings::Surroundings, visits::Visits,
};
use crate::{
    PeerAddresses, StartError,
    address::{self, Path},
    dht::{Dht, Found},
    hello::{Turn, Verified},
    peers::{NotConnected, Peer, Peers},
    session::{Farewell, Greeting, News, Report, Session, SessionFault, Shared},
    streams,
    swarm::{self, Behaviour, BehaviourEvent},
    topics::{Followers, Members, TellError, TopicMessage},
};

/// For answers under way when the node stops, and then for tasks to end.
const GRACE: Duration = Duration::from_secs(2);

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
    /// Follow a topic among these servers.
    Follow(TopicKey, Members),
    /// Follow a topic no longer.
    Unfollow(TopicName),
    /// Send a message on a topic; the reply says to how many it went.
    Tell(TopicKey, Bytes, oneshot::Sender<Result<usize, TellError>>),
    /// A message of a topic came in another way, from this server.
    Missed(TopicName, OwnedServerName),
    /// Check every connection, and dial lost contacts again.
    NetworkChanged,
    /// Dial a contact, and again while it is not reached.
    DialContact(OwnedServerName),
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
    /// The servers to meet.
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
    /// This connection through a relay had its time to be replaced by a straight one.
    PunchAgain(ConnectionId),
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
    /// It is time to choose which connections stay.
    Review(Instant),
    /// A member of a topic was dialled, and reached or not.
    Tried(OwnedServerName, bool),
    /// Members of this topic may be dialled again.
    SeekCompany(TopicName),
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
    /// Where the peer was dialled, and where it says that it listens; what was remembered is gone from here.
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
    visits: Visits,
    keeping: Keeping,
    circuits: Circuits,
    reservations: Reservations,
    company: Company,
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
    pub(crate) topic_messages: broadcast::Sender<TopicMessage>,
    pub(crate) followers: watch::Sender<Followers>,
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
            visits: Visits::default(),
            keeping: Keeping::default(),
            circuits: Circuits::default(),
            reservations: Reservations::default(),
            company: Company::new(channels.topic_messages, channels.followers),
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
            Command::Follow(topic, members) => self.follow(topic, members),
            Command::Unfollow(topic) => {
                self.unfollow(&topic);
                self.review_soon();
            }
            Command::Tell(topic, message, reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(self.tell(&topic, message));
            }
            Command::Missed(topic, from) => self.missed(&topic, &from),
            Command::NetworkChanged => self.handle_network_changed(),
            Command::SetRelays(relays) => {
                self.set_relays(&relays);
                self.publish_listening();
            }
            Command::DialContact(server) => self.dial_contact(server),
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
            Later::Contacts(contacts) => self.visit(contacts),
            Later::Redial(server) => self.connect(server, None),
            Later::Lost(Some(server)) => self.redial_later(server),
            Later::DialLan(peer_id) => self.dial_lan_peer(peer_id),
            Later::Rested(relay) => self.handle_rested(relay),
            Later::Circuit(id) => self.start_circuit(id),
            Later::RelayOverTcp(relay) => self.dial_relay_over_tcp(relay),
            Later::PunchAgain(id) => self.punch_again(id),
            Later::Identified(id) => self.handle_identified(id),
            Later::NetworkChanged => self.handle_network_changed(),
            Later::LookedAround(look) => self.handle_looked_around(look),
            Later::Dozed => self.handle_dozed(),
            Later::Visited(id) => self.handle_visited(id),
            Later::Settle(server) => self.settle(&server),
            Later::Review(at) => self.handle_review(at),
            Later::Tried(server, reached) => self.handle_tried(&server, reached),
            Later::SeekCompany(topic) => self.handle_seek_company(&topic),
            Later::Lost(None) | Later::Done => {}
        }
    }

    fn handle_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Streams(connection)) => self.handle_connection(connection),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.handle_identify(event),
            SwarmEvent::Behaviour(BehaviourEvent::Topics(event)) => self.handle_topic_event(event),
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
        let dialled = self.dialling.established(connection.id);
        let greeting = match dialled {
            Some(turn) => Greeting::Dialler(turn),
            None => self.greeting_unasked(&connection),
        };
        let id = connection.id;
        let session = Session::new(&connection, greeting, self.connections, self.shared.clone());
        self.shared.tasks.spawn(session.clone().run(connection.accepted));
        // A hole that was punched leads to the peer while it is open, and nobody else through it.
        let reached = dialled.map(|_| session.address.clone());
        let entry = Entry {
            session,
            peer: None,
            named: reached.into_iter().collect(),
            kept: 0,
        };
        self.sessions.insert(id, entry);
        self.note_relay_connected(id);
        self.circuit_ended(id);
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
        self.swarm.behaviour_mut().topics.known(id, server.clone());
        let session = entry.session.clone();
        let peer = self.peers.add(verified, session.clone());
        entry.peer = Some(peer.clone());
        self.keep_addresses(id);
        self.connected(&server, id, &peer);
        self.company_came(&server);
        self.visits.note_met(&server);
        self.review_soon();
        self.watch_visitor(id);
        self.seek_straight_path(&session, &peer);
        self.punch_again_later(&session);
        self.check_all(&peer);
    }

    fn handle_closed(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.remove(&id) else { return };
        entry.session.closed.cancel();
        self.dial_ended(id);
        self.handle_relay_closed(id, entry.session.peer_id);
        let Some(peer) = entry.peer else { return };
        let let_go = entry.session.is_let_go();
        if self.peers.remove(&peer, id, let_go) {
            self.circuits.punched.remove(&entry.session.peer_id);
            self.handle_parted(&peer.server_name, let_go);
        }
        self.note_quiet();
    }

    /// The last connection to a server is gone. Who was let go is not dialled again for the sake of being connected.
    fn handle_parted(&mut self, server: &OwnedServerName, let_go: bool) {
        self.visits.note_met(server);
        if let_go {
            self.keeping.note_let_go(server);
        }
        if self.stop.is_cancelled() || self.rest.is_on() {
            return;
        }
        if let_go {
            self.company_let_go(server);
        } else {
            self.look_up_lost(server.clone());
            self.company_left(server);
        }
        self.visit_next();
    }

    /// Ends every connection so that peers notice at once, then every task; then nothing of ours is bound any more.
    async fn finish(mut self) {
        for entry in self.sessions.values().filter(|entry| entry.peer.is_some()) {
            entry.session.retire(Farewell::Spare);
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
        self.remember_spoken_at_last().await;
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
}
