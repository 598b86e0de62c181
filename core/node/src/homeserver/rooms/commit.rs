//! The central line: events are made, judged, kept and queued for the other servers of their rooms in one commit, and
//! only then is anybody told. It holds no rule of its own.

use std::collections::BTreeSet;

use kith_engine::{
    Applied, BuildError, CheckedPdu, Draft, EventStatus, Outcome, Pdu, PduError, Signer, build_event, membership_of,
    receive,
};
use kith_identity::NodeKey;
use kith_store::{StoreError, WriteTxn};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, RoomId, ServerName, UserId, api::error::ErrorKind,
    events::room::member::MembershipState, exports::http::StatusCode,
};
use serde_json::value::RawValue;

use super::{Rooms, invite::delayed_invite_slot};
use crate::{
    Error,
    homeserver::{
        Context,
        keys::announce,
        topics::{Plan, Publication, ToldTopic, topic_slot},
    },
};

/// A commit being put together: whatever its closure does is kept together or not at all.
pub(super) struct Commit<'a, 't> {
    /// The transaction.
    pub(super) txn: &'a WriteTxn<'t>,
    rooms: &'a Rooms,
    /// The time of everything in this commit.
    pub(super) now: MilliSecondsSinceUnixEpoch,
    /// Servers for which something was queued.
    wake: BTreeSet<OwnedServerName>,
    /// Events for their rooms' topics.
    publications: Vec<Publication>,
}

impl Rooms {
    /// Runs a job on the writer. Once its commit is on disk, the servers for which it queued something are served.
    pub(super) async fn commit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Commit<'_, '_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let rooms = self.clone();
        let write = self.ctx.store.write(move |txn| {
            let mut commit = Commit::new(txn, &rooms);
            let value = job(&mut commit)?;
            Ok::<_, Error>((value, commit.finish()?))
        });
        let (value, (wake, publications)) = write.await?;
        self.outbox.wake(wake);
        self.topics.publish(publications);
        Ok(value)
    }
}

impl<'a, 't> Commit<'a, 't> {
    fn new(txn: &'a WriteTxn<'t>, rooms: &'a Rooms) -> Self {
        Self {
            txn,
            rooms,
            now: rooms.ctx.world.now(),
            wake: BTreeSet::new(),
            publications: Vec::new(),
        }
    }

    /// Queues what follows from the whole commit: servers that share a room with a local user only now are told of the
    /// user's devices, after the events that say so. Returns the servers to wake and the events to publish once the
    /// transaction is on disk.
    fn finish(mut self) -> Result<(BTreeSet<OwnedServerName>, Vec<Publication>), Error> {
        self.wake.extend(announce::due_lists(self.txn)?);
        Ok((self.wake, self.publications))
    }

    /// Makes an event of a local user and keeps it.
    pub(super) fn make(&mut self, room: &RoomId, draft: &Draft) -> Result<Pdu, Error> {
        let checked = build_event(&**self.txn, room, draft, self.signer(), self.now)?;
        self.accept(&checked)
    }

    /// Whether a user's home is this node.
    pub(super) fn is_local(&self, user: &UserId) -> bool {
        self.rooms.ctx.is_local(user)
    }

    /// What signs this node's events.
    pub(super) fn signer(&self) -> Signer<'a, NodeKey> {
        signer(&self.rooms.ctx)
    }

    /// Keeps an event that is queued for nobody: [`Rooms::keep`].
    pub(super) fn keep(&self, applied: &Applied) -> Result<(), Error> {
        self.rooms.keep(self.txn, applied).map(drop)
    }

    /// Notes that this node has come to be in a room: what other servers told of it no longer counts where the room
    /// itself tells.
    pub(super) fn entered(&self, room: &RoomId) -> Result<(), Error> {
        for user in self.txn.outside_users(room)? {
            if self.txn.member(room, &user)?.is_some() {
                self.txn.remove_outside_membership(&user, room)?;
            }
        }
        Ok(())
    }

    /// Judges and keeps an event, and queues it for the other servers in its room. 403 `M_FORBIDDEN` if it is not
    /// accepted: nothing is kept then, since its author is told.
    pub(super) fn accept(&mut self, checked: &CheckedPdu) -> Result<Pdu, Error> {
        self.accept_from(checked, None)
    }

    /// [`Commit::accept`] of an event that this server sent, which needs not be sent back to it.
    pub(super) fn accept_from(&mut self, checked: &CheckedPdu, from: Option<&ServerName>) -> Result<Pdu, Error> {
        let mut servers = self.servers(checked.room_id())?;
        let applied = match receive(&**self.txn, checked)? {
            Outcome::Applied(applied) => applied,
            Outcome::Known => return Ok(checked.pdu().clone()),
            Outcome::Missing(_) => return Err(Error::not_found("events before this one are not known here")),
        };
        if applied.status != EventStatus::Accepted {
            let reason = applied
                .reason
                .unwrap_or_else(|| "the room does not allow it".to_owned());
            return Err(Error::forbidden(reason));
        }
        if let Some(server) = self.concerned(&applied.pdu)? {
            self.txn.drop_edu(&server, &delayed_invite_slot(&applied.pdu))?;
            servers.insert(server);
        }
        self.keep(&applied)?;
        if applied.pdu.state_key().is_some() {
            // Members may have come, and those who have gone are told so.
            servers.extend(self.servers(checked.room_id())?);
        }
        servers.retain(|server| !self.rooms.ctx.is_self(server) && Some(&**server) != from);
        self.pass_on(&applied.pdu, servers)?;
        if let Some(from) = from {
            self.hand_out_topic(&applied.pdu, from)?;
        }
        Ok(applied.pdu)
    }

    /// Has servers sent an event: over the room's topic, if it has one that can be used, else each by itself.
    fn pass_on(&mut self, pdu: &Pdu, servers: BTreeSet<OwnedServerName>) -> Result<(), Error> {
        if servers.is_empty() {
            return Ok(());
        }
        let plan = self.rooms.topics.plan(self.txn, pdu.room_id(), &servers, self.now)?;
        let Some(Plan { secret, direct, rest }) = plan else {
            let servers: Vec<OwnedServerName> = servers.into_iter().collect();
            self.txn.enqueue_pdu(&servers, pdu.event_id())?;
            self.wake.extend(servers);
            return Ok(());
        };
        self.txn.enqueue_pdu(&direct, pdu.event_id())?;
        self.txn.enqueue_pdu(&rest, pdu.event_id())?;
        self.wake.extend(direct);
        self.publications.push(Publication {
            room: pdu.room_id().to_owned(),
            secret,
            event: pdu.event_id().to_owned(),
            json: pdu.to_raw(),
            rest,
        });
        Ok(())
    }

    /// Whoever was let in is told the secret of the room's topic.
    fn hand_out_topic(&mut self, pdu: &Pdu, to: &ServerName) -> Result<(), Error> {
        if membership_of(pdu) != Some(MembershipState::Join) {
            return Ok(());
        }
        if let Some(told) = ToldTopic::of(self.txn, pdu.room_id())? {
            let edu = told.edu(pdu.room_id())?;
            self.enqueue_edu(to, &topic_slot(pdu.room_id()), &edu)?;
        }
        Ok(())
    }

    /// Queues news for another server, in place of older ones in the same slot.
    pub(super) fn enqueue_edu(&mut self, server: &ServerName, slot: &str, edu: &RawValue) -> Result<(), Error> {
        self.txn.enqueue_edu_in(server, slot, edu)?;
        self.wake.insert(server.to_owned());
        Ok(())
    }

    fn servers(&self, room: &RoomId) -> Result<BTreeSet<OwnedServerName>, Error> {
        Ok(self.txn.joined_servers(room)?.into_iter().collect())
    }

    /// The server of a user who is turned away before ever having joined: it is in the room's member list by nobody
    /// else, but its user waits for an answer.
    fn concerned(&self, pdu: &Pdu) -> Result<Option<OwnedServerName>, Error> {
        let gone = matches!(membership_of(pdu), Some(MembershipState::Leave | MembershipState::Ban));
        let Some(Ok(user)) = pdu.state_key().filter(|_| gone).map(UserId::parse) else {
            return Ok(None);
        };
        let before = self.txn.membership(pdu.room_id(), &user)?;
        let waiting = matches!(before, MembershipState::Invite | MembershipState::Knock);
        Ok(waiting.then(|| user.server_name().to_owned()))
    }
}

/// What signs this node's events.
pub(super) fn signer(ctx: &Context) -> Signer<'_, NodeKey> {
    Signer {
        server: &ctx.server_name,
        key: &ctx.node_key,
    }
}

impl From<BuildError<StoreError>> for Error {
    fn from(error: BuildError<StoreError>) -> Self {
        match error {
            BuildError::Forbidden(reason) => Error::forbidden(reason),
            BuildError::UnknownTarget(_) => Error::not_found(error.to_string()),
            BuildError::TooLarge(_) => {
                Error::refused(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, error.to_string())
            }
            BuildError::Malformed(_) => Error::bad_json(error.to_string()),
            BuildError::Room(error) => error.into(),
        }
    }
}

impl From<PduError> for Error {
    fn from(error: PduError) -> Self {
        match error {
            PduError::TooLarge(_) => {
                Error::refused(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, error.to_string())
            }
            PduError::UnsupportedVersion(_) => unsupported_version(&error.to_string()),
            _ => Error::invalid_param(error.to_string()),
        }
    }
}

/// 400 `M_UNSUPPORTED_ROOM_VERSION`.
pub(super) fn unsupported_version(message: &str) -> Error {
    Error::refused(StatusCode::BAD_REQUEST, ErrorKind::UnsupportedRoomVersion, message)
}
