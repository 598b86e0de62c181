//! What the rooms service asks of a room's current state, beyond what the engine's view answers. It changes nothing.

use kith_engine::RoomView;
use kith_store::ReadTxn;
use ruma::{
    RoomId, UserId,
    events::{
        StateEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};

use crate::Error;

/// A room that this node holds, at its current state. Whether this node is still in the room is another question.
pub(crate) type CurrentRoom<'a, 't> = RoomView<'a, ReadTxn<'t>>;

/// The room, if anything is held of it.
pub(crate) fn find_room<'a, 't>(txn: &'a ReadTxn<'t>, room: &RoomId) -> Result<Option<CurrentRoom<'a, 't>>, Error> {
    Ok(RoomView::current(txn, room)?)
}

/// [`find_room`], or 404 `M_NOT_FOUND`.
pub(crate) fn get_room<'a, 't>(txn: &'a ReadTxn<'t>, room: &RoomId) -> Result<CurrentRoom<'a, 't>, Error> {
    find_room(txn, room)?.ok_or_else(|| Error::not_found("this room is not known here"))
}

/// [`find_room`] for one of its members; 403 `M_FORBIDDEN` for everybody else, so that nobody learns which rooms exist.
pub(crate) fn room_of_member<'a, 't>(
    txn: &'a ReadTxn<'t>,
    room: &RoomId,
    user: &UserId,
) -> Result<CurrentRoom<'a, 't>, Error> {
    let found = find_room(txn, room)?;
    let joined = txn.membership(room, user)? == MembershipState::Join;
    found
        .filter(|_| joined)
        .ok_or_else(|| Error::forbidden("you are not in this room"))
}

/// Whether everybody may read the room, members or not.
pub(crate) fn is_world_readable(room: &CurrentRoom<'_, '_>) -> Result<bool, Error> {
    Ok(room.history_visibility()? == HistoryVisibility::WorldReadable)
}

/// Whether a joined user has the power to send state events of a type.
pub(crate) fn may_send_state(room: &CurrentRoom<'_, '_>, user: &UserId, kind: StateEventType) -> Result<bool, Error> {
    let joined = room.membership(user)? == MembershipState::Join;
    Ok(joined && room.power_levels()?.user_can_send_state(user, kind))
}
