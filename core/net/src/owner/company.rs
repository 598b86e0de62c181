//! Topics that this node follows, and the company it keeps for them: a few members of each topic are to be connected,
//! because only followers pass its messages on. Who else is connected counts as well, so that in most rooms nobody is dialled
//! for this.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use kith_identity::{TopicKey, TopicName};
use rand::seq::IteratorRandom;
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::{Instant, sleep},
};

use super::{Later, Owner, dialling::pause};
use crate::{
    session::Farewell,
    topics::{Followers, Members, TellError, TopicEvent, TopicMessage},
};

/// How many of them are to be such as this node chose: whoever dials us may have come to be all our company.
const OWN_CHOICE: usize = 2;

/// How many more of them there may be, while hardly anybody has proved to pass anything on: one with each message that this node
/// says, or has to ask for.
const MORE_CHOICE: usize = 8;

/// Members that are tried in a row, and not reached, before there is a pause.
const MAX_TRIES: u32 = 8;

/// The first pause after that, and after one member was not reached; doubled each time, up to an hour.
const PAUSE: Duration = Duration::from_secs(60);

/// Members that were not reached and are remembered for it.
const MAX_RESTING: usize = 4096;

/// Messages that whoever reads them may be behind.
const MESSAGE_QUEUE: usize = 256;

/// A topic that is followed.
struct Topic {
    members: Members,
    /// Members that were tried and not reached since the last one was.
    failures: u32,
    /// Members wanted beyond [`OWN_CHOICE`], as long as hardly anybody has proved to pass anything on.
    more: usize,
    /// It has to wait for members to come, or for its time.
    waiting: bool,
}

/// A member that was not reached.
struct Resting {
    until: Instant,
    failures: u32,
}

/// What is followed, and who is tried for it.
pub(super) struct Company {
    topics: HashMap<TopicName, Topic>,
    trying: HashSet<OwnedServerName>,
    resting: HashMap<OwnedServerName, Resting>,
    /// Members that pass nothing on, and until when they are no company.
    silent: HashMap<OwnedServerName, Instant>,
    /// Members that were dialled for a topic, and for nothing else.
    chosen: HashSet<OwnedServerName>,
    messages: broadcast::Sender<TopicMessage>,
    followers: watch::Sender<Followers>,
}

impl Company {
    /// What comes in on topics goes to `messages`, and who follows them with us to `followers`.
    pub(super) fn new(messages: broadcast::Sender<TopicMessage>, followers: watch::Sender<Followers>) -> Self {
        Self {
            topics: HashMap::new(),
            trying: HashSet::new(),
            resting: HashMap::new(),
            silent: HashMap::new(),
            chosen: HashSet::new(),
            messages,
            followers,
        }
    }

    /// Whether a server is a member of a topic that is followed, and no silent one. Of each topic, [`company`](crate::Budget::company) of these
    /// connections are needed, [`OWN_CHOICE`] of them to members that were dialled for it or are contacts; a connection more or
    /// less beyond that changes little.
    pub(super) fn has(&self, server: &ServerName) -> bool {
        !self.is_silent(server) && self.topics.values().any(|topic| topic.members.contains(server))
    }

    /// Whether a server was found to pass nothing on: nobody needs it for a topic.
    pub(super) fn is_silent(&self, server: &ServerName) -> bool {
        self.silent.get(server).is_some_and(|until| *until > Instant::now())
    }

    /// The members of each topic that is followed.
    pub(super) fn members(&self) -> impl Iterator<Item = &Members> {
        self.topics.values().map(|topic| &topic.members)
    }

    fn topics_of(&self, server: &ServerName) -> Vec<TopicName> {
        let shared = self.topics.iter().filter(|(_, topic)| topic.members.contains(server));
        shared.map(|(name, _)| name.clone()).collect()
    }
}

/// Where topics' messages come out.
pub(crate) fn messages() -> broadcast::Sender<TopicMessage> {
    broadcast::Sender::new(MESSAGE_QUEUE)
}

impl Owner {
    /// Follows a topic among these members.
    pub(super) fn follow(&mut self, key: TopicKey, members: Members) {
        let topic = Topic {
            members: members.clone(),
            failures: 0,
            more: 0,
            waiting: false,
        };
        self.company.topics.insert(key.name(), topic);
        self.swarm.behaviour_mut().topics.follow(key, members);
        self.seek_company(&key.name());
    }

    /// Follows a topic no longer. Connections stay as long as others do.
    pub(super) fn unfollow(&mut self, topic: &TopicName) {
        self.company.topics.remove(topic);
        self.swarm.behaviour_mut().topics.unfollow(topic);
    }

    /// Sends a message on a topic.
    pub(super) fn tell(&mut self, topic: &TopicKey, message: Bytes) -> Result<usize, TellError> {
        let told = self.swarm.behaviour_mut().topics.tell(topic, message);
        self.seek_more(&topic.name());
        told
    }

    /// A message came in on a topic, or followers came or went.
    pub(super) fn handle_topic_event(&mut self, event: TopicEvent) {
        match event {
            // Nobody may be reading.
            TopicEvent::Message(message) => drop(self.company.messages.send(message)),
            TopicEvent::Followers(followers) => drop(self.company.followers.send_replace(followers)),
            TopicEvent::Silent(server, lasting) => self.handle_silent(&server, lasting),
            TopicEvent::Heard(server) => drop(self.company.silent.remove(&server)),
        }
    }

    /// There was a message on a topic that came here in another way.
    pub(super) fn missed(&mut self, topic: &TopicName, from: &ServerName) {
        self.swarm.behaviour_mut().topics.missed(topic, from);
        self.seek_more(topic);
    }

    /// There was a message; who is connected may all be such as pass nothing on.
    fn seek_more(&mut self, name: &TopicName) {
        if !self.swarm.behaviour().topics.lacks_proof(name) {
            return;
        }
        if let Some(topic) = self.company.topics.get_mut(name) {
            topic.more = MORE_CHOICE.min(topic.more + 1);
            self.seek_company(name);
        }
    }

    /// A member passes nothing on: others are sought in its place, and if it was dialled for a topic it is let go.
    fn handle_silent(&mut self, server: &ServerName, lasting: Duration) {
        let now = Instant::now();
        let silent = &mut self.company.silent;
        silent.retain(|_, until| *until > now);
        if silent.len() < MAX_RESTING {
            silent.insert(server.to_owned(), now + lasting);
        }
        if self.company.chosen.remove(server) && !self.contacts.contains(server) {
            let sessions = self.peers.get(server).map(|peer| peer.sessions()).unwrap_or_default();
            for session in sessions.iter().filter(|session| session.dialled) {
                session.retire(Farewell::Idle);
            }
        }
        for name in self.company.topics_of(server) {
            self.seek_company(&name);
        }
    }

    /// Dials members of a topic until enough are connected.
    fn seek_company(&mut self, name: &TopicName) {
        while let Some(server) = self.missing_company(name) {
            self.company.trying.insert(server.clone());
            let (reply, connected) = oneshot::channel();
            self.connect(server.clone(), Some(reply));
            self.later
                .spawn(async move { Later::Tried(server, matches!(connected.await, Ok(Ok(_)))) });
        }
    }

    /// A member to dial, if more are needed.
    fn missing_company(&self, name: &TopicName) -> Option<OwnedServerName> {
        let topic = self.company.topics.get(name)?;
        if self.rest.is_on() || self.stop.is_cancelled() || topic.waiting {
            return None;
        }
        let connected: HashSet<_> = self.peers.names().into_iter().collect();
        let company = &self.company;
        let good = |server: &&OwnedServerName| topic.members.contains(*server) && !company.is_silent(server);
        let there = connected.iter().filter(good).count();
        let chosen = |server: &&OwnedServerName| company.chosen.contains(*server) || self.contacts.contains(*server);
        let own = connected.iter().filter(good).filter(chosen).count();
        let trying = &self.company.trying;
        let tried = trying.iter().filter(|server| topic.members.contains(*server)).count();
        // A topic of which nobody is connected may take what others leave free.
        let places = self.shared.limits.connections as usize;
        let places = if there == 0 { places * 3 / 4 } else { places / 2 };
        let more = match self.swarm.behaviour().topics.lacks_proof(name) {
            true => topic.more,
            false => 0,
        };
        let enough = there + tried >= self.shared.limits.budget.company && own + tried >= OWN_CHOICE + more;
        if enough || self.sessions.len() + trying.len() >= places {
            return None;
        }
        let now = Instant::now();
        let rests =
            |server| company.resting.get(server).is_some_and(|rest| now < rest.until) || company.is_silent(server);
        let free = topic
            .members
            .iter()
            .filter(|server| !connected.contains(*server) && !trying.contains(*server) && !rests(*server));
        free.choose(&mut rand::thread_rng()).cloned()
    }

    /// A member was dialled for a topic.
    pub(super) fn handle_tried(&mut self, server: &ServerName, reached: bool) {
        self.company.trying.remove(server);
        if reached {
            self.company.chosen.insert(server.to_owned());
        } else {
            self.note_out_of_reach(server);
        }
        for name in self.company.topics_of(server) {
            let Some(topic) = self.company.topics.get_mut(&name) else {
                continue;
            };
            topic.failures = if reached { 0 } else { topic.failures + 1 };
            if topic.failures > 0 && topic.failures % MAX_TRIES == 0 && !topic.waiting {
                topic.waiting = true;
                let pause = pause(PAUSE, topic.failures / MAX_TRIES - 1);
                self.later.spawn(async move {
                    sleep(pause).await;
                    Later::SeekCompany(name)
                });
            } else {
                self.seek_company(&name);
            }
        }
    }

    fn note_out_of_reach(&mut self, server: &ServerName) {
        let now = Instant::now();
        let resting = &mut self.company.resting;
        if resting.len() >= MAX_RESTING {
            resting.retain(|_, rest| now < rest.until);
        }
        if resting.len() < MAX_RESTING {
            let rest = resting.entry(server.to_owned()).or_insert(Resting {
                until: now,
                failures: 0,
            });
            rest.until = now + pause(PAUSE, rest.failures);
            rest.failures += 1;
        }
    }

    /// A topic has waited long enough.
    pub(super) fn handle_seek_company(&mut self, name: &TopicName) {
        if let Some(topic) = self.company.topics.get_mut(name) {
            topic.waiting = false;
            self.seek_company(name);
        }
    }

    /// A server is connected.
    pub(super) fn company_came(&mut self, server: &ServerName) {
        self.company.resting.remove(server);
    }

    /// A server is not connected any more.
    pub(super) fn company_left(&mut self, server: &ServerName) {
        self.company.chosen.remove(server);
        for name in self.company.topics_of(server) {
            self.seek_company(&name);
        }
    }

    /// A server let this one go, which may be one of too many for it: others are tried before.
    pub(super) fn company_let_go(&mut self, server: &ServerName) {
        if self.company.has(server) {
            self.note_out_of_reach(server);
            self.company_left(server);
        }
    }

    /// The network is another: who was out of reach may not be.
    pub(super) fn seek_company_anew(&mut self) {
        self.company.resting.clear();
        let names: Vec<_> = self.company.topics.keys().cloned().collect();
        for name in names {
            self.handle_seek_company(&name);
        }
    }
}
