//! Which events a user or another server may read. It does not decide who may ask about a room at all.
//!
//! Client-server API, "Room history visibility".

use ruma::{
    RoomId, ServerName, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};

use crate::{Pdu, RoomError, RoomReader, RoomView, StateId, membership_of};

/// What one state of a room says that bears on what one user may read of it. Many events share a state: keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Who may read.
    pub visibility: HistoryVisibility,
    /// The user's membership.
    pub membership: MembershipState,
}

impl Standing {
    /// A user's standing in some state of a room; none if nothing is held of the room.
    pub fn of<R: RoomReader>(
        reader: &R,
        room: &RoomId,
        state: StateId,
        user: &UserId,
    ) -> Result<Option<Self>, RoomError<R::Error>> {
        let Some(view) = RoomView::at(reader, room, state)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            visibility: view.history_visibility()?,
            membership: view.membership(user)?,
        }))
    }

    /// Whether an event that stands in this state may be read. `joined_later`: whether the user was joined at any time
    /// after it.
    fn allows(&self, joined_later: bool) -> bool {
        // The specification's five rules, in its order.
        if self.visibility == HistoryVisibility::WorldReadable || self.membership == MembershipState::Join {
            return true;
        }
        match self.visibility {
            HistoryVisibility::Shared => joined_later,
            HistoryVisibility::Invited => self.membership == MembershipState::Invite,
            _ => false,
        }
    }
}

/// Whether a user may read an event, given the user's standing before and after it.
pub fn is_visible(pdu: &Pdu, user: &UserId, before: &Standing, after: &Standing, joined_later: bool) -> bool {
    // "For `m.room.history_visibility` events themselves, the user should be allowed to see the event if the
    // `history_visibility` before *or* after the event would allow them to see it. Likewise, for the user's own
    // `m.room.member` events […] if their `membership` before *or* after the event would allow them to see it." Under any
    // other event the two are the same, but for the other half of the standing, which these events do not touch.
    let decides = pdu.is_state(&TimelineEventType::RoomHistoryVisibility, "")
        || pdu.is_state(&TimelineEventType::RoomMember, user.as_str());
    after.allows(joined_later) || (decides && before.allows(joined_later))
}

/// Who wants to read.
#[derive(Debug, Clone, Copy)]
pub enum Viewer<'a> {
    /// A user of this server.
    User(&'a UserId),
    /// Another server, for its users. That it is in the room at all is for the caller to see to.
    Server(&'a ServerName),
}

/// Whether the viewer may read one event that is held; [`is_visible`] with everything it needs read for it. Rejected
/// events, soft-failed ones and outliers are for nobody, and not for this function.
pub fn visible_to<R: RoomReader>(reader: &R, viewer: Viewer<'_>, pdu: &Pdu) -> Result<bool, RoomError<R::Error>> {
    let room = pdu.room_id();
    let Some(current) = RoomView::current(reader, room)? else {
        return Ok(false);
    };
    let states = (
        reader.state_before(pdu.event_id())?,
        reader.state_after(pdu.event_id())?,
    );
    let (Some(before), Some(after)) = states else {
        // History whose state nobody could tell: where today's visibility hides the past, it stays hidden.
        let visibility = current.history_visibility()?;
        return match viewer {
            _ if visibility == HistoryVisibility::WorldReadable => Ok(true),
            _ if visibility != HistoryVisibility::Shared => Ok(false),
            Viewer::User(user) => joined_later(&current, user, pdu),
            Viewer::Server(_) => Ok(true),
        };
    };
    match viewer {
        Viewer::User(user) => {
            let before = Standing::of(reader, room, before, user)?;
            let after = Standing::of(reader, room, after, user)?;
            let (Some(before), Some(after)) = (before, after) else {
                return Ok(false);
            };
            Ok(is_visible(
                pdu,
                user,
                &before,
                &after,
                joined_later(&current, user, pdu)?,
            ))
        }
        Viewer::Server(server) => {
            let user = pdu.state_key().and_then(|key| <&UserId>::try_from(key).ok());
            let own =
                *pdu.kind() == TimelineEventType::RoomMember && user.is_some_and(|user| user.server_name() == server);
            let decides = own || pdu.is_state(&TimelineEventType::RoomHistoryVisibility, "");
            for state in [Some(after), decides.then_some(before)].into_iter().flatten() {
                if let Some(view) = RoomView::at(reader, room, state)?
                    && server_may_read(&view, server)?
                {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Whether the user was in the room at some time after the event: is in it, or left it from a join further down the
/// room than the event stands.
fn joined_later<R: RoomReader>(
    current: &RoomView<'_, R>,
    user: &UserId,
    pdu: &Pdu,
) -> Result<bool, RoomError<R::Error>> {
    let Some(member) = current.event(StateEventType::RoomMember, user.as_str())? else {
        return Ok(false);
    };
    match membership_of(&member) {
        Some(MembershipState::Join) => Ok(true),
        Some(MembershipState::Leave | MembershipState::Ban) if member.depth() > pdu.depth() => {
            match current.before(&member)? {
                Some(before) => Ok(before.membership(user)? == MembershipState::Join),
                None => Ok(false),
            }
        }
        _ => Ok(false),
    }
}

/// Whether some user of that server may read what was said in this state.
fn server_may_read<R: RoomReader>(view: &RoomView<'_, R>, server: &ServerName) -> Result<bool, RoomError<R::Error>> {
    let visibility = view.history_visibility()?;
    if matches!(visibility, HistoryVisibility::WorldReadable | HistoryVisibility::Shared) {
        return Ok(true);
    }
    for (kind, state_key) in view.entries()?.into_keys() {
        let Ok(user) = UserId::parse(&state_key) else {
            continue;
        };
        if kind == StateEventType::RoomMember && user.server_name() == server {
            let standing = Standing {
                visibility: visibility.clone(),
                membership: view.membership(&user)?,
            };
            if standing.allows(false) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use ruma::{event_id, room_id, user_id};
    use serde_json::json;

    use super::*;

    fn pdu(kind: &str, state_key: Option<&str>) -> Pdu {
        let mut event = json!({
            "type": kind, "content": {}, "sender": "@b:x", "room_id": "!r:x", "origin_server_ts": 1,
            "prev_events": [], "auth_events": [], "depth": 1, "hashes": {}, "signatures": {},
        });
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        Pdu::from_stored(
            event_id!("$e").to_owned(),
            room_id!("!r:x").to_owned(),
            &event.to_string(),
        )
        .unwrap()
    }

    fn standing((visibility, membership): (&str, &str)) -> Standing {
        Standing {
            visibility: visibility.into(),
            membership: membership.into(),
        }
    }

    fn check(pdu: &Pdu, before: (&str, &str), after: (&str, &str), joined_later: bool, expected: bool) {
        let (before, after) = (standing(before), standing(after));
        let seen = is_visible(pdu, user_id!("@a:x"), &before, &after, joined_later);
        assert_eq!(seen, expected, "{} {before:?} {after:?} {joined_later}", pdu.kind());
    }

    #[test]
    fn messages_follow_the_state_they_stand_in() {
        let message = pdu("m.room.message", None);
        let cases = [
            // visibility, membership, whether visible, whether visible to one who was joined later
            ("world_readable", "leave", true, true),
            ("world_readable", "ban", true, true),
            ("shared", "join", true, true),
            ("shared", "invite", false, true),
            ("shared", "leave", false, true),
            ("invited", "join", true, true),
            ("invited", "invite", true, true),
            ("invited", "leave", false, false),
            ("joined", "join", true, true),
            ("joined", "invite", false, false),
            ("joined", "leave", false, false),
            ("joined", "knock", false, false),
        ];
        for (visibility, membership, now, later) in cases {
            let standing = (visibility, membership);
            check(&message, standing, standing, false, now);
            check(&message, standing, standing, true, later);
        }
    }

    #[test]
    fn own_memberships_and_visibility_changes_count_on_either_side() {
        let own = pdu("m.room.member", Some("@a:x"));
        check(&own, ("joined", "leave"), ("joined", "join"), false, true);
        check(&own, ("joined", "join"), ("joined", "ban"), false, true);
        check(&own, ("joined", "leave"), ("joined", "invite"), false, false);
        check(&own, ("invited", "leave"), ("invited", "invite"), false, true);
        let other = pdu("m.room.member", Some("@b:x"));
        check(&other, ("joined", "leave"), ("joined", "leave"), false, false);
        let visibility = pdu("m.room.history_visibility", Some(""));
        check(
            &visibility,
            ("joined", "leave"),
            ("world_readable", "leave"),
            false,
            true,
        );
        check(
            &visibility,
            ("world_readable", "leave"),
            ("joined", "leave"),
            false,
            true,
        );
        check(&visibility, ("joined", "leave"), ("invited", "leave"), false, false);
        let message = pdu("m.room.message", None);
        check(&message, ("world_readable", "leave"), ("joined", "leave"), false, false);
    }
}
