//! Tells members who pass nothing on from those who have nothing to say: what comes around a topic's mesh, the members of the
//! mesh failed to bring. Judges nobody while the mesh does its work, however quiet somebody is; dials nobody, reads no message.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use kith_identity::TopicName;
use libp2p::{
    PeerId,
    gossipsub::{RawMessage, TopicHash},
    swarm::ToSwarm,
};
use ruma::{OwnedServerName, ServerName};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    BEAT, Behaviour, MESH_LOW, SILENT_SCORE, TopicEvent, UNPROVEN_SCORE,
    behaviour::{Followed, hash_of},
};

/// Messages that came around a member of the mesh since it last brought one, until it is taken for silent; of one that has
/// brought some before, more. One may overtake an honest member's, and who does not get a message cannot bring it.
const MAX_FAILURES: u32 = 3;
const MAX_FAILURES_OF_THE_PROVEN: u32 = 8;

/// Messages that came around the whole mesh, more than came through it, from which on a topic is in trouble: then nobody
/// comes into the mesh who dialled us and never brought anything.
const TROUBLE: u32 = 3;
/// Messages that have to come through the mesh until the trouble is over.
const CALM: u32 = 32;

/// In trouble, messages that came by while a member of the mesh brought none, until it makes way for others, if enough of the
/// mesh do better. It may be an honest one to whom everything comes through this node.
const MAX_IDLE: u32 = 16;

/// How long a member has to be in the mesh before what it does not bring counts: that may have gone by before it came.
const TRIAL: Duration = Duration::from_secs(2 * BEAT.as_secs());

/// How long a silent member has no part in meshes; doubled each time, up to the longest.
const FIRST_SILENCE: Duration = Duration::from_secs(5 * 60);
const LONGEST_SILENCE: Duration = Duration::from_secs(6 * 60 * 60);

/// Servers that are remembered as silent, and as having brought something.
const MAX_SILENT: usize = 1024;
const MAX_PROVEN: usize = 4096;

/// Messages of a topic that are known again when they come once more.
const MAX_RECENT: usize = 64;

/// A server that brought nothing.
pub(super) struct Silent {
    /// Until then it has no part in meshes.
    until: Instant,
    times: u32,
}

/// Who is in a topic's mesh or was dialled by this node, and how they do.
#[derive(Default)]
pub(super) struct Bringers {
    trials: HashMap<PeerId, Trial>,
    /// Hashes of valid messages, the newest last.
    recent: VecDeque<[u8; 32]>,
    /// Messages that came around the mesh, less those that came through it.
    trouble: u32,
    in_trouble: bool,
}

struct Trial {
    since: Instant,
    in_mesh: bool,
    /// Messages that came around the mesh, and messages at all, since it last brought one.
    failures: u32,
    idle: u32,
}

impl Bringers {
    /// Who is in the mesh now, and who was dialled.
    fn refresh(&mut self, mesh: &[PeerId], dialled: &[PeerId], now: Instant) {
        self.trials
            .retain(|peer, _| mesh.contains(peer) || dialled.contains(peer));
        for peer in mesh.iter().chain(dialled) {
            let in_mesh = mesh.contains(peer);
            let trial = self.trials.entry(*peer).or_insert(Trial {
                since: now,
                in_mesh,
                failures: 0,
                idle: 0,
            });
            if trial.in_mesh != in_mesh {
                (trial.since, trial.in_mesh, trial.idle) = (now, in_mesh, 0);
            }
        }
    }

    /// A valid message is known from now on.
    fn remember(&mut self, message: &[u8]) {
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Sha256::digest(message).into());
    }

    fn brought(&mut self, peer: &PeerId) {
        if let Some(trial) = self.trials.get_mut(peer) {
            (trial.failures, trial.idle) = (0, 0);
        }
    }

    /// Whether others of the mesh bring what there is, and this one never does.
    fn is_idle(&self, peer: &PeerId) -> bool {
        let in_mesh = self.trials.values().filter(|trial| trial.in_mesh);
        let busy = in_mesh.filter(|trial| trial.idle < MAX_IDLE).count();
        let idle = self
            .trials
            .get(peer)
            .is_some_and(|trial| trial.in_mesh && trial.idle >= MAX_IDLE);
        idle && busy >= MESH_LOW
    }

    /// A message came through the mesh, or around it.
    fn came(&mut self, through: bool) {
        self.trouble = match through {
            true => self.trouble.saturating_sub(1),
            false => self.trouble + 1,
        };
        if self.trouble >= TROUBLE && !through {
            self.trouble = CALM;
            self.in_trouble = true;
        }
        self.in_trouble &= self.trouble > 0;
        for trial in self.trials.values_mut() {
            trial.idle = trial.idle.saturating_add(1);
            if through && !self.in_trouble {
                // What came around the mesh now and then was no sign of anything.
                trial.failures = 0;
            }
        }
    }

    /// A message came around the mesh. Gives who has failed too often.
    fn failed(&mut self, now: Instant, is_proven: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let mut silent = Vec::new();
        for (peer, trial) in &mut self.trials {
            if now.duration_since(trial.since) < TRIAL {
                continue;
            }
            trial.failures += 1;
            // Who is not in the mesh need not bring much.
            let most = match trial.in_mesh && !is_proven(peer) {
                true => MAX_FAILURES,
                false => MAX_FAILURES_OF_THE_PROVEN,
            };
            if trial.failures >= most {
                trial.failures = 0;
                silent.push(*peer);
            }
        }
        silent
    }
}

impl Followed {
    /// Whether what a peer sends once more could tell anything about it.
    fn is_doubted(&self, peer: &PeerId) -> bool {
        self.bringers.trials.get(peer).is_some_and(|trial| trial.failures > 0)
    }
}

impl Behaviour {
    /// A valid message came in for the first time.
    pub(super) fn note_first(&mut self, hop: PeerId, topic: &TopicHash, message: &[u8]) {
        self.look_at(topic);
        let through = self.router.mesh_peers(topic).any(|peer| *peer == hop);
        let Some(followed) = self.followed.get_mut(topic) else {
            return;
        };
        followed.bringers.remember(message);
        followed.bringers.came(through);
        followed.bringers.brought(&hop);
        self.note_heard(hop);
        if !through {
            self.note_failed(topic);
        }
        self.rate_all();
    }

    /// Messages came in, of which some may have come before: who brings them late brings them.
    pub(super) fn note_again(&mut self, hop: PeerId, messages: &[RawMessage]) {
        let proven = self
            .followers
            .get(&hop)
            .is_some_and(|follower| self.proven.contains(&follower.server));
        for message in messages {
            let Some(followed) = self.followed.get_mut(&message.topic) else {
                continue;
            };
            if proven && !followed.is_doubted(&hop) {
                continue;
            }
            let hash: [u8; 32] = Sha256::digest(&message.data).into();
            if followed.bringers.recent.contains(&hash) {
                followed.bringers.brought(&hop);
                self.note_heard(hop);
            }
        }
    }

    /// There was a message on a topic that did not come here over it. This server had it when it was asked.
    pub(crate) fn missed(&mut self, topic: &TopicName, from: &ServerName) {
        let topic = hash_of(topic);
        self.look_at(&topic);
        let nodes = self.followers.iter().filter(|(_, follower)| follower.server == from);
        let nodes: Vec<PeerId> = nodes.map(|(peer, _)| *peer).collect();
        for node in nodes {
            if let Some(followed) = self.followed.get_mut(&topic) {
                followed.bringers.brought(&node);
            }
            self.note_heard(node);
        }
        if let Some(followed) = self.followed.get_mut(&topic) {
            followed.bringers.came(false);
        }
        self.note_failed(&topic);
        self.rate_all();
        self.stir();
    }

    /// Looks who is in every mesh, and who was dialled, and has gossipsub think of everybody as they deserve now.
    pub(super) fn look_around(&mut self) {
        let topics: Vec<TopicHash> = self.followed.keys().cloned().collect();
        topics.iter().for_each(|topic| self.look_at(topic));
        self.rate_all();
    }

    /// Looks who is in a topic's mesh, and who of its members was dialled.
    fn look_at(&mut self, topic: &TopicHash) {
        let dialled = self.dialled();
        let Some(followed) = self.followed.get_mut(topic) else {
            return;
        };
        let mesh: Vec<PeerId> = self.router.mesh_peers(topic).copied().collect();
        let is_member = |peer: &PeerId| {
            let follower = self.followers.get(peer);
            follower.is_some_and(|follower| followed.members.contains(&follower.server))
        };
        let own: Vec<PeerId> = dialled.into_iter().filter(is_member).collect();
        followed.bringers.refresh(&mesh, &own, Instant::now());
    }

    /// The peers that this node dialled.
    fn dialled(&self) -> HashSet<PeerId> {
        let dialled = self.links.values().filter(|link| link.endpoint.is_dialer());
        dialled.map(|link| link.peer_id).collect()
    }

    /// Whether too few who are connected have ever passed on anything of a topic's members to be sure of the others.
    pub(crate) fn lacks_proof(&self, topic: &TopicName) -> bool {
        let followed = self.followed.get(&hash_of(topic));
        followed.is_some_and(|followed| self.proven_of(followed) < MESH_LOW)
    }

    fn proven_of(&self, followed: &Followed) -> usize {
        let servers = self.followers.values().map(|follower| &follower.server);
        let members = servers.filter(|server| followed.members.contains(*server));
        members.filter(|server| self.proven.contains(*server)).count()
    }

    /// Has gossipsub think of everybody as they deserve now.
    pub(super) fn rate_all(&mut self) {
        let now = Instant::now();
        let topics = self.followed.values();
        let trouble = topics.filter(|topic| topic.bringers.in_trouble);
        let trouble: Vec<(&Followed, bool)> = trouble.map(|topic| (topic, self.proven_of(topic) < MESH_LOW)).collect();
        let dialled = self.dialled();
        let mut scores = Vec::new();
        for (peer, follower) in &self.followers {
            let server = &follower.server;
            let silent = self.silent.get(server).is_some_and(|silent| silent.until > now);
            let unproven = || {
                let mut of = trouble.iter().filter(|(topic, _)| topic.members.contains(server));
                !self.proven.contains(server) && of.any(|(_, lacks)| !lacks || !dialled.contains(peer))
            };
            let idle = || trouble.iter().any(|(topic, _)| topic.bringers.is_idle(peer));
            let score = match silent {
                true => SILENT_SCORE,
                false if unproven() || idle() => UNPROVEN_SCORE,
                false => 0.0,
            };
            if follower.admitted > 0 && follower.score != score {
                scores.push((*peer, score));
            }
        }
        for (peer, score) in scores {
            if self.router.set_application_score(&peer, score)
                && let Some(follower) = self.followers.get_mut(&peer)
            {
                follower.score = score;
            }
        }
    }

    fn is_silent(&self, server: &ServerName) -> bool {
        self.silent
            .get(server)
            .is_some_and(|silent| silent.until > Instant::now())
    }

    /// A peer brought something.
    fn note_heard(&mut self, peer: PeerId) {
        let Some(follower) = self.followers.get(&peer) else {
            return;
        };
        let server = follower.server.clone();
        if self.silent.remove(&server).is_some() {
            self.events
                .push_back(ToSwarm::GenerateEvent(TopicEvent::Heard(server.clone())));
        }
        if self.proven.len() >= MAX_PROVEN && !self.proven.contains(&server) {
            self.proven.clear();
        }
        self.proven.insert(server);
    }

    fn note_failed(&mut self, topic: &TopicHash) {
        let Some(followed) = self.followed.get_mut(topic) else {
            return;
        };
        let (followers, proven) = (&self.followers, &self.proven);
        let is_proven = |peer: &PeerId| {
            followers
                .get(peer)
                .is_some_and(|follower| proven.contains(&follower.server))
        };
        for peer in followed.bringers.failed(Instant::now(), is_proven) {
            self.silence(peer, topic);
        }
    }

    /// Takes a member for silent: it has no part in meshes for a while, and somebody else is wanted in its place.
    fn silence(&mut self, peer: PeerId, topic: &TopicHash) {
        let Some(follower) = self.followers.get(&peer) else {
            return;
        };
        let (server, now) = (follower.server.clone(), Instant::now());
        if self.silent.len() >= MAX_SILENT {
            self.silent.retain(|_, silent| silent.until > now);
        }
        if self.silent.len() >= MAX_SILENT && !self.silent.contains_key(&server) {
            return;
        }
        tracing::debug!(%server, "a member passes nothing on");
        self.proven.remove(&server);
        let times = self.silent.get(&server).map_or(0, |silent| silent.times);
        let silence = FIRST_SILENCE.saturating_mul(1 << times.min(16)).min(LONGEST_SILENCE);
        let silent = Silent {
            until: now + silence,
            times: times + 1,
        };
        self.silent.insert(server.clone(), silent);
        self.events
            .push_back(ToSwarm::GenerateEvent(TopicEvent::Silent(server, silence)));
        self.forgive_all_or_none(topic);
    }

    /// Where all who are there are silent, one is as good as another, and the fault may be this node's: they are tried again.
    fn forgive_all_or_none(&mut self, topic: &TopicHash) {
        let subscribed = self.router.all_peers().filter(|(_, topics)| topics.contains(&topic));
        let servers = subscribed.filter_map(|(peer, _)| Some(self.followers.get(peer)?.server.clone()));
        let servers: Vec<OwnedServerName> = servers.collect();
        if servers.iter().all(|server| self.is_silent(server)) {
            for server in servers {
                self.silent.remove(&server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh_of(count: usize) -> (Bringers, Vec<PeerId>, Instant) {
        let mesh: Vec<PeerId> = (0..count).map(|_| PeerId::random()).collect();
        let (mut bringers, now) = (Bringers::default(), Instant::now());
        bringers.refresh(&mesh, &[], now);
        (bringers, mesh, now + TRIAL)
    }

    /// A message comes around the mesh; says who is silent then.
    fn around(bringers: &mut Bringers, now: Instant) -> Vec<PeerId> {
        bringers.came(false);
        bringers.failed(now, |_| false)
    }

    #[test]
    fn who_brings_nothing_of_what_comes_around_the_mesh_is_silent() {
        let (mut bringers, mesh, now) = mesh_of(4);
        for _ in 1..MAX_FAILURES {
            assert!(around(&mut bringers, now).is_empty());
            bringers.brought(&mesh[0]);
        }
        let silent: HashSet<PeerId> = around(&mut bringers, now).into_iter().collect();
        assert_eq!(silent, mesh[1..].iter().copied().collect());
    }

    #[test]
    fn who_has_just_come_has_time() {
        let (mut bringers, mesh, now) = mesh_of(2);
        let newcomer = PeerId::random();
        bringers.refresh(&[mesh[0], newcomer], &[], now);
        for _ in 1..MAX_FAILURES {
            around(&mut bringers, now);
        }
        assert_eq!(around(&mut bringers, now), [mesh[0]]);
    }

    /// Messages that overtake the mesh now and then, over years, are no sign.
    #[test]
    fn nobody_is_silent_while_the_mesh_does_its_work() {
        let (mut bringers, _, now) = mesh_of(4);
        for _ in 0..100 {
            assert!(around(&mut bringers, now).is_empty());
            for _ in 0..5 {
                bringers.came(true);
            }
            assert!(!bringers.in_trouble);
        }
    }

    #[test]
    fn trouble_comes_soon_and_goes_when_the_mesh_has_worked_for_a_while() {
        let (mut bringers, mesh, now) = mesh_of(4);
        for _ in 0..TROUBLE {
            assert!(!bringers.in_trouble);
            around(&mut bringers, now);
        }
        for _ in 0..CALM {
            assert!(bringers.in_trouble);
            bringers.came(true);
            mesh[..MESH_LOW].iter().for_each(|peer| bringers.brought(peer));
        }
        assert!(!bringers.in_trouble);
        // Those who brought nothing meanwhile are known, as long as enough others did.
        assert!(bringers.is_idle(&mesh[MESH_LOW]) && !bringers.is_idle(&mesh[0]));
        (0..MAX_IDLE).for_each(|_| bringers.came(true));
        assert!(mesh.iter().all(|peer| !bringers.is_idle(peer)));
    }
}
