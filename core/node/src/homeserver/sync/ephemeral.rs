//! Typing, receipts and presence as an answer tells them. None of it is part of any room's history.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::Subject;
use kith_store::{Receipt, Seq};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{
        AnySyncEphemeralRoomEvent,
        presence::{PresenceEvent, PresenceEventContent},
        receipt::ReceiptThread,
        room::member::MembershipState,
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::answer::{Snapshot, passes, plain_event, truncate};
use crate::Error;

/// What passed in rooms since a client last asked.
#[derive(Debug, Default)]
pub(super) struct Passed {
    typing: BTreeMap<OwnedRoomId, Vec<OwnedUserId>>,
    receipts: BTreeMap<OwnedRoomId, Vec<Receipt>>,
}

impl Snapshot<'_> {
    /// What passed in the user's rooms since.
    pub(super) fn passed(&self) -> Result<Passed, Error> {
        let mut passed = Passed::default();
        let user = &self.query.session.user_id;
        for receipt in self
            .txn
            .receipts_between(user, self.since.unwrap_or(Seq(0)), self.upto)?
        {
            passed
                .receipts
                .entry(receipt.room_id.clone())
                .or_default()
                .push(receipt);
        }
        let typing = self.live.ephemeral.typing_since(self.passed_after);
        // A client that starts knows of nobody's typing, so that only those who do are news.
        let news = typing
            .into_iter()
            .filter(|(_, users)| self.since.is_some() || !users.is_empty());
        passed.typing.extend(news);
        if self.since.is_some() && self.live.passing.is_forgotten(self.passed_after) {
            // Who typed when the node ended is not known any more, so every list that the client may hold is told anew.
            for room in self.txn.rooms_of(user, &[MembershipState::Join])? {
                passed.typing.entry(room.room_id).or_default();
            }
        }
        Ok(passed)
    }

    /// What passes in a room that the client had not: all of it.
    fn passes_in(&self, room: &RoomId) -> Result<(Vec<Receipt>, Option<Vec<OwnedUserId>>), Error> {
        let user = &self.query.session.user_id;
        let receipts = self.txn.receipts_in(room, user, Seq(0), self.upto)?;
        let typing = self.live.ephemeral.typing_in(room);
        Ok((receipts, (!typing.is_empty()).then_some(typing)))
    }

    /// A joined room's ephemeral events. `new`: the client did not have the room.
    pub(super) fn ephemeral(&mut self, room: &RoomId, new: bool) -> Result<Vec<Raw<AnySyncEphemeralRoomEvent>>, Error> {
        let (receipts, typing) = match new && self.since.is_some() {
            true => self.passes_in(room)?,
            false => (
                self.passed.receipts.remove(room).unwrap_or_default(),
                self.passed.typing.remove(room),
            ),
        };
        let mut events = Vec::new();
        let mut tell = |kind: &str, content: Box<RawValue>| {
            if passes(&self.query.filter.ephemeral, Some(room), kind, &content) {
                events.push(plain_event(kind, &content)?);
            }
            Ok::<_, Error>(())
        };
        if let Some(mut typing) = typing {
            typing.retain(|user| !self.renderer.ignored.contains(user));
            tell("m.typing", typing_content(&typing)?)?;
        }
        let mut receipts = receipts;
        receipts.retain(|receipt| !self.renderer.ignored.contains(&receipt.user_id));
        if !receipts.is_empty() {
            tell("m.receipt", receipts_content(&receipts)?)?;
        }
        truncate(&mut events, &self.query.filter.ephemeral);
        Ok(events)
    }

    /// Who of those that the user shares a room with came, went or changed; of rooms that the client did not have,
    /// everybody who is there.
    pub(super) fn presence(&self, new_rooms: &[OwnedRoomId]) -> Result<Vec<Raw<PresenceEvent>>, Error> {
        let filter = &self.query.filter.presence;
        if filter.passes_none() {
            return Ok(Vec::new());
        }
        let user = &self.query.session.user_id;
        let changed = self.live.presence.changed_between(self.passed_after, self.passed_upto);
        let mut told: BTreeMap<OwnedUserId, PresenceEventContent> = BTreeMap::new();
        if self.since.is_none() {
            let near: BTreeSet<OwnedUserId> = match changed.is_empty() {
                true => BTreeSet::new(),
                false => self.txn.users_sharing_a_room(user)?.into_iter().collect(),
            };
            told.extend(
                changed
                    .into_iter()
                    .filter(|(other, _)| other == user || near.contains(other)),
            );
        } else {
            for (other, content) in changed {
                if other == *user || !self.txn.shared_rooms(user, &other)?.is_empty() {
                    told.insert(other, content);
                }
            }
            if !new_rooms.is_empty() {
                for (other, content) in self.live.presence.changed_between(0, self.passed_upto) {
                    if self.is_in_any(new_rooms, &other)? {
                        told.entry(other).or_insert(content);
                    }
                }
            }
        }
        let mut events = Vec::new();
        for (sender, content) in told {
            let subject = Subject {
                room: None,
                sender: Some(&sender),
                kind: "m.presence",
                content: None,
            };
            if filter.passes(&subject) && !self.renderer.ignored.contains(&sender) {
                events.push(presence_event(&sender, &content)?);
            }
        }
        truncate(&mut events, filter);
        Ok(events)
    }

    fn is_in_any(&self, rooms: &[OwnedRoomId], user: &UserId) -> Result<bool, Error> {
        for room in rooms {
            if self.txn.membership(room, user)? == MembershipState::Join {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn typing_content(users: &[OwnedUserId]) -> Result<Box<RawValue>, Error> {
    #[derive(Serialize)]
    struct Content<'a> {
        user_ids: &'a [OwnedUserId],
    }
    written(&Content { user_ids: users })
}

/// Client-server API, `m.receipt`: by event, then by kind, then by user.
fn receipts_content(receipts: &[Receipt]) -> Result<Box<RawValue>, Error> {
    #[derive(Serialize)]
    struct Read<'a> {
        ts: MilliSecondsSinceUnixEpoch,
        #[serde(skip_serializing_if = "Option::is_none")]
        thread_id: Option<&'a str>,
    }
    let mut content: BTreeMap<&OwnedEventId, BTreeMap<&str, BTreeMap<&OwnedUserId, Read<'_>>>> = BTreeMap::new();
    for receipt in receipts {
        let kind = match receipt.private {
            true => "m.read.private",
            false => "m.read",
        };
        let read = Read {
            ts: receipt.ts,
            thread_id: match &receipt.thread {
                ReceiptThread::Main => Some("main"),
                ReceiptThread::Thread(root) => Some(root.as_str()),
                _ => None,
            },
        };
        let by_kind = content.entry(&receipt.event_id).or_default();
        by_kind.entry(kind).or_default().insert(&receipt.user_id, read);
    }
    written(&content)
}

fn presence_event(sender: &UserId, content: &PresenceEventContent) -> Result<Raw<PresenceEvent>, Error> {
    #[derive(Serialize)]
    struct Event<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        sender: &'a UserId,
        content: &'a PresenceEventContent,
    }
    let kind = "m.presence";
    Ok(Raw::from_json(written(&Event { kind, sender, content })?))
}

fn written(value: &impl Serialize) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::Internal("an event did not serialise", Some(Box::new(error))))
}
