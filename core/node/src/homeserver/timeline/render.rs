//! Writes events for one reader: what this server adds to them, bundled aggregations included. What may be told at all
//! is decided by [`RoomSight`].

use std::collections::BTreeMap;

use kith_engine::{Aggregations, ClientFormat, Pdu, RoomReader, ThreadSummary, Unsigned, client_event};
use kith_store::{ReadTxn, TimelineEvent};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, UserId, events::room::member::MembershipState,
    room_version_rules::RedactionRules, serde::Raw,
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::sight::RoomSight;
use crate::{Error, homeserver::Session};

/// Edits of one message looked at to find a valid one.
const MAX_EDITS: usize = 8;

/// References to one event that are told with it.
const MAX_REFERENCES: usize = 100;

/// Writes events for one device within one snapshot.
pub(crate) struct Renderer<'t> {
    /// What it reads.
    pub(crate) txn: &'t ReadTxn<'t>,
    /// For whom it writes.
    pub(crate) session: &'t Session,
    /// The time by which ages are told.
    pub(crate) now: MilliSecondsSinceUnixEpoch,
    /// How events are written.
    pub(crate) format: ClientFormat,
    /// Whose events do not count for this reader.
    pub(crate) ignored: &'t [OwnedUserId],
}

/// How much of what relates to an event is told with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bundle {
    /// Everything.
    All,
    /// All but its thread: for the newest event of a thread, so that nothing nests.
    WithoutThread,
    /// Nothing: for an edit.
    Nothing,
}

impl Renderer<'_> {
    /// An event of a timeline, with everything that belongs to it.
    pub(crate) fn timeline_event<T>(
        &self,
        sight: &mut RoomSight<'_>,
        event: &TimelineEvent,
        membership: MembershipState,
    ) -> Result<Raw<T>, Error> {
        let written = self.write(sight, event, membership, Bundle::All)?;
        Ok(Raw::from_json(written))
    }

    /// An event of a room's state, with nothing but its age.
    pub(crate) fn state_event<T>(&self, pdu: &Pdu, redaction: &RedactionRules) -> Raw<T> {
        let unsigned = Unsigned::aged(pdu, self.now);
        Raw::from_json(client_event(pdu, &unsigned, self.format, redaction))
    }

    /// Whether the reader wants to hear nothing of an event's sender. State events are told all the same.
    pub(crate) fn ignores(&self, pdu: &Pdu) -> bool {
        pdu.state_key().is_none() && self.ignored.iter().any(|user| user == pdu.sender())
    }

    fn write(
        &self,
        sight: &mut RoomSight<'_>,
        event: &TimelineEvent,
        membership: MembershipState,
        bundle: Bundle,
    ) -> Result<Box<RawValue>, Error> {
        let pdu = &event.pdu;
        let mut unsigned = Unsigned::aged(pdu, self.now);
        unsigned.membership = Some(membership);
        if pdu.sender() == self.session.user_id {
            let session = self.session;
            unsigned.transaction_id = self
                .txn
                .transaction_id(pdu.event_id(), &session.user_id, &session.device_id)?;
        }
        if let Some(by) = &event.redacted_by {
            let redaction = self.txn.event(by)?.map(|stored| stored.pdu);
            unsigned.redacted_because = redaction
                .map(|pdu| client_event(&pdu, &Unsigned::aged(&pdu, self.now), self.format, sight.redaction()));
        }
        if pdu.state_key().is_some() {
            self.add_replaced(event, &mut unsigned)?;
        } else if bundle != Bundle::Nothing {
            unsigned.relations = self.aggregations(sight, event, bundle)?;
        }
        Ok(client_event(pdu, &unsigned, self.format, sight.redaction()))
    }

    /// What stood where a state event stands now.
    fn add_replaced(&self, event: &TimelineEvent, unsigned: &mut Unsigned) -> Result<(), Error> {
        let (Some(state), Some(key)) = (event.state_before, event.pdu.state_entry()) else {
            return Ok(());
        };
        let Some(replaced) = self.txn.state_entry(state, &key)? else {
            return Ok(());
        };
        if let Some(stored) = self.txn.event(&replaced)? {
            unsigned.prev_content = RawValue::from_string(stored.pdu.content_json().to_owned()).ok();
        }
        unsigned.replaces_state = Some(replaced);
        Ok(())
    }

    /// Client-server API, "Aggregations of child events".
    fn aggregations(
        &self,
        sight: &mut RoomSight<'_>,
        event: &TimelineEvent,
        bundle: Bundle,
    ) -> Result<Aggregations, Error> {
        let id = event.pdu.event_id();
        if !self.txn.has_relations(sight.room(), id)? {
            return Ok(Aggregations::default());
        }
        let ignored: Vec<&UserId> = self.ignored.iter().map(|user| &**user).collect();
        Ok(Aggregations {
            replace: self.latest_edit(sight, event)?,
            thread: match bundle {
                Bundle::All => self.thread(sight, event, &ignored)?,
                Bundle::WithoutThread | Bundle::Nothing => None,
            },
            references: self
                .txn
                .relation_ids(sight.room(), id, "m.reference", &ignored, MAX_REFERENCES)?,
        })
    }

    fn latest_edit(&self, sight: &mut RoomSight<'_>, event: &TimelineEvent) -> Result<Option<Box<RawValue>>, Error> {
        // "The original event must not, itself, have a `rel_type` of `m.replace`"; and what is redacted stays so.
        if event.redacted_by.is_some() || is_edit(&event.pdu) {
            return Ok(None);
        }
        for edit in self.txn.edits(&event.pdu, MAX_EDITS)? {
            if has_new_content(&edit.pdu)
                && let Some(membership) = sight.membership_at(&edit)?
            {
                return self.write(sight, &edit, membership, Bundle::Nothing).map(Some);
            }
        }
        Ok(None)
    }

    fn thread(
        &self,
        sight: &mut RoomSight<'_>,
        root: &TimelineEvent,
        ignored: &[&UserId],
    ) -> Result<Option<ThreadSummary>, Error> {
        let reader = &self.session.user_id;
        let thread = self.txn.thread(sight.room(), root.pdu.event_id(), reader, ignored)?;
        let Some(thread) = thread else {
            return Ok(None);
        };
        // Whoever may not read the newest event learns nothing of the thread.
        let Some(membership) = sight.membership_at(&thread.latest)? else {
            return Ok(None);
        };
        Ok(Some(ThreadSummary {
            latest_event: self.write(sight, &thread.latest, membership, Bundle::WithoutThread)?,
            count: thread.count,
            current_user_participated: thread.participated || root.pdu.sender() == reader,
        }))
    }
}

/// Whose messages and invites a user wants to hear nothing of.
///
/// Client-server API, "Ignoring users".
pub(crate) fn ignored_users(txn: &ReadTxn<'_>, user: &UserId) -> Result<Vec<OwnedUserId>, Error> {
    #[derive(Deserialize)]
    struct Content {
        ignored_users: BTreeMap<String, IgnoredAny>,
    }
    let Some(content) = txn.account_data(user, None, "m.ignored_user_list")? else {
        return Ok(Vec::new());
    };
    // What a client wrote there need not have the right shape; then nobody is ignored. Nobody can ignore themselves.
    let ignored = serde_json::from_str::<Content>(content.get()).map_or_else(|_| BTreeMap::new(), |c| c.ignored_users);
    let ids = ignored.into_keys().filter_map(|id| UserId::parse(id).ok());
    Ok(ids.filter(|id| id != user).collect())
}

fn is_edit(pdu: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
    }
    let content = pdu.content_as::<Content>();
    content.is_ok_and(|content| content.relates_to.rel_type == "m.replace")
}

/// "The replacement event (once decrypted, if appropriate) must have an `m.new_content` property": of an encrypted one
/// only its readers can tell.
fn has_new_content(pdu: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        _new_content: IgnoredAny,
    }
    pdu.kind().to_string() == "m.room.encrypted" || pdu.content_as::<Content>().is_ok()
}
