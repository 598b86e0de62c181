//! An honest node of the simulation at work: its swarm, and whom it dials, as the network's owner does. It judges nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::StreamExt;
use kith_identity::TopicKey;
use libp2p::{Multiaddr, PeerId, Swarm, multiaddr::Protocol, swarm::SwarmEvent};
use rand::{rngs::StdRng, seq::SliceRandom};
use ruma::OwnedServerName;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::DIALS;
use crate::{
    peers::lock,
    topics::{Behaviour, Members, TellError, TopicEvent},
};

/// Who is behind each PeerId: what hellos prove in real life.
pub(super) type Names = Arc<Mutex<HashMap<PeerId, OwnedServerName>>>;

/// Where everybody is, honest or not.
pub(super) type Book = Arc<Mutex<Vec<(OwnedServerName, Multiaddr)>>>;

/// What arrived where and when, by the machine and the message.
pub(super) type Arrived = Arc<watch::Sender<BTreeMap<(Ipv4Addr, Vec<u8>), Instant>>>;

/// What an honest node is asked to do.
pub(super) enum Ask {
    Follow(Members),
    /// Says who is in its mesh.
    Beat(oneshot::Sender<HashSet<PeerId>>),
    Tell(Bytes, oneshot::Sender<Result<usize, TellError>>),
    /// Dials so many members, whoever they are.
    Choose(usize),
    /// There was a message that did not come; this server had it.
    Missed(OwnedServerName),
    /// Says who is connected.
    Peers(oneshot::Sender<HashSet<PeerId>>),
}

/// An honest node at work.
pub(super) struct Drive {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) address: Ipv4Addr,
    pub(super) topic: TopicKey,
    pub(super) names: Names,
    pub(super) book: Book,
    pub(super) rng: StdRng,
    /// Members that it dialled, and whether it keeps them.
    pub(super) chosen: HashMap<OwnedServerName, (PeerId, bool)>,
    pub(super) arrived: Arrived,
    pub(super) silenced: Arc<watch::Sender<usize>>,
    pub(super) followers: watch::Sender<usize>,
}

impl Drive {
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                Some(ask) = asked.recv() => match ask {
                    Ask::Follow(members) => self.swarm.behaviour_mut().follow(self.topic, members),
                    // Whatever is asked, the swarm is polled, and its heart with it.
                    Ask::Beat(reply) => reply.send(self.swarm.behaviour().mesh(&self.topic.name())).unwrap(),
                    Ask::Tell(message, reply) => {
                        let told = self.swarm.behaviour_mut().tell(&self.topic, message);
                        reply.send(told).unwrap();
                        self.choose_more();
                    }
                    Ask::Choose(count) => (0..count).for_each(|_| self.choose()),
                    Ask::Missed(from) => {
                        self.swarm.behaviour_mut().missed(&self.topic.name(), &from);
                        self.choose_more();
                    }
                    Ask::Peers(reply) => reply.send(self.swarm.connected_peers().copied().collect()).unwrap(),
                },
            }
        }
    }

    /// Dials one more, as `owner::company` does while hardly anybody is proven.
    fn choose_more(&mut self) {
        let kept = self.chosen.values().filter(|(_, kept)| *kept).count();
        let more = !self.chosen.is_empty() && self.swarm.behaviour().lacks_proof(&self.topic.name());
        if more && kept < 2 * DIALS {
            self.choose();
        }
    }

    /// Dials a member that it has not dialled yet, as `owner::company` does.
    fn choose(&mut self) {
        let book = lock(&self.book).clone();
        let own = *self.swarm.local_peer_id();
        let peer_of = |address: &Multiaddr| match address.iter().last() {
            Some(Protocol::P2p(peer_id)) => peer_id,
            _ => panic!("everybody has a PeerId"),
        };
        let free = book
            .iter()
            .filter(|(server, address)| !self.chosen.contains_key(server) && peer_of(address) != own);
        let free: Vec<_> = free.collect();
        if let Some((server, address)) = free.choose(&mut self.rng) {
            self.chosen.insert(server.clone(), (peer_of(address), true));
            // It may be connected already.
            let _ = self.swarm.dial(address.clone());
        }
    }

    fn handle(&mut self, event: SwarmEvent<TopicEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, ..
            } => {
                let server = lock(&self.names)[&peer_id].clone();
                self.swarm.behaviour_mut().known(connection_id, server);
            }
            SwarmEvent::Behaviour(TopicEvent::Message(message)) => {
                let key = (self.address, message.message.to_vec());
                self.arrived.send_modify(|arrived| {
                    let twice = arrived.insert(key, Instant::now());
                    assert!(twice.is_none(), "a message came twice");
                });
            }
            SwarmEvent::Behaviour(TopicEvent::Followers(followers)) => {
                self.followers.send_replace(followers.values().sum());
            }
            SwarmEvent::Behaviour(TopicEvent::Silent(server, _)) => {
                self.silenced.send_modify(|count| *count += 1);
                if let Some((peer_id, kept @ true)) = self.chosen.get_mut(&server) {
                    *kept = false;
                    let _ = self.swarm.disconnect_peer_id(*peer_id);
                    self.choose();
                }
            }
            _ => {}
        }
    }
}
