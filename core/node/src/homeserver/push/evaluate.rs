//! Holds each new event against the push rules of the users here who may see it, in the write that keeps the event. What
//! it finds is kept, and nothing is sent.

use futures::FutureExt as _;
use kith_engine::{Applied, Pdu, RoomError, RoomView, membership_of};
use kith_store::{NewNotification, SavedEvent, WriteTxn};
use ruma::{
    EventId, OwnedEventId, UInt, UserId,
    events::{
        StateEventType, ignored_user_list::IgnoredUserListEventContent, receipt::ReceiptThread,
        room::member::MembershipState,
    },
    push::{AnyPushRuleRef, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::Value;

use super::{Push, rules::Rules};
use crate::{Error, homeserver::Context};

/// Members counted at the most. Rules tell two from more; telling thousands apart is not worth counting at each event.
const MEMBERS_COUNTED: u32 = 1000;

impl Push {
    /// Notes whom an event that was just saved is to notify, and forgets what it makes void: notifications of what it
    /// redacts, and of rooms that a user leaves with it.
    ///
    /// To be called in the write that saved the event.
    pub fn note_event(&self, txn: &WriteTxn<'_>, applied: &Applied, saved: &SavedEvent) -> Result<(), Error> {
        for redaction in &applied.redactions {
            txn.forget_notifications_of(&redaction.target)?;
        }
        let pdu = &applied.pdu;
        let Some(stream) = saved.stream.filter(|stream| stream.0 > 0 && !applied.history) else {
            return Ok(());
        };
        forget_left_room(txn, &self.ctx, pdu)?;
        if applied
            .redactions
            .iter()
            .any(|redaction| redaction.target == pdu.event_id())
        {
            return Ok(());
        }
        let mut readers = txn.local_joined_users(pdu.room_id())?;
        if pdu.state_key().is_none() && readers.iter().any(|user_id| user_id == pdu.sender()) {
            // "When the user updates their read receipt (either by using the API or by sending an event), notifications
            // prior to and including that event MUST be marked as read." State events are left out: a new name is one in
            // every room, and says nothing of having read them.
            let thread = thread_of(pdu).map_or(ReceiptThread::Main, ReceiptThread::Thread);
            txn.mark_read(pdu.sender(), pdu.room_id(), &thread, stream)?;
        }
        readers.retain(|user_id| user_id != pdu.sender());
        if readers.is_empty() {
            return Ok(());
        }
        let event = NotifyingEvent::new(txn, pdu)?;
        for user_id in readers {
            if ignores(txn, &user_id, pdu.sender())? {
                continue;
            }
            let rules = self.parsed.rules(txn, &user_id)?;
            let context = event.context(txn, &user_id, &rules)?;
            let Some(rule) = event.first_match(&rules, &context) else {
                continue;
            };
            if !rule.triggers_notification() {
                continue;
            }
            let actions = serde_json::to_string(rule.actions())
                .map_err(|error| Error::Internal("push actions did not serialise", Some(Box::new(error))))?;
            let notification = NewNotification {
                stream,
                thread: event.thread.as_deref(),
                highlight: rule.triggers_highlight(),
                actions: &actions,
            };
            txn.insert_notification(&user_id, pdu.room_id(), &notification)?;
        }
        Ok(())
    }
}

/// An event made ready once for all its readers.
struct NotifyingEvent<'a> {
    pdu: &'a Pdu,
    json: FlattenedJson,
    thread: Option<OwnedEventId>,
    joined: u32,
    mentions_room: bool,
}

impl<'a> NotifyingEvent<'a> {
    fn new(txn: &WriteTxn<'_>, pdu: &'a Pdu) -> Result<Self, Error> {
        let json = FlattenedJson::from_raw(&Raw::<Value>::from_json(pdu.to_raw()));
        let mentions_room = json
            .get("content.m\\.mentions.room")
            .and_then(|value| value.as_bool())
            .unwrap_or(false);
        Ok(Self {
            json,
            thread: thread_of(pdu),
            joined: txn.joined_count_upto(pdu.room_id(), MEMBERS_COUNTED)?,
            mentions_room,
            pdu,
        })
    }

    /// The room as one reader's rules ask about it. Costly parts are read only for rules that ask.
    fn context(&self, txn: &WriteTxn<'_>, user_id: &UserId, rules: &Rules) -> Result<PushConditionRoomCtx, Error> {
        let room_id = self.pdu.room_id();
        let name = match rules.asks_display_name {
            true => display_name(txn, self.pdu, user_id)?,
            false => String::new(),
        };
        let context = PushConditionRoomCtx::new(room_id.to_owned(), UInt::from(self.joined), user_id.to_owned(), name);
        if !self.mentions_room && !rules.asks_power_levels {
            return Ok(context);
        }
        Ok(match power_levels(txn, self.pdu)? {
            Some(levels) => context.with_power_levels(levels),
            None => context,
        })
    }

    fn first_match<'r>(&self, rules: &'r Rules, context: &PushConditionRoomCtx) -> Option<AnyPushRuleRef<'r>> {
        // ruma's evaluation is asynchronous for one unstable condition only; without it, it never waits.
        let applies = |rule: &AnyPushRuleRef<'_>| (*rule).applies(&self.json, context).now_or_never();
        rules.ruleset.iter().find(|rule| applies(rule) == Some(true))
    }
}

fn power_levels(txn: &WriteTxn<'_>, pdu: &Pdu) -> Result<Option<PushConditionPowerLevelsCtx>, Error> {
    let levels = match RoomView::current(&**txn, pdu.room_id()) {
        Ok(Some(room)) => room.power_levels(),
        Ok(None) => return Ok(None),
        Err(error) => Err(error),
    };
    match levels {
        Ok(levels) => Ok(Some(levels.into())),
        Err(RoomError::Read(error)) => Err(error.into()),
        // A room whose power levels nobody can read lets nobody notify everyone.
        Err(_) => Ok(None),
    }
}

fn display_name(txn: &WriteTxn<'_>, pdu: &Pdu, user_id: &UserId) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Named {
        displayname: Option<String>,
    }
    let member = txn.current_state_event(pdu.room_id(), &StateEventType::RoomMember, user_id.as_str())?;
    let named = member.and_then(|member| member.content_as::<Named>().ok());
    Ok(named.and_then(|named| named.displayname).unwrap_or_default())
}

/// The root of the thread that an event stands in. Client-server API, "Threading".
fn thread_of(pdu: &Pdu) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Related {
        #[serde(rename = "m.relates_to")]
        relates_to: Option<Relation>,
    }
    #[derive(Deserialize)]
    struct Relation {
        rel_type: Option<String>,
        event_id: Option<String>,
    }
    let relation = pdu.content_as::<Related>().ok()?.relates_to?;
    if relation.rel_type.as_deref() != Some("m.thread") {
        return None;
    }
    EventId::parse(relation.event_id?).ok()
}

fn ignores(txn: &WriteTxn<'_>, user_id: &UserId, sender: &UserId) -> Result<bool, Error> {
    let list = txn.account_data(user_id, None, "m.ignored_user_list")?;
    let list = list.and_then(|list| serde_json::from_str::<IgnoredUserListEventContent>(list.get()).ok());
    Ok(list.is_some_and(|list| list.ignored_users.contains_key(sender)))
}

fn forget_left_room(txn: &WriteTxn<'_>, ctx: &Context, pdu: &Pdu) -> Result<(), Error> {
    if !matches!(membership_of(pdu), Some(MembershipState::Leave | MembershipState::Ban)) {
        return Ok(());
    }
    match pdu.state_key().map(UserId::parse) {
        Some(Ok(user_id)) if ctx.is_local(&user_id) => Ok(txn.forget_notifications_in(&user_id, pdu.room_id())?),
        _ => Ok(()),
    }
}
