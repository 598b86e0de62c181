//! What happens in rooms beside their events: who is typing, who has read how far. It is never part of a room's history.

mod by_topic;
mod receipts;
#[cfg(test)]
mod tests;
mod typing;

pub use receipts::ReadMark;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kith_store::ReadTxn;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UInt, UserId,
    api::federation::transactions::edu::{Edu, TypingContent},
    events::room::member::MembershipState,
};
use serde_json::value::to_raw_value;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};

use super::{Context, Outbox, Passing, ServerKeys, Topics, rooms::state::find_room, tasks::Tasks, topics::TopicEdu};
use crate::{Error, network::PeerEvent};
use by_topic::Heard as HeardByTopic;
use typing::{Heard, Typing};

/// The longest that one word of a client counts.
const MAX_TYPING: Duration = Duration::from_secs(120);

/// How long another server's word counts; while typing goes on it repeats it.
const REMOTE_TYPING: Duration = Duration::from_secs(60);

/// How far back a peer is told of receipts that comes up for the first time.
const TOLD_AFTER_START: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a peer may have been gone before that was noticed.
const NOTICED_LATE: Duration = Duration::from_secs(3 * 60);

/// Peers of which it is remembered since when they are gone.
const MAX_GONE: usize = 1_000;

/// The service of typing and receipts.
#[derive(Clone)]
pub struct Ephemeral {
    ctx: Context,
    outbox: Outbox,
    server_keys: ServerKeys,
    topics: Topics,
    typing: Arc<Typing>,
    heard: Arc<HeardByTopic>,
    tasks: Tasks,
}

impl Ephemeral {
    /// Makes the service; it numbers its changes by the counter of what passes in memory.
    pub fn new(ctx: Context, outbox: Outbox, server_keys: ServerKeys, topics: Topics, passing: Passing) -> Self {
        Self {
            ctx,
            outbox,
            server_keys,
            topics,
            typing: Arc::new(Typing::new(passing)),
            heard: Arc::default(),
            tasks: Tasks::new(),
        }
    }

    /// Who types in a room.
    pub fn typing_in(&self, room: &RoomId) -> Vec<OwnedUserId> {
        self.typing.in_room(room)
    }

    /// The rooms where the list of who types changed after a number of [`Passing`], with the lists: empty ones too.
    pub fn typing_since(&self, after: u64) -> Vec<(OwnedRoomId, Vec<OwnedUserId>)> {
        self.typing.since(after)
    }

    /// Notes that a local user types for a while, or has ended, and tells the room's other servers.
    ///
    /// Refuses with `M_FORBIDDEN` users who are not in the room.
    pub async fn set_typing(&self, user: &UserId, room: &RoomId, lasting: Option<Duration>) -> Result<(), Error> {
        if !self.is_joined(user, room).await? {
            return Err(Error::forbidden("the user is not in the room"));
        }
        let heard = self.typing.note(
            room,
            user,
            lasting.map(|lasting| lasting.min(MAX_TYPING)),
            Instant::now(),
        );
        match heard {
            Heard::Began => {
                self.watch_end(user, room);
                self.tell(user, room, true).await
            }
            Heard::GoesOn => self.tell(user, room, true).await,
            Heard::Ended => self.tell(user, room, false).await,
            Heard::Nothing => Ok(()),
        }
    }

    /// `m.typing`: a user of another server types, or has ended. Users who are not in the room, or whose server its access
    /// list keeps out, are passed over.
    pub async fn handle_typing(&self, peer: &ServerName, content: TypingContent) -> Result<(), Error> {
        let (user, room) = (&content.user_id, &content.room_id);
        if user.server_name() != peer {
            return Ok(());
        }
        let (asked, of) = (user.clone(), room.clone());
        let heard = self.ctx.store.read(move |txn| is_heard(txn, &of, &asked));
        if !heard.await? {
            return Ok(());
        }
        let heard = self
            .typing
            .note(room, user, content.typing.then_some(REMOTE_TYPING), Instant::now());
        if heard == Heard::Began {
            self.watch_end(user, room);
        }
        Ok(())
    }

    /// Tells peers that come up what they missed, from now on.
    pub fn start(&self) {
        let events = self.ctx.network.events();
        let service = self.for_task();
        self.tasks.spawn(async move { service.watch_peers(events).await });
    }

    async fn watch_peers(&self, mut events: broadcast::Receiver<PeerEvent>) {
        let ago = |reach: Duration| {
            let reach = UInt::new_saturating(reach.as_secs() * 1_000);
            MilliSecondsSinceUnixEpoch(self.ctx.world.now().get().saturating_sub(reach))
        };
        // Of who went before this node was started nothing is known.
        let mut gone: BTreeMap<OwnedServerName, MilliSecondsSinceUnixEpoch> = BTreeMap::new();
        loop {
            match events.recv().await {
                Ok(PeerEvent::Up(server)) => {
                    let since = gone.remove(&server).unwrap_or_else(|| ago(TOLD_AFTER_START));
                    if let Err(error) = self.tell_receipts(&server, since).await {
                        tracing::debug!(%server, %error, "a server was not told of receipts");
                    }
                }
                Ok(PeerEvent::LetGo(server) | PeerEvent::Down(server)) => {
                    if gone.len() >= MAX_GONE {
                        gone.pop_first();
                    }
                    gone.insert(server, ago(NOTICED_LATE));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// The service as its own tasks hold it.
    fn for_task(&self) -> Self {
        Self {
            tasks: self.tasks.for_task(),
            ..self.clone()
        }
    }

    /// Ends all tasks.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    async fn is_joined(&self, user: &UserId, room: &RoomId) -> Result<bool, Error> {
        let (user, room) = (user.to_owned(), room.to_owned());
        let membership = self.ctx.store.read(move |txn| txn.membership(&room, &user)).await?;
        Ok(membership == MembershipState::Join)
    }

    /// Ends a user's typing when its time is over.
    fn watch_end(&self, user: &UserId, room: &RoomId) {
        let (user, room) = (user.to_owned(), room.to_owned());
        let service = self.for_task();
        self.tasks.spawn(async move {
            while let Some(until) = service.typing.until(&room, &user) {
                tokio::time::sleep_until(until).await;
                if service.typing.expire(&room, &user, Instant::now()) == Heard::Ended {
                    let told = match service.ctx.is_local(&user) {
                        true => service.tell(&user, &room, false).await,
                        false => Ok(()),
                    };
                    if let Err(error) = told {
                        tracing::debug!(%error, "other servers were not told that typing ended");
                    }
                    return;
                }
            }
        });
    }

    async fn tell(&self, user: &UserId, room: &RoomId, typing: bool) -> Result<(), Error> {
        let (of, topics, now) = (room.to_owned(), self.topics.clone(), self.ctx.world.now());
        let read = self.ctx.store.read(move |txn| {
            let by_topic = topics.usable(txn, &of, now)?.is_some();
            Ok::<_, Error>((by_topic, txn.joined_servers(&of)?))
        });
        let (by_topic, servers): (bool, Vec<OwnedServerName>) = read.await?;
        let edu = Edu::Typing(TypingContent::new(room.to_owned(), user.to_owned(), typing));
        let edu =
            to_raw_value(&edu).map_err(|error| Error::Internal("an EDU did not serialise", Some(Box::new(error))))?;
        let slot = format!("m.typing {room} {user}");
        if by_topic {
            let lasting = false;
            self.topics.tell(room, TopicEdu { slot, edu, lasting });
        } else {
            self.outbox.tell(servers, &slot, &edu);
        }
        Ok(())
    }
}

/// Whether what another server's user does in a room counts there: the user is in it, and its access list does not keep
/// the server out.
///
/// Server-server API, "Server Access Control Lists (ACLs)".
fn is_heard(txn: &ReadTxn<'_>, room: &RoomId, user: &UserId) -> Result<bool, Error> {
    if txn.membership(room, user)? != MembershipState::Join {
        return Ok(false);
    }
    match find_room(txn, room)? {
        Some(room) => Ok(room.allows_server(user.server_name())?),
        None => Ok(false),
    }
}
