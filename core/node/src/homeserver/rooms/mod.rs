//! Rooms as their members change them: creating, inviting, joining, leaving, sending, naming and publishing. What a room
//! looks like to a reader is the timeline's business, and what is allowed the engine's.

mod aliases;
mod apart;
mod commit;
mod create;
mod directory;
mod enter;
mod entries;
mod heads;
mod invite;
mod join;
mod keep;
mod leave;
mod member;
mod outside;
mod owed;
mod resident;
mod send;
mod spaces;
pub(crate) mod state;
mod summary;
#[cfg(test)]
mod tests;
mod upgrade;

pub use directory::{PublicRooms, PublicRoomsQuery};
pub(crate) use invite::{DELAYED_INVITE, DelayedInvite};
pub use resident::Handshake;

use std::sync::Arc;

use ruma::OwnedRoomId;
use tokio::sync::Notify;

use super::{Context, News, Outbox, Profiles, Push, ServerKeys, Topics, tasks::Tasks, turns::Turns};

/// The rooms service. Cheap to clone.
#[derive(Clone)]
pub struct Rooms {
    ctx: Context,
    outbox: Outbox,
    topics: Topics,
    server_keys: ServerKeys,
    profiles: Profiles,
    push: Push,
    news: News,
    /// Whoever enters a room takes turns with others that enter the same one.
    entering: Turns<OwnedRoomId>,
    /// Walks through spaces that clients may continue.
    walks: Arc<spaces::Walks>,
    /// Wakes the task that tells of leaves when there is a new one to tell.
    owing: Arc<Notify>,
    tasks: Tasks,
}

impl Rooms {
    /// Makes the service.
    pub fn new(
        ctx: Context,
        outbox: Outbox,
        topics: Topics,
        server_keys: ServerKeys,
        profiles: Profiles,
        push: Push,
        news: News,
    ) -> Self {
        Self {
            ctx,
            outbox,
            topics,
            server_keys,
            profiles,
            push,
            news,
            entering: Turns::default(),
            walks: Arc::default(),
            owing: Arc::default(),
            tasks: Tasks::new(),
        }
    }
}
