//! Ways into rooms that were cut short: a server was asked to let a user in, and nobody knows whether it did. They are gone
//! to their end, since joining and knocking again change nothing; where that leads nowhere, the room is left.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{CheckedPdu, membership_of};
use kith_store::{Entry, OwedLeave};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId, events::room::member::MembershipState};

use super::{
    Rooms,
    enter::Way,
    owed::{Owing, may_come_back},
};
use crate::{Error, network::NetworkError};

/// How often a server that lets a user in may tell of the room what cannot be.
const MOST_TRIES: u32 = 5;

/// How often each way was gone in vain, though somebody answered.
pub(super) type Tries = BTreeMap<(OwnedUserId, OwnedRoomId), u32>;

impl Rooms {
    /// Remembers that a server is about to be told that a user enters a room.
    pub(super) async fn begin_entry(
        &self,
        user: &UserId,
        server: &ServerName,
        event: &CheckedPdu,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let entry = Entry {
            user_id: user.to_owned(),
            room_id: event.room_id().to_owned(),
            knock: membership_of(event.pdu()) == Some(MembershipState::Knock),
            servers: vec![server.to_owned()],
            version: event.version().clone(),
            event_id: event.event_id().to_owned(),
            reason,
            over: false,
        };
        self.ctx.store.write(move |txn| Ok(txn.begin_entry(entry)?)).await
    }

    /// Takes in why a server did not let a user in: if it answered so, it does not believe that the user is there. Otherwise
    /// it will be asked again.
    pub(super) async fn note_unbelieved(
        &self,
        user: &UserId,
        room: &RoomId,
        server: &ServerName,
        error: &Error,
    ) -> Result<(), Error> {
        // What fails on the other side may have been done before.
        let refused = matches!(error, Error::Network(error) if error.is_final());
        if !refused {
            return Ok(());
        }
        let gone = is_gone(error);
        let (user, room, server) = (user.to_owned(), room.to_owned(), server.to_owned());
        let write = self.ctx.store.write(move |txn| match gone {
            true => Ok(txn.entry_told_elsewhere(&user, &room, &server)?),
            false => Ok(txn.entry_refused(&user, &room, &server)?),
        });
        write.await
    }

    /// A server speaks of rooms that this node is not in. Where one of them is being entered, that server may believe that the
    /// way is complete: it is gone through it, or the server told that the user is not there.
    pub(in crate::homeserver) async fn note_believer(
        &self,
        server: &ServerName,
        rooms: BTreeSet<OwnedRoomId>,
    ) -> Result<(), Error> {
        if rooms.is_empty() {
            return Ok(());
        }
        let entered = self.ctx.store.read(|txn| txn.entries()).await?;
        let news = |entry: &Entry| rooms.contains(&entry.room_id) && !entry.servers.iter().any(|told| told == server);
        let news: Vec<Entry> = entered.into_iter().filter(news).collect();
        if news.is_empty() {
            return Ok(());
        }
        let server = server.to_owned();
        let write = self.ctx.store.write(move |txn| {
            for entry in news {
                match entry.over {
                    true => txn.owe_leave(&OwedLeave {
                        user_id: entry.user_id,
                        room_id: entry.room_id,
                        servers: vec![server.clone()],
                        reason: entry.reason,
                    })?,
                    false => txn.entry_believed(&entry.user_id, &entry.room_id, &server)?,
                }
            }
            Ok::<_, Error>(())
        });
        write.await?;
        self.owing.notify_one();
        Ok(())
    }

    /// A user wants to leave a room that is still being entered. Whether there is such a room.
    pub(super) async fn take_back_entry(
        &self,
        user: &UserId,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<bool, Error> {
        let turn = self.entering.take(room).await;
        let (user, room) = (user.to_owned(), room.to_owned());
        let write = self.ctx.store.write(move |txn| {
            let Some(entry) = txn.entry(&user, &room)?.filter(|entry| !entry.over) else {
                return Ok::<_, Error>(false);
            };
            txn.entry_over(&user, &room)?;
            txn.owe_leave(&OwedLeave {
                user_id: user,
                room_id: room,
                servers: entry.servers,
                reason,
            })?;
            Ok(true)
        });
        let taken = write.await?;
        drop(turn);
        if taken {
            self.owing.notify_one();
        }
        Ok(taken)
    }

    /// Goes every way that was cut short once more.
    pub(super) async fn finish_entries(&self, tries: &mut Tries, owing: &mut Owing) -> Result<(), Error> {
        let entries = self.ctx.store.read(|txn| txn.entries()).await?;
        tries.retain(|(user, room), _| {
            entries
                .iter()
                .any(|entry| entry.user_id == *user && entry.room_id == *room)
        });
        // Those that nobody is known to believe wait for somebody who does.
        for entry in entries.into_iter().filter(|entry| !entry.servers.is_empty()) {
            let (user, room) = (entry.user_id.clone(), entry.room_id.clone());
            let outcome = self.finish(&entry).await;
            let Err(error) = outcome else {
                continue;
            };
            tracing::debug!(%error, %user, %room, "a room is still being entered");
            if matches!(error, Error::Store(_) | Error::Internal(..)) {
                owing.again = true;
                continue;
            }
            let (wanted, of) = (room.clone(), user.clone());
            let left = self.ctx.store.read(move |txn| txn.entry(&of, &wanted)).await?;
            let Some(left) = left else { continue };
            let tried = tries.entry((user.clone(), room.clone())).or_default();
            *tried += u32::from(!may_come_back(&error) || is_broken(&error));
            if *tried >= MOST_TRIES {
                self.take_back_entry(&user, &room, None).await?;
            }
            owing.away.extend(left.servers);
        }
        Ok(())
    }

    async fn finish(&self, entry: &Entry) -> Result<(), Error> {
        let (user, room) = (&entry.user_id, &entry.room_id);
        let _turn = self.entering.take(room).await;
        let (of, wanted) = (user.clone(), room.clone());
        let now = self.ctx.store.read(move |txn| txn.entry(&of, &wanted)).await?;
        if now.as_ref() != Some(entry) {
            // Somebody was quicker.
            return Ok(());
        }
        let (servers, reason) = (entry.servers.clone(), entry.reason.clone());
        if !entry.knock {
            self.join_in_turn(user, room, servers, reason).await?;
        } else {
            let membership = self.standing(user, room).await?.membership;
            if !matches!(membership, Some(MembershipState::Join | MembershipState::Invite)) {
                self.enter_through(user, room, &servers, Way::Knock, reason).await?;
            }
        }
        let (user, room) = (user.clone(), room.clone());
        self.ctx.store.write(move |txn| Ok(txn.end_entry(&user, &room)?)).await
    }
}

/// Whether a server answered that it is not in the room: it says nothing of what others in it believe.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Network(NetworkError::Refused { status: 404, .. }))
}

/// Whether a server answered what cannot be.
fn is_broken(error: &Error) -> bool {
    matches!(error, Error::Network(NetworkError::Broken { .. }))
}
