//! Events of other servers: verified, fitted into their rooms' history, and kept. What they lack before they can be judged
//! is fetched, within limits. What is allowed is the engine's business, and EDUs are not handled here.

mod ask;
mod earlier;
mod gap;
mod history;
mod pull;
mod reconcile;
mod topic;
mod transaction;
mod unconnected;

pub(super) use pull::not_in_graph;
pub use transaction::Answer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedServerName};
use tokio::sync::Semaphore;

use super::{Context, News, Outbox, Rooms, ServerKeys, Topics, tasks::Tasks, turns::Turns};

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Incoming {
    ctx: Context,
    outbox: Outbox,
    server_keys: ServerKeys,
    rooms: Rooms,
    topics: Topics,
    news: News,
    /// A server's transactions are taken one after another: a repetition waits for what it repeats.
    transactions: Turns<OwnedServerName>,
    /// A room's gaps are filled one after another, since what fills one often fills the next.
    filling: Turns<OwnedRoomId>,
    /// Places for what comes over topics before its past.
    heard_early: Arc<Semaphore>,
    tasks: Tasks,
}

impl Incoming {
    /// Makes the service.
    pub fn new(
        ctx: Context,
        outbox: Outbox,
        server_keys: ServerKeys,
        rooms: Rooms,
        topics: Topics,
        news: News,
    ) -> Self {
        Self {
            ctx,
            outbox,
            server_keys,
            rooms,
            topics,
            news,
            transactions: Turns::default(),
            filling: Turns::default(),
            heard_early: Arc::new(Semaphore::new(topic::MAX_HEARD_EARLY)),
            tasks: Tasks::new(),
        }
    }
}
