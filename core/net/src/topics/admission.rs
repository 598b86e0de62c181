//! Who takes part: members of topics, from when they are known until their connection ends or they forge. Passes nothing on.

use kith_identity::TopicName;
use libp2p::{
    Multiaddr, PeerId,
    gossipsub::TopicHash,
    swarm::{
        ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
    },
};
use ruma::OwnedServerName;
use std::collections::HashMap;
use tokio::time::Instant;

use super::{
    Behaviour, PUNISHED,
    behaviour::{Follower, MAX_TOPICS},
    handler::{News, Order},
};

/// Servers that are remembered for forgeries.
const MAX_SHUNNED: usize = 1024;

impl Behaviour {
    /// The peer at the other end of a connection proved to be this server.
    pub(crate) fn known(&mut self, id: ConnectionId, server: OwnedServerName) {
        let Some(link) = self.links.get(&id) else { return };
        self.followers.entry(link.peer_id).or_insert_with(|| Follower {
            server,
            admitted: 0,
            score: 0.0,
            said: HashMap::new(),
        });
        self.admit(id);
    }

    /// Lets a member of any topic take part.
    pub(super) fn admit(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.admitted) else {
            return;
        };
        let Some(follower) = self.followers.get_mut(&link.peer_id) else {
            return;
        };
        if self
            .shunned
            .get(&follower.server)
            .is_some_and(|until| *until > Instant::now())
        {
            return;
        }
        let mut topics = self.followed.values();
        if !topics.any(|topic| topic.members.contains(&follower.server)) {
            return;
        }
        // Whoever dialled: connections are all alike to gossipsub then, and the mesh keeps to its size.
        let (peer_id, nowhere) = (link.peer_id, Multiaddr::empty());
        let handler = self
            .router
            .handle_established_inbound_connection(id, peer_id, &nowhere, &nowhere);
        let Ok(handler) = handler else { return };
        link.admitted = true;
        self.router
            .on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id: id,
                endpoint: &link.endpoint,
                failed_addresses: &[],
                other_established: follower.admitted,
            }));
        follower.admitted += 1;
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(id),
            event: Order::Start(Box::new(handler)),
        });
        self.rate_all();
        self.stir();
    }

    /// Shuts a peer out, whichever node of its server it is and whatever PeerId it comes back with.
    pub(super) fn shun(&mut self, peer_id: PeerId) {
        let Some(follower) = self.followers.get_mut(&peer_id) else {
            return;
        };
        let now = Instant::now();
        if self.shunned.len() >= MAX_SHUNNED {
            self.shunned.retain(|_, until| *until > now);
        }
        if self.shunned.len() < MAX_SHUNNED {
            self.shunned.insert(follower.server.clone(), now + PUNISHED);
        }
        for (id, link) in &mut self.links {
            if link.peer_id != peer_id || !link.admitted {
                continue;
            }
            link.admitted = false;
            follower.admitted -= 1;
            self.router
                .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                    peer_id,
                    connection_id: *id,
                    endpoint: &link.endpoint,
                    cause: None,
                    remaining_established: follower.admitted,
                }));
            self.events.push_back(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(*id),
                event: Order::Stop,
            });
        }
        self.changed = true;
    }

    /// Whether what a server says of a topic counts.
    fn takes_part(&self, server: &OwnedServerName, topic: &TopicHash) -> bool {
        let followed = self.followed.get(topic);
        followed.is_some_and(|followed| followed.members.contains(server))
    }

    /// Members said that they follow a topic before it was known that they are.
    pub(super) fn listen_again(&mut self, topic: &TopicHash) {
        let Some(followed) = self.followed.get(topic) else {
            return;
        };
        for (peer_id, follower) in &mut self.followers {
            if follower.admitted > 0
                && followed.members.contains(&follower.server)
                && let Some(said) = follower.said.remove(topic)
            {
                // Gossipsub does not care which connection it was.
                self.router
                    .on_connection_handler_event(*peer_id, ConnectionId::new_unchecked(0), said);
            }
        }
    }

    /// Keeps what a peer says of topics in which it has no part for later, and gives the rest of its news.
    pub(super) fn sort(&mut self, peer_id: PeerId, news: News) -> Option<News> {
        let News::Message {
            mut rpc,
            invalid_messages,
        } = news
        else {
            return Some(news);
        };
        let server = self.followers.get(&peer_id)?.server.clone();
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut rpc.subscriptions)
            .into_iter()
            .partition(|subscription| self.takes_part(&server, &subscription.topic_hash));
        let follower = self.followers.get_mut(&peer_id)?;
        let rest = (std::mem::take(&mut rpc.messages), std::mem::take(&mut rpc.control_msgs));
        for subscription in later {
            let topic = subscription.topic_hash.clone();
            let full = follower.said.len() >= MAX_TOPICS && !follower.said.contains_key(&topic);
            if full || topic.as_str().len() != TopicName::LENGTH {
                continue;
            }
            let mut said = rpc.clone();
            said.subscriptions = vec![subscription];
            let said = News::Message {
                rpc: said,
                invalid_messages: Vec::new(),
            };
            follower.said.insert(topic, said);
        }
        (rpc.messages, rpc.control_msgs) = rest;
        rpc.subscriptions = now;
        Some(News::Message { rpc, invalid_messages })
    }

    pub(super) fn handle_closed(&mut self, closed: ConnectionClosed<'_>) {
        let Some(link) = self.links.remove(&closed.connection_id) else {
            return;
        };
        let Some(follower) = self.followers.get_mut(&link.peer_id) else {
            return;
        };
        if link.admitted {
            follower.admitted -= 1;
            let remaining_established = follower.admitted;
            self.router
                .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                    remaining_established,
                    ..closed
                }));
        }
        if closed.remaining_established == 0 {
            self.followers.remove(&link.peer_id);
        }
        if link.admitted {
            self.changed = true;
            self.stir();
        }
    }
}
