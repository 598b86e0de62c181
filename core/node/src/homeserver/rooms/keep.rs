//! The one place that keeps an event that the engine has judged, whether it was made here or came from another node,
//! and tells whoever must know within the same commit. It sends nothing and judges nothing.

use kith_engine::{Applied, EventStatus, membership_of};
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
        txn.remove_outside_membership(&user, room)?;
        if matches!(
            membership,
            MembershipState::Join | MembershipState::Invite | MembershipState::Knock
        ) {
            txn.unforget_room(&user, room)?;
            txn.settle_leave(&user, room)?;
        }
        Ok(())
    }
}
