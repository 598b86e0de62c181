//! What lacks in rooms, and whom it is pulled from. Nobody is told of anything here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{OwnedEventId, OwnedServerName, RoomId, ServerName};

use super::{CatchUp, Task};
use crate::{backoff, limits::MAX_WATCHED};

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// Everything wanted is held now.
    Done,
    /// Much is held now; more is to come.
    Postponed,
    /// The server answered, and does not have it.
    Lacking,
    /// The server did not answer.
    Unanswered,
    /// Nobody is there to be asked.
    Nobody,
    /// The room is not this server's business any more.
    Gone,
}

/// What lacks in a room.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) events: BTreeMap<OwnedEventId, BTreeSet<OwnedServerName>>,
    pub(super) depths: BTreeMap<OwnedServerName, u64>,
    pub(super) tried: BTreeSet<OwnedServerName>,
    /// Those that answered and do not have it.
    pub(super) lacking: BTreeSet<OwnedServerName>,
    pub(super) busy: bool,
    pub(super) failures: u32,
    pub(super) not_before: Duration,
}

impl CatchUp {
    /// Takes in how a pull ended. `held`: the wanted events that are held now.
    pub fn handle_pulled(
        &mut self,
        room: &RoomId,
        from: Option<&ServerName>,
        outcome: Pulled,
        held: &[OwnedEventId],
        now: Duration,
        random: u64,
    ) {
        self.running = self.running.saturating_sub(1);
        let Some(wanted) = self.wanted.get_mut(room) else {
            return;
        };
        wanted.busy = false;
        wanted.events.retain(|id, _| !held.contains(id));
        let events = &wanted.events;
        wanted
            .depths
            .retain(|teller, _| events.values().any(|tellers| tellers.contains(teller)));
        wanted.tried.extend(from.map(ToOwned::to_owned));
        let given_up = match outcome {
            Pulled::Done | Pulled::Postponed => {
                (wanted.failures, wanted.not_before) = (0, now);
                wanted.tried.clear();
                wanted.lacking.clear();
                false
            }
            Pulled::Lacking => {
                wanted.not_before = now;
                // Asked again as the last resort, it was, and did not help.
                !from.is_some_and(|from| wanted.lacking.insert(from.to_owned()))
            }
            Pulled::Unanswered => {
                let tried = &wanted.tried;
                if wanted.depths.keys().all(|teller| tried.contains(teller)) {
                    wanted.failures += 1;
                    wanted.not_before = now + backoff(wanted.failures, random);
                    wanted.tried.clone_from(&wanted.lacking);
                } else {
                    wanted.not_before = now;
                }
                false
            }
            Pulled::Nobody | Pulled::Gone => {
                self.wanted.remove(room);
                return;
            }
        };
        if given_up {
            for (id, tellers) in &wanted.events {
                self.hopeless
                    .extend(tellers.iter().map(|teller| (teller.clone(), id.clone())));
            }
            while self.hopeless.len() > MAX_WATCHED {
                self.hopeless.pop_first();
            }
        }
        if given_up || wanted.events.is_empty() {
            self.wanted.remove(room);
        }
    }

    /// The pull that has been due for the longest time.
    pub(super) fn poll_pull(&mut self, now: Duration) -> Option<Task> {
        let due = self
            .wanted
            .iter_mut()
            .filter(|(_, wanted)| !wanted.busy && wanted.not_before <= now);
        let (room, wanted) = due.min_by_key(|(_, wanted)| wanted.not_before)?;
        wanted.busy = true;
        Some(Task::Pull {
            room: room.clone(),
            wanted: wanted.events.keys().cloned().collect(),
            tellers: wanted.depths.clone(),
            tried: wanted.tried.clone(),
            lacking: wanted.lacking.clone(),
        })
    }
}

/// Whom to ask for what lacks: those who told of it, then other members that are connected, each once; when all answered
/// that they do not have it, a teller again, and that now the state before what does not connect may be told.
pub fn whom_to_ask(
    tellers: &BTreeMap<OwnedServerName, u64>,
    connected: &BTreeSet<OwnedServerName>,
    tried: &BTreeSet<OwnedServerName>,
    lacking: &BTreeSet<OwnedServerName>,
) -> Option<(OwnedServerName, bool)> {
    let tellers = || tellers.keys().filter(|server| connected.contains(*server));
    let untried = tellers().chain(connected).find(|server| !tried.contains(*server));
    if let Some(server) = untried {
        return Some((server.clone(), false));
    }
    let all_lack = connected.iter().all(|server| lacking.contains(server));
    tellers().next().map(|server| (server.clone(), all_lack))
}
