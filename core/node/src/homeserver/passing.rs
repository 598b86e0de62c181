//! The counter of what passes in memory only: typing and presence. It is the second half of a sync token, and wakes those
//! who wait for news. It holds no news itself.

use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::World;

/// The counter. Cheap to clone; clones are the same counter.
#[derive(Debug, Clone)]
pub struct Passing {
    counter: Arc<watch::Sender<u64>>,
    began: u64,
}

impl Passing {
    /// Starts at the time of day in milliseconds, so that no restart makes it go back.
    pub fn new(world: &World) -> Self {
        let began = world.now().get().into();
        Self {
            counter: Arc::new(watch::Sender::new(began)),
            began,
        }
    }

    /// Whether a number was given out before the node last started. What passed then is forgotten.
    pub fn is_forgotten(&self, number: u64) -> bool {
        number < self.began
    }

    /// Takes the next number. `keep` must put the news where readers look for them: nobody sees the number before that
    /// is done, so that whoever sees it finds the news. `keep` must not use the counter.
    pub fn advance(&self, keep: impl FnOnce(u64)) {
        self.counter.send_modify(|counter| {
            *counter += 1;
            keep(*counter);
        });
    }

    /// The last number given out; changes wake whoever watches.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.counter.subscribe()
    }

    /// The last number given out.
    pub fn last(&self) -> u64 {
        *self.counter.borrow()
    }
}
