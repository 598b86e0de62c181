//! Meets the contacts when this node comes online or the network changes: each once, a few at a time, those first with whom something
//! was said last. So heads are compared with everybody, and what waits on either side is delivered. Who stays is for `keeping`.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use ruma::{OwnedServerName, ServerName};
use tokio::time::Instant;

use super::{Later, Owner};

/// Visits that are begun though the budget is used up, so that they come to an end.
const MIN_VISITS: usize = 2;

/// Who was connected this short a time ago need not be met again. What failed to reach us since is tried again soon: senders
/// wait for about as long as they have failed.
const LATELY: Duration = Duration::from_secs(2 * 60);

/// Servers of which it is remembered when they were connected.
const MAX_MET: usize = 1024;

/// Who is still to be met.
#[derive(Default)]
pub(super) struct Visits {
    waiting: VecDeque<OwnedServerName>,
    /// When a server came or went last.
    met: HashMap<OwnedServerName, Instant>,
}

impl Visits {
    /// A server is connected, or was until now.
    pub(super) fn note_met(&mut self, server: &ServerName) {
        let now = Instant::now();
        if self.met.len() >= MAX_MET {
            self.met.retain(|_, met| now < *met + LATELY);
        }
        if self.met.len() < MAX_MET {
            self.met.insert(server.to_owned(), now);
        }
    }

    /// Nobody is to be met any more; from the next time on, everybody is.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    fn was_met_lately(&self, server: &ServerName, now: Instant) -> bool {
        self.met.get(server).is_some_and(|met| now < *met + LATELY)
    }
}

impl Owner {
    /// Asks the directory whom to meet.
    pub(super) fn look_up_contacts(&mut self) {
        if self.rest.is_on() {
            return;
        }
        let shared = self.shared.clone();
        self.later.spawn(async move {
            match shared.own.directory.contacts().await {
                Ok(contacts) => Later::Contacts(contacts),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "contacts cannot be read");
                    Later::Done
                }
            }
        });
    }

    /// Begins to meet the contacts that are not connected.
    pub(super) fn visit(&mut self, mut contacts: Vec<OwnedServerName>) {
        // One that was added while the directory was read may not be among them.
        let waiting = self.visits.waiting.iter();
        let added: Vec<_> = waiting.filter(|server| !contacts.contains(server)).cloned().collect();
        contacts.splice(0..0, added);
        self.keeping.set_order(&contacts);
        self.contacts = contacts.iter().cloned().collect();
        let (now, most) = (Instant::now(), self.shared.limits.budget.contacts);
        let missing = contacts
            .into_iter()
            .take(most)
            .filter(|server| self.peers.get(server).is_none());
        self.visits.waiting = missing
            .filter(|server| !self.visits.was_met_lately(server, now))
            .collect();
        self.visit_next();
    }

    /// Dials the next contacts, as far as the budget goes. Those that are not reached are dialled again like lost ones.
    pub(super) fn visit_next(&mut self) {
        if self.rest.is_on() || self.stop.is_cancelled() {
            return;
        }
        let budget = &self.shared.limits.budget;
        let most = budget.idle + budget.visits;
        while self.attempts() < MIN_VISITS || self.attempts() + self.peers.count() < most {
            let Some(server) = self.visits.waiting.pop_front() else {
                return;
            };
            if self.peers.get(&server).is_none() {
                self.insist_on(&server);
                self.connect(server, None);
            }
        }
    }

    /// Meets one contact next, and dials it again with growing pauses while it is not reached.
    pub(super) fn dial_contact(&mut self, server: OwnedServerName) {
        self.contacts.insert(server.clone());
        self.keeping.put_first(&server);
        self.visits.waiting.retain(|waiting| *waiting != server);
        self.visits.waiting.push_front(server);
        self.visit_next();
    }
}
