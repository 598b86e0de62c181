//! Rests while the app is in the background: every connection is given up but one to a relay, through which whoever has
//! something to say still gets here. Stops nothing for good.

use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::{sync::oneshot, time::Instant};

use super::{Later, Owner};
use crate::session::Farewell;

/// For peers to agree that a connection ends; then it ends anyway.
const FAREWELL: Duration = Duration::from_millis(700);

/// A connection that was made while resting is given up when nothing was said on it for this long.
const SILENCE: Duration = Duration::from_secs(5);

/// Whether this node rests, and who waits for that.
#[derive(Default)]
pub(super) struct Rest {
    resting: bool,
    waiting: Option<oneshot::Sender<()>>,
}

impl Rest {
    /// Whether nobody is to be dialled.
    pub(super) fn is_on(&self) -> bool {
        self.resting
    }
}

impl Owner {
    /// Gives up every connection but one to a relay. The reply comes when that is done.
    pub(super) fn doze(&mut self, reply: oneshot::Sender<()>) {
        self.rest = Rest {
            resting: true,
            waiting: Some(reply),
        };
        self.visits.end();
        self.remember_spoken();
        // Peers are let go: nobody dials a node that rests but to say something.
        for entry in self.sessions.values().filter(|entry| entry.peer.is_some()) {
            entry.session.retire(Farewell::Idle);
        }
        self.later.spawn(async {
            tokio::time::sleep(FAREWELL).await;
            Later::Dozed
        });
        self.note_quiet();
    }

    /// A connection is gone: with the last one to a peer, those to relays can go too.
    pub(super) fn note_quiet(&mut self) {
        if self.rest.waiting.is_some() && !self.sessions.values().any(|entry| entry.peer.is_some()) {
            self.handle_dozed();
        }
    }

    /// Peers had time to take leave.
    pub(super) fn handle_dozed(&mut self) {
        let Some(reply) = self.rest.waiting.take() else { return };
        let kept = self.keep_one_place();
        let rest = self
            .sessions
            .iter()
            .filter(|(_, entry)| Some(entry.session.peer_id) != kept);
        let rest: Vec<_> = rest.map(|(id, _)| *id).collect();
        for id in rest {
            self.swarm.close_connection(id);
        }
        // Whoever waited may have given up.
        let _ = reply.send(());
    }

    /// Holds connections again, and dials whoever is missed.
    pub(super) fn wake(&mut self) {
        self.rest = Rest::default();
        // Everybody is met again, however short the rest was.
        self.visits.end();
        self.handle_network_changed();
    }

    /// While resting, a peer that has come looks whether it has anything to say.
    pub(super) fn watch_visitor(&mut self, id: ConnectionId) {
        if self.rest.is_on() {
            self.later.spawn(async move {
                tokio::time::sleep(SILENCE).await;
                Later::Visited(id)
            });
        }
    }

    /// A visitor had time to speak.
    pub(super) fn handle_visited(&mut self, id: ConnectionId) {
        let Some(entry) = self.sessions.get(&id).filter(|_| self.rest.is_on()) else {
            return;
        };
        if Instant::now().duration_since(entry.session.heard()) < SILENCE {
            self.watch_visitor(id);
        } else {
            entry.session.retire(Farewell::Idle);
        }
    }
}
