//! One answer of `/sync`, read within one snapshot. It waits for nothing and writes nothing.

use std::{collections::BTreeMap, sync::Arc};

use kith_engine::{ClientFormat, EventFilter, Subject, SyncFilter};
use kith_store::{ReadTxn, Seq};
use ruma::{
    MilliSecondsSinceUnixEpoch, OneTimeKeyAlgorithm, OwnedRoomId, OwnedUserId, RoomId, UInt,
    api::client::sync::sync_events::{DeviceLists, v3},
    events::AnyRoomAccountDataEvent,
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{ephemeral::Passed, lazy_members::ToldMembers};
use crate::{
    Error,
    homeserver::{
        Ephemeral, Passing, Presence, Session,
        timeline::{Renderer, SyncToken, ignored_users},
    },
};

/// Messages to a device in one answer; the rest waits for the next.
const MAX_TO_DEVICE: usize = 100;

/// What a client asked.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) session: Session,
    pub(super) since: Option<SyncToken>,
    pub(super) filter: SyncFilter,
    pub(super) full_state: bool,
    pub(super) use_state_after: bool,
    /// Membership events that the client holds.
    pub(super) told: Arc<ToldMembers>,
}

/// What it is answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: v3::Response,
    /// The token in the response.
    pub(super) next: SyncToken,
    /// Whether there is anything to tell.
    pub(super) has_news: bool,
    /// Membership events that the client will hold beyond those it does.
    pub(super) told: ToldMembers,
}

/// What lives in memory and not in the database.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) passing: Passing,
    pub(super) ephemeral: Ephemeral,
    pub(super) presence: Presence,
}

/// What an answer is read from.
pub(super) struct Snapshot<'t> {
    pub(super) txn: &'t ReadTxn<'t>,
    pub(super) live: &'t Live,
    pub(super) query: &'t Query,
    pub(super) renderer: Renderer<'t>,
    /// Where the client's knowledge ends; none if it has none.
    pub(super) since: Option<Seq>,
    /// Where its knowledge will end.
    pub(super) upto: Seq,
    /// The same for what passes in memory; from 0 if it has none.
    pub(super) passed_after: u64,
    /// The same.
    pub(super) passed_upto: u64,
    /// Typing and receipts since.
    pub(super) passed: Passed,
    /// Account data of rooms that was set since.
    pub(super) room_account_data: BTreeMap<OwnedRoomId, Vec<Raw<AnyRoomAccountDataEvent>>>,
    /// Membership events that this answer tells.
    pub(super) told: ToldMembers,
}

impl Answer {
    /// Reads an answer.
    pub(super) fn read(
        txn: &ReadTxn<'_>,
        live: &Live,
        query: &Query,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, Error> {
        let upto = txn.last_seq()?;
        let passed_upto = live.passing.last();
        // A token from beyond what is committed was written before a backup was restored. What the client knows is not
        // known here, so it is told everything anew.
        let since = query.since.filter(|since| since.seq <= upto);
        let session = &query.session;
        let ignored: Vec<OwnedUserId> = ignored_users(txn, &session.user_id)?;
        let mut snapshot = Snapshot {
            txn,
            live,
            query,
            renderer: Renderer {
                txn,
                session,
                now,
                format: match query.filter.federation_format {
                    true => ClientFormat::Federation,
                    false => ClientFormat::Sync,
                },
                ignored: &ignored,
            },
            since: since.map(|since| since.seq),
            upto,
            passed_after: since.map_or(0, |since| since.ephemeral),
            passed_upto,
            passed: Passed::default(),
            room_account_data: BTreeMap::new(),
            told: ToldMembers::default(),
        };
        let mut response = v3::Response::new(String::new());
        response.account_data.events = snapshot.account_data()?;
        snapshot.passed = snapshot.passed()?;
        let (rooms, new_rooms) = snapshot.rooms()?;
        response.rooms = rooms;
        response.presence.events = snapshot.presence(&new_rooms)?;
        let (to_device, told_to_device) = snapshot.to_device(since)?;
        response.to_device.events = to_device;
        response.device_lists = snapshot.device_lists()?;
        let has_news = !(response.account_data.is_empty()
            && response.rooms.is_empty()
            && response.presence.is_empty()
            && response.to_device.is_empty()
            && response.device_lists.is_empty());
        response.device_one_time_keys_count = snapshot.keys_left()?;
        response.device_unused_fallback_key_types =
            Some(txn.unused_fallback_key_types(&session.user_id, &session.device_id)?);
        let next = SyncToken {
            seq: upto,
            ephemeral: passed_upto,
            to_device: told_to_device,
        };
        response.next_batch = next.to_string();
        Ok(Self {
            response,
            next,
            has_news,
            told: snapshot.told,
        })
    }

    /// How many one-time keys the device has left, and which fallback keys.
    pub(super) fn keys_left(&self) -> (BTreeMap<OneTimeKeyAlgorithm, UInt>, Option<Vec<OneTimeKeyAlgorithm>>) {
        (
            self.response.device_one_time_keys_count.clone(),
            self.response.device_unused_fallback_key_types.clone(),
        )
    }
}

impl Snapshot<'_> {
    /// The user's account data that was set since; sorts out that of rooms.
    fn account_data(&mut self) -> Result<Vec<Raw<ruma::events::AnyGlobalAccountDataEvent>>, Error> {
        let user = &self.query.session.user_id;
        let since = self.since.unwrap_or(Seq(0));
        let mut global = Vec::new();
        for entry in self.txn.account_data_between(user, since, self.upto)? {
            let filter = &self.query.filter;
            match entry.room_id {
                None => {
                    if passes(&filter.account_data, None, &entry.kind, &entry.content) {
                        global.push(plain_event(&entry.kind, &entry.content)?);
                    }
                }
                Some(room) => {
                    if passes(&filter.room_account_data, Some(&room), &entry.kind, &entry.content) {
                        let event = plain_event(&entry.kind, &entry.content)?;
                        self.room_account_data.entry(room).or_default().push(event);
                    }
                }
            }
        }
        truncate(&mut global, &self.query.filter.account_data);
        Ok(global)
    }

    /// All account data of a room, for a client that meets the room for the first time.
    pub(super) fn all_account_data(&self, room: &RoomId) -> Result<Vec<Raw<AnyRoomAccountDataEvent>>, Error> {
        let user = &self.query.session.user_id;
        let mut events = Vec::new();
        for entry in self.txn.account_data_between(user, Seq(0), self.upto)? {
            let filter = &self.query.filter.room_account_data;
            if entry.room_id.as_deref() == Some(room) && passes(filter, Some(room), &entry.kind, &entry.content) {
                events.push(plain_event(&entry.kind, &entry.content)?);
            }
        }
        Ok(events)
    }

    /// Messages that wait for the device, and up to where they are told.
    fn to_device(&self, since: Option<SyncToken>) -> Result<(Vec<Raw<ruma::events::AnyToDeviceEvent>>, Seq), Error> {
        let session = &self.query.session;
        let after = since.map_or(Seq(0), |since| since.to_device);
        let waiting =
            self.txn
                .to_device_messages(&session.user_id, &session.device_id, after, self.upto, MAX_TO_DEVICE)?;
        let upto = match waiting.last() {
            Some(last) if waiting.len() == MAX_TO_DEVICE => last.seq,
            _ => self.upto,
        };
        Ok((waiting.into_iter().map(|message| message.event).collect(), upto))
    }

    /// Whose devices the client must look at again, or need not look at any more.
    fn device_lists(&self) -> Result<DeviceLists, Error> {
        let mut lists = DeviceLists::new();
        // "Only present on an incremental sync": a client that starts asks for all that it needs.
        if let Some(since) = self.since {
            let user = &self.query.session.user_id;
            let changes = self.txn.device_list_changes(user, since, self.upto)?;
            lists.changed = changes.changed;
            lists.left = changes.left;
        }
        Ok(lists)
    }

    /// How many one-time keys the device has left. A zero is told for the algorithm that everybody uses: a client must
    /// not take silence for plenty.
    fn keys_left(&self) -> Result<BTreeMap<OneTimeKeyAlgorithm, UInt>, Error> {
        let session = &self.query.session;
        let mut counts = self.txn.one_time_key_counts(&session.user_id, &session.device_id)?;
        counts.entry(OneTimeKeyAlgorithm::SignedCurve25519).or_insert(UInt::MIN);
        Ok(counts)
    }
}

/// Whether an event without sender passes a filter.
pub(super) fn passes(filter: &EventFilter, room: Option<&RoomId>, kind: &str, content: &RawValue) -> bool {
    filter.passes(&Subject {
        room,
        sender: None,
        kind,
        content: Some(content.get()),
    })
}

/// Leaves as many events as a filter wants.
pub(super) fn truncate<T>(events: &mut Vec<T>, filter: &EventFilter) {
    if let Some(limit) = filter.limit {
        events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
}

/// An event of nothing but type and content.
pub(super) fn plain_event<T>(kind: &str, content: &RawValue) -> Result<Raw<T>, Error> {
    #[derive(Serialize)]
    struct Plain<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        content: &'a RawValue,
    }
    let json = serde_json::value::to_raw_value(&Plain { kind, content })
        .map_err(|error| Error::Internal("an event did not serialise", Some(Box::new(error))))?;
    Ok(Raw::from_json(json))
}
