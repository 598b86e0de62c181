//! One errand in the DHT: a small swarm with a key of its own, made for one publication or one lookup and ended with it. So
//! nobody who stores or answers learns this node's PeerId, or can tell that two errands are one node's but by IP address.
//! It listens on nothing, answers nobody, and judges no record.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, time::Duration};

use futures::StreamExt;
use kith_identity::DhtKey;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    identity::Keypair,
    kad::{self, GetRecordOk, PutRecordError, QueryId, QueryResult, RecordKey, store::MemoryStore},
    swarm::{SwarmEvent, dial_opts::DialOpts},
};
use tokio::time::timeout;

use super::settings;
use crate::{
    PeerAddresses, StartError, Timing,
    address::{is_dialable, is_relayed, split_peer_id, ways_to_relay},
    swarm::{self, BoxedTransport},
};

/// For one server to answer one question.
const ANSWER: Duration = Duration::from_secs(2);

/// For one query to end.
const QUERY: Duration = Duration::from_secs(20);

/// Kademlia notices that it waited for too long only when it is asked for more: this often at the least.
const BEAT: Duration = Duration::from_secs(1);

/// Servers that an errand remembers having met.
const MAX_MET: usize = 32;

/// Makes an errand's transport. The flag says that only global addresses are to be dialled.
pub(crate) type Carrier = Arc<dyn Fn(&Keypair, bool) -> Result<BoxedTransport, StartError> + Send + Sync>;

/// Something that a server gave under a key. Nothing about it is proved.
pub(crate) struct Given {
    pub(crate) key: DhtKey,
    pub(crate) value: Vec<u8>,
    pub(crate) by: Option<PeerId>,
}

/// What came of a publication.
#[derive(Default)]
pub(crate) struct Put {
    /// How many servers the record was given to.
    pub(crate) given: usize,
    /// Those that took it, or seemed to.
    pub(crate) taken: Vec<PeerAddresses>,
}

/// A swarm for one errand.
pub(crate) struct Errand {
    swarm: Swarm<kad::Behaviour<MemoryStore>>,
    queries: HashMap<QueryId, DhtKey>,
    learned: Learned,
}

/// What an errand learned of servers.
#[derive(Default)]
pub(crate) struct Learned {
    /// Those met that its Kademlia did not know: it has not room for all that the errand began with.
    pub(crate) met: Vec<PeerAddresses>,
    /// Those that were not reached.
    pub(crate) missed: Vec<PeerId>,
    /// Those that lied, once for each lie.
    pub(crate) liars: Vec<PeerId>,
}

impl Errand {
    /// An errand that begins at these servers. Its queries take some paths side by side, which share no server, so that they fail
    /// only when each meets hostile ones.
    pub(crate) fn new(
        carrier: &Carrier,
        timing: &Timing,
        servers: &[PeerAddresses],
        paths: NonZeroUsize,
    ) -> Result<Self, StartError> {
        let keypair = Keypair::generate_ed25519();
        let peer_id = keypair.public().to_peer_id();
        // Whoever begins in the wide world is not sent around in the local network by those it meets.
        let mut addresses = servers.iter().flat_map(|server| &server.addresses);
        let global = !addresses.any(crate::address::is_lan);
        let mut settings = settings();
        settings
            .set_parallelism(paths)
            .disjoint_query_paths(true)
            .set_query_timeout(QUERY)
            .set_substreams_timeout(ANSWER)
            .set_periodic_bootstrap_interval(None);
        let mut kad = kad::Behaviour::with_config(peer_id, MemoryStore::new(peer_id), settings);
        kad.set_mode(Some(kad::Mode::Client));
        for server in servers {
            for address in ways_to_relay(&server.addresses) {
                kad.add_address(&server.peer_id, address);
            }
        }
        // New peers in the table make libp2p look for more of them half a second later: of no use to an errand. Having
        // begun to look resets that; it is finished before it asks anyone anything, here and in `next`.
        if let Ok(id) = kad.bootstrap()
            && let Some(mut query) = kad.query_mut(&id)
        {
            query.finish();
        }
        let transport = carrier(&keypair, global)?;
        Ok(Self {
            swarm: swarm::swarm(transport, kad, peer_id, timing),
            queries: HashMap::new(),
            learned: Learned::default(),
        })
    }

    /// Starts to ask for what stands under a key.
    pub(crate) fn seek(&mut self, key: DhtKey) {
        let id = self.swarm.behaviour_mut().get_record(RecordKey::new(key.as_bytes()));
        self.queries.insert(id, key);
    }

    /// Asks for nothing more under a key.
    pub(crate) fn finish(&mut self, key: &DhtKey) {
        let queries = self.queries.iter().filter(|(_, sought)| *sought == key);
        for id in queries.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(mut query) = self.swarm.behaviour_mut().query_mut(&id) {
                query.finish();
            }
            self.queries.remove(&id);
        }
    }

    /// What is given next under any key sought, or none when everybody who should be asked was. May be dropped and called
    /// again.
    pub(crate) async fn next(&mut self) -> Option<Given> {
        while !self.queries.is_empty() {
            let Some((id, result, last)) = self.progress().await else {
                continue;
            };
            let given = match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => Some((found.record.value, found.peer)),
                _ => None,
            };
            let key = if last {
                self.queries.remove(&id)
            } else {
                self.queries.get(&id).copied()
            };
            if let (Some(key), Some((value, by))) = (key, given) {
                return Some(Given { key, value, by });
            }
        }
        None
    }

    /// Finds the servers nearest to a key, and gives them a record.
    pub(crate) async fn put(&mut self, key: DhtKey, value: Vec<u8>, replicas: NonZeroUsize) -> Put {
        let nearest = self.nearest(key, replicas).await;
        for server in &nearest {
            // Kademlia forgets with its query where peers are; connections may have ended meanwhile.
            let again = DialOpts::peer_id(server.peer_id).addresses(server.addresses.clone());
            // It is connected, or being dialled: all the better.
            let _ = self.swarm.dial(again.build());
        }
        let given = nearest.len();
        let taken = self.give(key, value, nearest).await;
        Put { given, taken }
    }

    async fn nearest(&mut self, key: DhtKey, count: NonZeroUsize) -> Vec<PeerAddresses> {
        let kad = self.swarm.behaviour_mut();
        let nearest = kad.get_n_closest_peers(key.as_bytes().to_vec(), count);
        let found = loop {
            match self.progress().await {
                Some((id, QueryResult::GetClosestPeers(Ok(found)), _)) if id == nearest => break found.peers,
                Some((id, QueryResult::GetClosestPeers(Err(error)), _)) if id == nearest => {
                    let kad::GetClosestPeersError::Timeout { peers, .. } = error;
                    break peers;
                }
                _ => {}
            }
        };
        let found = found.into_iter().map(|peer| PeerAddresses {
            peer_id: peer.peer_id,
            addresses: peer.addrs,
        });
        found.collect()
    }

    /// Gives a record to servers, each connected or among those that the errand began with. Says who took it, or seemed to.
    pub(crate) async fn give(&mut self, key: DhtKey, value: Vec<u8>, to: Vec<PeerAddresses>) -> Vec<PeerAddresses> {
        if to.is_empty() {
            return to;
        }
        // Without a publisher: `put_record` would write this errand's PeerId into what servers keep.
        let record = kad::Record::new(RecordKey::new(key.as_bytes()), value);
        let peers: Vec<_> = to.iter().map(|server| server.peer_id).collect();
        let kad = self.swarm.behaviour_mut();
        let put = kad.put_record_to(record, peers.into_iter(), kad::Quorum::All);
        loop {
            match self.progress().await {
                Some((id, QueryResult::PutRecord(Ok(_)), _)) if id == put => return to,
                Some((id, QueryResult::PutRecord(Err(error)), _)) if id == put => {
                    let (PutRecordError::QuorumFailed { success, .. } | PutRecordError::Timeout { success, .. }) =
                        error;
                    let took = to.into_iter().filter(|server| success.contains(&server.peer_id));
                    return took.collect();
                }
                _ => {}
            }
        }
    }

    /// A server lied.
    pub(crate) fn distrust(&mut self, server: PeerId) {
        self.learned.liars.push(server);
    }

    /// How many lies there were.
    pub(crate) fn lies(&self) -> usize {
        self.learned.liars.len()
    }

    /// What it learned.
    pub(crate) fn end(self) -> Learned {
        self.learned
    }

    /// What came of a query, if it is one of ours; and whether that is all.
    async fn progress(&mut self) -> Option<(QueryId, QueryResult, bool)> {
        match timeout(BEAT, self.swarm.select_next_some()).await.ok()? {
            SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) => {
                if matches!(result, QueryResult::Bootstrap(_)) {
                    if let Some(mut query) = self.swarm.behaviour_mut().query_mut(&id) {
                        query.finish();
                    }
                    return None;
                }
                return Some((id, result, step.last));
            }
            SwarmEvent::Behaviour(kad::Event::RoutablePeer { peer, address }) => self.meet(peer, address),
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer), ..
            } => self.learned.missed.push(peer),
            _ => {}
        }
        None
    }

    fn meet(&mut self, peer_id: PeerId, address: Multiaddr) {
        let address = split_peer_id(address).0;
        let met = &mut self.learned.met;
        let known = met.iter().any(|met| met.peer_id == peer_id);
        if met.len() < MAX_MET && !known && is_dialable(&address) && !is_relayed(&address) {
            let addresses = vec![address];
            met.push(PeerAddresses { peer_id, addresses });
        }
    }
}
