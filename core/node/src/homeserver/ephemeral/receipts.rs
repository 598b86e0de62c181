//! Read receipts and read markers: kept, told to the other servers of the room unless private, and never moved back.

use kith_engine::{Pdu, RoomReader};
use kith_store::{ReadTxn, Seq, WriteTxn};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName,
    UserId,
    api::federation::transactions::edu::{Edu, ReceiptContent, ReceiptData, ReceiptMap},
    events::{
        receipt::{Receipt, ReceiptThread},
        relation::RelationType,
        room::member::MembershipState,
    },
};
use serde::Deserialize;
use serde_json::{json, value::to_raw_value};

use super::{Ephemeral, is_heard};
use crate::{
    Error,
    homeserver::{Context, topics::TopicEdu},
};

/// Receipts looked at in one EDU.
const MAX_RECEIPTS: usize = 1_000;

/// Receipts that a server is told when it is connected again, the newest.
const MAX_TOLD_AGAIN: usize = 50;

/// How many relations are followed to find an event's thread.
///
/// Client-server API, "Threaded read receipts": "a maximum of 3 hops is recommended".
const THREAD_HOPS: usize = 3;

/// What a client has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadMark {
    /// `m.read`: all may know.
    Public(ReceiptThread),
    /// `m.read.private`: only the user may know.
    Private(ReceiptThread),
    /// `m.fully_read`: where the user goes on reading.
    FullyRead,
}

impl Ephemeral {
    /// Moves a user's receipts and marker in a room to events: all of them, or none. A mark that would move back stays
    /// where it is.
    ///
    /// Refuses with `M_FORBIDDEN` users who are not in the room, `M_NOT_FOUND` events that are not, `M_INVALID_PARAM`
    /// threads that the event does not stand in.
    pub async fn mark_read(
        &self,
        user: OwnedUserId,
        room: OwnedRoomId,
        marks: Vec<(ReadMark, OwnedEventId)>,
    ) -> Result<(), Error> {
        let (ctx, topics, of) = (self.ctx.clone(), self.topics.clone(), room.clone());
        let write = self.ctx.store.write(move |txn| {
            if txn.membership(&room, &user)? != MembershipState::Join {
                return Err(Error::forbidden("the user is not in the room"));
            }
            let mut edus = Vec::new();
            for (mark, event) in &marks {
                edus.extend(move_mark(txn, &ctx, &user, &room, mark, event)?);
            }
            if topics.usable(txn, &room, ctx.world.now())?.is_some() {
                return Ok((edus, Vec::new()));
            }
            let mut servers = txn.joined_servers(&room)?;
            servers.retain(|server| !ctx.is_self(server));
            for edu in edus.drain(..) {
                for server in &servers {
                    txn.enqueue_edu_in(server, &edu.slot, &edu.edu)?;
                }
            }
            Ok((edus, servers))
        });
        let (by_topic, wake) = write.await?;
        for edu in by_topic {
            self.topics.tell(&of, edu);
        }
        self.outbox.wake(wake);
        Ok(())
    }

    /// Tells a server that is connected again what local users have read since it was last: in rooms that tell it over their
    /// topic, nothing waits for those who are away.
    pub(super) async fn tell_receipts(
        &self,
        server: &OwnedServerName,
        since: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), Error> {
        let (own, of) = (self.ctx.server_name.clone(), server.clone());
        let read = self
            .ctx
            .store
            .read(move |txn| txn.receipts_told_by_topic(&own, &of, since, MAX_TOLD_AGAIN));
        for receipt in read.await? {
            let edu = receipt_edu(
                &receipt.room_id,
                &receipt.user_id,
                &receipt.thread,
                &receipt.event_id,
                receipt.ts,
            )?;
            self.outbox.tell([server.clone()], &edu.slot, &edu.edu);
        }
        Ok(())
    }

    /// `m.receipt`: what users of another server have read. What that server cannot know is passed over.
    pub async fn handle_receipts(&self, peer: &ServerName, content: ReceiptContent) -> Result<(), Error> {
        let receipts = content.receipts.into_iter().flat_map(|(room, map)| {
            let users = map.read.into_iter();
            users.map(move |(user, data)| (room.clone(), user, data))
        });
        let receipts: Vec<(OwnedRoomId, OwnedUserId, ReceiptData)> = receipts
            .filter(|(_, user, _)| user.server_name() == peer)
            .take(MAX_RECEIPTS)
            .collect();
        if receipts.is_empty() {
            return Ok(());
        }
        let now = self.ctx.world.now();
        self.ctx
            .store
            .write(move |txn| {
                for (room, user, data) in &receipts {
                    receive(txn, room, user, data, now)?;
                }
                Ok::<_, Error>(())
            })
            .await
    }
}

/// Moves one mark; returns what other servers are to be told.
fn move_mark(
    txn: &WriteTxn<'_>,
    ctx: &Context,
    user: &UserId,
    room: &RoomId,
    mark: &ReadMark,
    event: &EventId,
) -> Result<Option<TopicEdu>, Error> {
    let unknown = || Error::not_found("the room has no such event");
    let stored = txn.event(event)?.filter(|stored| stored.pdu.room_id() == room);
    let stored = stored.ok_or_else(unknown)?;
    let place = txn.stream_of(event)?.ok_or_else(unknown)?;
    let (thread, private) = match mark {
        ReadMark::FullyRead => return move_marker(txn, user, room, event, place).map(|()| None),
        ReadMark::Public(thread) => (thread, false),
        ReadMark::Private(thread) => (thread, true),
    };
    check_thread(txn, &stored.pdu, thread)?;
    let before = txn.receipt(room, user, private, thread)?;
    if !is_further(txn, before.as_deref(), place)? {
        return Ok(None);
    }
    let now = ctx.world.now();
    txn.set_receipt(room, user, private, thread, event, now)?;
    txn.mark_read(user, room, thread, place)?;
    if private {
        return Ok(None);
    }
    receipt_edu(room, user, thread, event, now).map(Some)
}

/// What other servers are told of a public receipt.
fn receipt_edu(
    room: &RoomId,
    user: &UserId,
    thread: &ReceiptThread,
    event: &EventId,
    ts: MilliSecondsSinceUnixEpoch,
) -> Result<TopicEdu, Error> {
    let mut receipt = Receipt::new(ts);
    receipt.thread = thread.clone();
    let data = ReceiptData::new(receipt, vec![event.to_owned()]);
    let map = ReceiptMap::new([(user.to_owned(), data)].into());
    let edu = Edu::Receipt(ReceiptContent::new([(room.to_owned(), map)].into()));
    let edu = to_raw_value(&edu).map_err(|error| Error::Internal("an EDU did not serialise", Some(Box::new(error))))?;
    Ok(TopicEdu {
        slot: format!("m.receipt {room} {user} {}", thread.as_str().unwrap_or("")),
        edu,
        lasting: true,
    })
}

fn move_marker(txn: &WriteTxn<'_>, user: &UserId, room: &RoomId, event: &EventId, place: Seq) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct FullyRead {
        event_id: OwnedEventId,
    }
    let held = txn.account_data(user, Some(room), "m.fully_read")?;
    let held = held.and_then(|json| serde_json::from_str::<FullyRead>(json.get()).ok());
    let held = held.map(|marker| marker.event_id);
    if is_further(txn, held.as_deref(), place)? {
        let content = json!({"event_id": event}).to_string();
        txn.set_account_data(user, Some(room), "m.fully_read", &content)?;
    }
    Ok(())
}

/// Keeps one receipt from another server, if its user is in the room. Its event may still be on its way.
fn receive(
    txn: &WriteTxn<'_>,
    room: &RoomId,
    user: &UserId,
    data: &ReceiptData,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    let Some(event) = data.event_ids.last() else {
        return Ok(());
    };
    let thread = &data.data.thread;
    let known = matches!(
        thread,
        ReceiptThread::Unthreaded | ReceiptThread::Main | ReceiptThread::Thread(_)
    );
    if !known || !is_heard(txn, room, user)? {
        return Ok(());
    }
    let before = txn.receipt(room, user, false, thread)?;
    if before.as_ref() == Some(event) {
        return Ok(());
    }
    if let Some(place) = txn.stream_of(event)?
        && !is_further(txn, before.as_deref(), place)?
    {
        return Ok(());
    }
    txn.set_receipt(room, user, false, thread, event, data.data.ts.unwrap_or(now))?;
    Ok(())
}

/// Whether a place lies beyond an event, or the event's own place is not known.
fn is_further(txn: &ReadTxn<'_>, before: Option<&EventId>, place: Seq) -> Result<bool, Error> {
    let Some(before) = before else { return Ok(true) };
    Ok(txn.stream_of(before)?.is_none_or(|before| before < place))
}

/// Refuses a threaded receipt for an event that does not stand in the thread.
fn check_thread(txn: &ReadTxn<'_>, pdu: &Pdu, thread: &ReceiptThread) -> Result<(), Error> {
    let of_event = match thread {
        ReceiptThread::Unthreaded => return Ok(()),
        ReceiptThread::Thread(root) if root == pdu.event_id() => return Ok(()),
        ReceiptThread::Main | ReceiptThread::Thread(_) => thread_of(txn, pdu)?,
        _ => return Err(Error::invalid_param("thread_id is neither `main` nor an event id")),
    };
    let fits = match thread {
        ReceiptThread::Thread(root) => of_event.as_ref() == Some(root),
        _ => of_event.is_none(),
    };
    if fits {
        Ok(())
    } else {
        Err(Error::invalid_param("the event does not stand in the thread"))
    }
}

#[derive(Deserialize)]
struct Relating {
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Relation>,
}

#[derive(Deserialize)]
struct Relation {
    rel_type: Option<RelationType>,
    event_id: Option<OwnedEventId>,
}

/// The root of the thread that an event stands in by its relations; none: the main timeline.
fn thread_of(txn: &ReadTxn<'_>, pdu: &Pdu) -> Result<Option<OwnedEventId>, Error> {
    let mut pdu = pdu.clone();
    for _ in 0..=THREAD_HOPS {
        let relation = pdu.content_as::<Relating>().ok().and_then(|content| content.relates_to);
        let Some(Relation {
            rel_type: Some(rel_type),
            event_id: Some(parent),
        }) = relation
        else {
            return Ok(None);
        };
        if rel_type == RelationType::Thread {
            return Ok(Some(parent));
        }
        let Some(stored) = txn
            .event(&parent)?
            .filter(|stored| stored.pdu.room_id() == pdu.room_id())
        else {
            return Ok(None);
        };
        pdu = stored.pdu;
    }
    Ok(None)
}
