//! The handle that the rest of the node holds. Cheap to clone; everything happens in the owner task and the sessions.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use kith_identity::{SealedRecord, TopicKey, TopicName, TransportKey, Whereabouts};
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Break, NetConfig, PeerEvent, PeerInfo, PublishError, RequestError, RequestLimits, StartError, TellError,
    TopicMessage,
    address::{circuit_address, is_relayed, relay_of, sort_for_ticket, split_peer_id},
    client::ExchangeError,
    coding,
    dht::Dht,
    hello::OwnSide,
    owner::{Channels, Command, Listening, Owner, company},
    peers::{NotConnected, Peer, Peers, lock},
    session::{REPORT_QUEUE, Shared},
    swarm,
};

/// Commands that the owner has not read yet.
const COMMAND_QUEUE: usize = 256;

/// For a relay to grant a place at the start.
const PLACE_DEADLINE: Duration = Duration::from_secs(3);

/// Connections that one request tries, one after another, as long as nothing was sent.
const MAX_TRIES: usize = 4;

/// Why our own key document cannot be used.
#[derive(Debug, thiserror::Error)]
enum OwnDocumentError {
    #[error("it belongs to {0}")]
    OtherServer(OwnedServerName),
    #[error("it does not list this node's key")]
    OtherNode,
}

/// The addresses that somebody has seen.
pub struct AddressesSeen(watch::Receiver<Listening>);

/// The network of a running node. Dropping the last handle stops it in the background; [`Net::shutdown`] says when it
/// has stopped.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    server_name: OwnedServerName,
    peer_id: PeerId,
    peers: Arc<Peers>,
    commands: mpsc::Sender<Command>,
    listening: watch::Receiver<Listening>,
    topic_messages: broadcast::Sender<TopicMessage>,
    followers: watch::Receiver<BTreeMap<TopicName, usize>>,
    dht: Dht,
    /// Relays that were named as addresses to listen on.
    places: Vec<Multiaddr>,
    stop: CancellationToken,
    owner: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Net {
    /// Starts listening, begins to meet the directory's contacts, and returns once every address in [`NetConfig::listen`] is bound.
    /// Relays are asked for a place in the background; see [`Net::await_places`]. Needs a tokio runtime.
    pub async fn start(config: NetConfig) -> Result<Self, StartError> {
        check_own_document(&config).await?;
        let keypair = keypair(&config.transport_key)?;
        let (places, listen): (Vec<_>, Vec<_>) = config.listen.iter().cloned().partition(is_relayed);
        let relays = [&places[..], &config.relays].concat();
        check_relays(&relays)?;
        let swarm = swarm::build(&config, &keypair)?;
        let peer_id = *swarm.local_peer_id();

        let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
        let (reports, report_queue) = mpsc::channel(REPORT_QUEUE);
        let (listening, listening_now) = watch::channel(Listening::default());
        let topic_messages = company::messages();
        let (followers, followers_now) = watch::channel(BTreeMap::new());
        let stop = CancellationToken::new();
        let peers = Arc::new(Peers::new(config.limits.clone()));
        let shared = Arc::new(Shared {
            own: OwnSide {
                peer_id,
                node_key: config.node_key,
                directory: config.directory,
            },
            service: config.service,
            limits: config.limits,
            timing: config.timing,
            reports,
            tasks: TaskTracker::new(),
        });
        let channels = Channels {
            commands: command_queue,
            reports: report_queue,
            listening,
            topic_messages: topic_messages.clone(),
            followers,
            stop: stop.clone(),
        };
        let dht = Dht::new(config.dht, &config.relays, shared.own.directory.clone(), &shared.timing);
        let mut owner = Owner::new(swarm, shared, peers.clone(), dht.clone(), channels);
        owner.listen(&listen, &config.external, &relays).await?;
        let net = Self(Arc::new(Inner {
            server_name: config.server_name,
            peer_id,
            peers,
            commands,
            listening: listening_now,
            topic_messages,
            followers: followers_now,
            dht,
            places,
            stop,
            owner: Mutex::new(Some(tokio::spawn(owner.run()))),
        }));
        Ok(net)
    }

    /// Gives relays a moment, three seconds, to grant a place, so that the first ticket names them. A relay that is down does not
    /// keep the node from starting; it is asked again later.
    pub async fn await_places(&self) {
        let mut listening = self.0.listening.clone();
        let settled = listening.wait_for(|now| now.settled);
        if timeout(PLACE_DEADLINE, settled).await.is_err() {
            tracing::warn!("a relay gave no place yet");
        }
    }

    /// Holds places at these relays, each ending in `/p2p/RELAY`, from now on, besides those named in [`NetConfig::listen`];
    /// places at others are given up.
    pub async fn set_relays(&self, relays: &[Multiaddr]) -> Result<(), StartError> {
        check_relays(relays)?;
        self.0.dht.set_relays(relays);
        let command = Command::SetRelays([&self.0.places[..], relays].concat());
        // After a shutdown no place is held anyway.
        let _ = self.0.commands.send(command).await;
        Ok(())
    }

    /// Sends a request to a server, dialling it if need be. The URI holds path and query only. Any complete answer is `Ok`,
    /// whatever its status. JSON bodies are compressed on their way; none is when it gets here. A request that may be repeated (RFC 9110, section 9.2.2) is sent again, once, over another
    /// connection when the first one broke.
    pub async fn request(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: RequestLimits,
    ) -> Result<Response<Bytes>, RequestError> {
        match timeout(limits.deadline, self.try_request(server, request, &limits)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::TimedOut(server.to_owned())),
        }
    }

    async fn try_request(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: &RequestLimits,
    ) -> Result<Response<Bytes>, RequestError> {
        let broken = |reason| RequestError::Broken {
            server: server.to_owned(),
            reason,
        };
        let mut repeatable = is_repeatable(request.method());
        let (mut head, body) = request.into_parts();
        coding::accept(&mut head.headers);
        let body = coding::encode_request(&mut head.headers, body).await;
        let request = Request::from_parts(head, body);
        for _ in 0..MAX_TRIES {
            let peer = self.peer(server).await?;
            let _turn = peer.may_send().await.map_err(|_| broken(Break::Busy))?;
            // While waiting for its turn, the connection may have gone: then it is looked for again.
            let Some(session) = peer.best() else { continue };
            match session.send(request.clone(), limits).await {
                Ok(answer) => return Ok(answer),
                Err(ExchangeError::NotSent) => {}
                Err(ExchangeError::Lost(error)) if repeatable => {
                    tracing::debug!(%server, %error, "the connection broke; trying once more");
                    repeatable = false;
                }
                Err(ExchangeError::Lost(_)) => return Err(broken(Break::Connection)),
                Err(ExchangeError::TooLarge(max)) => return Err(broken(Break::AnswerTooLarge(max))),
                Err(ExchangeError::Coding) => return Err(broken(Break::AnswerCoding)),
                Err(ExchangeError::Request) => return Err(broken(Break::Request)),
            }
        }
        Err(RequestError::Unreachable(server.to_owned()))
    }

    /// The server, connected.
    async fn peer(&self, server: &ServerName) -> Result<Arc<Peer>, RequestError> {
        if let Some(peer) = self.0.peers.get(server) {
            return Ok(peer);
        }
        let (reply, connected) = oneshot::channel();
        let gone = || RequestError::Broken {
            server: server.to_owned(),
            reason: Break::ShuttingDown,
        };
        let command = Command::Connect(server.to_owned(), reply);
        self.0.commands.send(command).await.map_err(|_| gone())?;
        match connected.await {
            Ok(Ok(peer)) => Ok(peer),
            Ok(Err(NotConnected::Unreachable)) => Err(RequestError::Unreachable(server.to_owned())),
            Ok(Err(NotConnected::Busy)) => Err(RequestError::Broken {
                server: server.to_owned(),
                reason: Break::Busy,
            }),
            Err(_) => Err(gone()),
        }
    }

    /// Connects to a server now. Returns once a connection to it takes requests.
    pub async fn connect(&self, server: &ServerName) -> Result<(), RequestError> {
        self.peer(server).await.map(drop)
    }

    /// Remembers where a node of `server` may be found, as a ticket says. Addresses may end in `/p2p` and a PeerId, which
    /// then counts instead of `peer_id`. Nothing is dialled.
    pub async fn add_addresses(&self, server: &ServerName, peer_id: PeerId, addresses: &[Multiaddr]) {
        for address in addresses {
            let (address, named) = split_peer_id(address.clone());
            let command = Command::AddAddresses(server.to_owned(), named.unwrap_or(peer_id), vec![address]);
            // After a shutdown there is nothing to remember it for.
            let _ = self.0.commands.send(command).await;
        }
    }

    /// Gives a record to the servers of the DHT that are nearest to its key; says how many took it, or seemed to. None of
    /// them learns our PeerId.
    pub async fn publish(&self, record: &SealedRecord) -> Result<usize, PublishError> {
        let publish = self.0.dht.publish(record);
        let published = self.0.stop.run_until_cancelled(publish).await;
        published.unwrap_or(Err(PublishError::NotTaken))
    }

    /// Follows a topic among these servers: only they are listened to and told, and a few of them are kept connected. Once
    /// more with other members replaces them.
    pub async fn follow(&self, topic: TopicKey, members: Vec<OwnedServerName>) {
        let members = members.into_iter().filter(|server| *server != self.0.server_name);
        let command = Command::Follow(topic, Arc::new(members.collect()));
        // After a shutdown nothing is followed anyway.
        let _ = self.0.commands.send(command).await;
    }

    /// Follows a topic no longer.
    pub async fn unfollow(&self, topic: &TopicName) {
        let _ = self.0.commands.send(Command::Unfollow(topic.clone())).await;
    }

    /// Gives a message of a topic to a few connected followers, who pass it on; says to how many. It may reach anybody or
    /// nobody: a hint, never a delivery.
    pub async fn tell(&self, topic: &TopicKey, message: Bytes) -> Result<usize, TellError> {
        let (reply, told) = oneshot::channel();
        let command = Command::Tell(*topic, message, reply);
        let sent = self.0.commands.send(command).await;
        sent.map_err(|_| TellError::ShuttingDown)?;
        told.await.unwrap_or(Err(TellError::ShuttingDown))
    }

    /// Says that there was a message on a topic that this server had to be asked for: whoever of those who pass the topic's messages
    /// on fails to again and again is replaced.
    pub async fn missed(&self, topic: &TopicName, from: &ServerName) {
        let command = Command::Missed(topic.clone(), from.to_owned());
        let _ = self.0.commands.send(command).await;
    }

    /// Messages of the topics that are followed, from now on; never those told by this node. What a lagging receiver misses
    /// is lost.
    pub fn topic_messages(&self) -> broadcast::Receiver<TopicMessage> {
        self.0.topic_messages.subscribe()
    }

    /// How many connected nodes follow each topic with this one, as it changes.
    pub fn followers(&self) -> watch::Receiver<BTreeMap<TopicName, usize>> {
        self.0.followers.clone()
    }

    /// Says that the network changed (another Wi-Fi, back from sleep): every connection is checked, and contacts that are
    /// not connected are met.
    pub async fn network_changed(&self) {
        let _ = self.0.commands.send(Command::NetworkChanged).await;
    }

    /// Rests: gives up every connection but one to a relay that holds a place, dials nobody, and lets go soon of whoever comes and
    /// says nothing. Returns within a second, when that is done.
    pub async fn doze(&self) {
        let (reply, done) = oneshot::channel();
        if self.0.commands.send(Command::Doze(reply)).await.is_ok() {
            // An owner that is gone rests for ever.
            let _ = done.await;
        }
    }

    /// Ends [`Net::doze`]: what was given up is made again.
    pub async fn wake(&self) {
        let _ = self.0.commands.send(Command::Wake).await;
    }

    /// Whether a relay holds a place for this node now.
    pub fn has_place(&self) -> bool {
        self.0.listening.borrow().listen.iter().any(is_relayed)
    }

    /// Dials a contact, and again with growing pauses while it is not reached.
    pub async fn dial_contact(&self, server: &ServerName) {
        let _ = self.0.commands.send(Command::DialContact(server.to_owned())).await;
    }

    /// Something was said with a server, in either direction, that people would call so. It is from this that it follows who stays
    /// connected while nothing is said: see [`crate::Budget`].
    pub fn note_spoken(&self, server: &ServerName) {
        self.0.peers.note_spoken(server);
    }

    /// Peers coming and going, from now on. A receiver that lags misses events and must look at [`Net::peers`].
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.0.peers.subscribe()
    }

    /// The servers connected now, by name.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.0.peers.list()
    }

    /// Changes whenever [`Net::peers`] does, for whoever shows them.
    pub fn peer_changes(&self) -> watch::Receiver<u64> {
        self.0.peers.changes()
    }

    /// Our PeerId.
    pub fn local_peer_id(&self) -> PeerId {
        self.0.peer_id
    }

    /// The addresses that we listen on now, places at relays included, without our PeerId.
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        let listening = self.0.listening.borrow();
        listening
            .listen
            .iter()
            .cloned()
            .map(|address| split_peer_id(address).0)
            .collect()
    }

    /// The addresses to put into a ticket, without our PeerId, the most useful first: those confirmed or configured as
    /// reachable from outside, interfaces' own, places at relays. This machine's own only when there is nothing else.
    pub fn ticket_addrs(&self) -> Vec<Multiaddr> {
        let listening = self.0.listening.borrow();
        let mut addresses: Vec<_> = listening.external.iter().chain(&listening.listen).cloned().collect();
        for address in &mut addresses {
            *address = split_peer_id(address.clone()).0;
        }
        sort_for_ticket(&mut addresses);
        addresses
    }

    /// Where this node is, for whoever knows its name: what [`Net::ticket_addrs`] gives, places at relays apart.
    pub fn whereabouts(&self) -> Whereabouts {
        let (relayed, straight): (Vec<_>, Vec<_>) = self.ticket_addrs().into_iter().partition(is_relayed);
        let bytes = |addresses: Vec<Multiaddr>, most: usize| -> Vec<_> {
            let bytes = addresses.iter().map(Multiaddr::to_vec);
            bytes
                .filter(|bytes| bytes.len() <= Whereabouts::MAX_BYTES)
                .take(most)
                .collect()
        };
        let relays = relayed.iter().filter_map(relay_of);
        let relays = relays.map(|(relay, at)| at.with(Protocol::P2p(relay))).collect();
        Whereabouts {
            peer_id: self.0.peer_id.to_bytes(),
            addrs: bytes(straight, Whereabouts::MAX_ADDRS),
            relays: bytes(relays, Whereabouts::MAX_RELAYS),
            mailboxes: Vec::new(),
        }
    }

    /// Changes whenever [`Net::ticket_addrs`] may have.
    pub async fn addresses_changed(&self, seen: &mut AddressesSeen) {
        // An owner that is gone changes nothing any more.
        if seen.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What [`Net::addresses_changed`] compares with: the addresses now.
    pub fn addresses_seen(&self) -> AddressesSeen {
        let mut listening = self.0.listening.clone();
        listening.mark_unchanged();
        AddressesSeen(listening)
    }

    /// The addresses at which strangers reach us straight, as far as was confirmed or configured, without our PeerId.
    pub fn external_addrs(&self) -> Vec<Multiaddr> {
        let listening = self.0.listening.borrow();
        let straight = listening.external.iter().filter(|address| !is_relayed(address));
        straight.map(|address| split_peer_id(address.clone()).0).collect()
    }

    /// Waits until the addresses that we listen on are as `wanted`, for instance until a relay gave us a place. Never
    /// returns if they never are.
    pub async fn listening(&self, wanted: impl Fn(&[Multiaddr]) -> bool) {
        let mut listening = self.0.listening.clone();
        // An owner that is gone changes nothing any more.
        let _ = listening.wait_for(|now| wanted(&now.listen)).await;
    }

    /// Stops: lets answers under way finish for two seconds, closes every connection, and ends every task.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let owner = lock(&self.0.owner).take();
        if let Some(owner) = owner
            && let Err(error) = owner.await
        {
            tracing::error!(%error, "the network's task failed");
        }
    }
}

/// The PeerId that a node with this transport key has.
pub fn peer_id_of(key: &TransportKey) -> Result<PeerId, StartError> {
    Ok(keypair(key)?.public().to_peer_id())
}

fn keypair(key: &TransportKey) -> Result<Keypair, StartError> {
    Keypair::ed25519_from_bytes(key.to_bytes()).map_err(|error| StartError::Transport(Box::new(error)))
}

async fn check_own_document(config: &NetConfig) -> Result<(), StartError> {
    let document = config.directory.own_document().await?;
    if document.server_name() != config.server_name {
        let error = OwnDocumentError::OtherServer(document.server_name());
        return Err(StartError::Document(Box::new(error)));
    }
    let own = config.node_key.public().signing;
    if !document.nodes().any(|(_, node)| node.key.signing == own) {
        return Err(StartError::Document(Box::new(OwnDocumentError::OtherNode)));
    }
    Ok(())
}

/// Whether every relay's address names a relay.
fn check_relays(relays: &[Multiaddr]) -> Result<(), StartError> {
    match relays.iter().find(|relay| circuit_address(relay).is_none()) {
        Some(wrong) => Err(StartError::RelayAddress(wrong.clone())),
        None => Ok(()),
    }
}

fn is_repeatable(method: &Method) -> bool {
    method.is_idempotent()
}
