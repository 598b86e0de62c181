//! Topics between the nodes: each message goes to a few followers, who pass it on once. It is lost like requests are, and
//! nobody hears of it then. What is no message of its topic goes nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use kith_node::{
    identity::{TopicKey, TopicName},
    network::{PublishError, TopicMessage},
};
use ruma::OwnedServerName;
use tokio::time::sleep;

use crate::{
    faults::Fault,
    network::{Wires, lock},
    trace::digest,
};

/// Followers to whom a message is given by whoever has it.
const MESH: usize = 4;

/// What one node follows, and what it has seen of it.
#[derive(Default)]
pub(crate) struct Following {
    topics: BTreeMap<TopicName, (TopicKey, BTreeSet<OwnedServerName>)>,
    /// Hashes of messages.
    seen: BTreeSet<[u8; 32]>,
}

impl Following {
    pub(crate) fn follow(&mut self, topic: TopicKey, members: Vec<OwnedServerName>) {
        self.topics.insert(topic.name(), (topic, members.into_iter().collect()));
    }

    pub(crate) fn unfollow(&mut self, topic: &TopicName) {
        self.topics.remove(topic);
    }

    fn has(&self, topic: &TopicName, member: &OwnedServerName) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|(_, members)| members.contains(member))
    }
}

impl Wires {
    /// Gives a node's message to a few others; says to how many.
    pub(crate) fn publish(&self, node: usize, topic: &TopicKey, message: &Bytes) -> Result<usize, PublishError> {
        let name = topic.name();
        {
            let mut inner = lock(&self.inner);
            let following = &mut inner.ends[node].following;
            if !following.topics.contains_key(&name) {
                return Err(PublishError::NotFollowed);
            }
            if !topic.verify(message) {
                return Err(PublishError::NotValid);
            }
            if !following.seen.insert(blake3::hash(message).into()) {
                return Err(PublishError::Duplicate);
            }
        }
        match self.pass_on(node, None, &name, message) {
            0 => Err(PublishError::NobodyThere),
            told => Ok(told),
        }
    }

    /// Gives a message to a few of the connected followers.
    fn pass_on(&self, from: usize, but: Option<usize>, topic: &TopicName, message: &Bytes) -> usize {
        let mut others: Vec<usize> = {
            let inner = lock(&self.inner);
            let (end, name) = (&inner.ends[from], &inner.ends[from].name);
            let follows = |other: &usize| {
                let other = &inner.ends[*other];
                other.following.has(topic, name) && end.following.has(topic, &other.name)
            };
            let seen = end.sees.iter().copied();
            seen.filter(|other| Some(*other) != but).filter(follows).collect()
        };
        self.dice.shuffle(&mut others);
        others.truncate(if but.is_none() { MESH } else { MESH - 1 });
        for to in &others {
            let (wires, to, topic, message) = (self.clone(), *to, topic.clone(), message.clone());
            tokio::spawn(async move { wires.carry_message(from, to, topic, message).await });
        }
        others.len()
    }

    async fn carry_message(&self, from: usize, to: usize, topic: TopicName, message: Bytes) {
        sleep(Duration::from_millis(self.dice.between(2, 120))).await;
        let loss = lock(&self.inner).weather.loss;
        if self.variant.loses_gossip() || self.obstacle(from, to).is_some() || self.dice.percent(loss) {
            self.faults.count(Fault::GossipLost);
            return;
        }
        let Some(attached) = self.attached(to) else { return };
        {
            let mut inner = lock(&self.inner);
            let name = inner.ends[from].name.clone();
            let following = &mut inner.ends[to].following;
            if !following.has(&topic, &name) || !following.seen.insert(blake3::hash(&message).into()) {
                return;
            }
            let message = TopicMessage {
                topic: topic.clone(),
                from: name,
                message: message.clone(),
            };
            // Having no listener is no fault.
            let _ = attached.messages.send(message);
        }
        self.faults.count(Fault::Gossiped);
        self.trace.note(format_args!("{from}~{to} {}", digest(&message)));
        self.pass_on(to, Some(from), &topic, &message);
    }
}
