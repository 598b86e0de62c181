//! The one place that keeps an event that the engine has judged, whether it was made here or came from another node,
//! and tells whoever must know within the same commit. It sends nothing and judges nothing.

use kith_engine::{Applied, EventStatus, Pdu, membership_of};
use kith_store::{SavedEvent, WriteTxn};
use ruma::{UserId, events::room::member::MembershipState};

use super::Rooms;
use crate::Error;

impl Rooms {
    /// Saves an event and what follows from it here. Call it within the write in which the event was judged.
    pub fn keep(&self, txn: &WriteTxn<'_>, applied: &Applied) -> Result<SavedEvent, Error> {
        let saved = txn.save_event(applied)?;
        if applied.status == EventStatus::Accepted && !applied.outlier && !applied.history {
            self.move_member(txn, applied)?;
        }
        self.push.note_event(txn, applied, &saved)?;
        self.news.note_kept(applied);
        if let Some(seq) = saved.state_changed {
            let mut removed = txn.removed_at(applied.pdu.room_id(), seq)?;
            removed.retain(|server| !self.ctx.is_self(server));
            if !removed.is_empty() {
                self.news.note_removed(applied, removed);
            }
        }
        Ok(saved)
    }

    /// Once the room itself tells of a local user, what other servers told before no longer counts.
    fn move_member(&self, txn: &WriteTxn<'_>, applied: &Applied) -> Result<(), Error> {
        let Some(membership) = membership_of(&applied.pdu) else {
            return Ok(());
        };
        let Some(Ok(user)) = applied.pdu.state_key().map(UserId::parse) else {
            return Ok(());
        };
        if !self.ctx.is_local(&user) {
            return Ok(());
        }
        let room = applied.pdu.room_id();
        // What lost against another event, as in a fork, moves nobody.
        let current = txn.member(room, &user)?;
        let moved = current.is_some_and(|current| current.event_id == applied.pdu.event_id());
        if moved && !is_invited_after(txn, &user, &applied.pdu)? {
            txn.remove_outside_membership(&user, room)?;
        }
        if matches!(
            membership,
            MembershipState::Join | MembershipState::Invite | MembershipState::Knock
        ) {
            txn.unforget_room(&user, room)?;
            txn.settle_leave(&user, room)?;
        }
        if membership == MembershipState::Join || *user == *applied.pdu.sender() {
            // The user is where the way led, or has gone another one.
            txn.end_entry(&user, room)?;
        }
        Ok(())
    }
}

/// Whether another server told of an invitation that was made in knowledge of this membership, and so comes after it.
fn is_invited_after(txn: &WriteTxn<'_>, user: &UserId, member: &Pdu) -> Result<bool, Error> {
    let Some(outside) = txn.outside_membership(user, member.room_id())? else {
        return Ok(false);
    };
    if outside.membership != MembershipState::Invite {
        return Ok(false);
    }
    let invite = Pdu::from_stored(outside.event_id, outside.room_id, outside.event.get());
    let invite = invite.map_err(|error| Error::Internal("a stored invite is broken", Some(Box::new(error))))?;
    Ok(invite.auth_events().iter().any(|id| id == member.event_id()))
}
