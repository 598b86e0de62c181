//! A joined room as an answer tells it: timeline, state, summary, counts and what hangs on the room.

use kith_engine::{Pdu, RoomReader};
use kith_store::{Direction, Seq, SyncRoom, TimelineEvent};
use ruma::{
    OwnedUserId, RoomId, UInt,
    api::client::{
        filter::LazyLoadOptions,
        sync::sync_events::{
            UnreadNotificationsCount,
            v3::{JoinedRoom, RoomSummary, State, StateEvents, Timeline},
        },
    },
    events::{AnySyncStateEvent, AnySyncTimelineEvent, StateEventType, room::member::MembershipState},
    serde::Raw,
};
use serde::Deserialize;

use super::{
    answer::{Snapshot, truncate},
    rooms::Held,
    state::Span,
};
use crate::{
    Error,
    homeserver::timeline::{RoomSight, TimelineToken, Walk, walk},
};

/// Events of a timeline if the client does not say.
const DEFAULT_TIMELINE: u64 = 10;

/// Events of a timeline at the most.
const MAX_TIMELINE: u64 = 100;

/// Users that stand for a room without a name.
const HEROES: usize = 5;

/// A timeline as it is told, and the events in it.
pub(super) struct ToldTimeline {
    pub(super) timeline: Timeline,
    pub(super) events: Vec<TimelineEvent>,
}

impl Snapshot<'_> {
    /// A joined room; none if there is nothing to tell.
    pub(super) fn joined_room(&mut self, room: &SyncRoom, held: Held) -> Result<Option<JoinedRoom>, Error> {
        let id = &*room.room_id;
        let whole = held != Held::Everything || self.query.full_state;
        let active = whole || self.since.is_none_or(|since| room.active > since);
        let mut joined = JoinedRoom::new();
        joined.account_data.events = match held == Held::Nothing && self.since.is_some() {
            true => self.all_account_data(id)?,
            false => self.room_account_data.remove(id).unwrap_or_default(),
        };
        truncate(&mut joined.account_data.events, &self.query.filter.room_account_data);
        joined.ephemeral.events = self.ephemeral(id, held == Held::Nothing)?;
        if self.query.use_state_after {
            joined.state = State::After(StateEvents::new());
        }
        if active {
            self.add_events(room, held, &mut joined)?;
        }
        if !whole && joined.is_empty() {
            return Ok(None);
        }
        self.add_counts(id, &mut joined)?;
        Ok(Some(joined))
    }

    /// Adds timeline, state and summary.
    fn add_events(&mut self, room: &SyncRoom, held: Held, joined: &mut JoinedRoom) -> Result<(), Error> {
        let (txn, query, id) = (self.txn, self.query, &*room.room_id);
        let Some(mut sight) = RoomSight::new(txn, id, &query.session.user_id)? else {
            return Ok(());
        };
        let from = self.since.filter(|_| held != Held::Nothing);
        let mut told = self.timeline(&mut sight, self.upto.0, from.map(|from| from.0))?;
        if self.since.is_some() && held == Held::Nothing {
            // The client may still hold a timeline from before the user left, which this one does not continue.
            told.timeline.limited = true;
        }
        let Some(state) = txn.current_state(id)? else {
            return Ok(());
        };
        let span = Span {
            txn,
            room: id,
            from,
            whole: held != Held::Everything || query.full_state,
            upto: self.upto,
            state,
            is_current: true,
            timeline: &told.events,
            after: query.use_state_after,
        };
        let named = |kind: &StateEventType| {
            matches!(
                kind,
                StateEventType::RoomMember | StateEventType::RoomName | StateEventType::RoomCanonicalAlias
            )
        };
        if span.touches(named)? {
            joined.summary = self.summary(id)?;
        }
        let events = self.state(&span, &joined.summary.heroes)?;
        let redaction = sight.redaction();
        let told_state = events.iter().map(|pdu| self.renderer.state_event(pdu, redaction));
        joined.state = self.state_section(told_state.collect());
        joined.timeline = told.timeline;
        Ok(())
    }

    /// A state section of the kind that the client wants.
    pub(super) fn state_section(&self, events: Vec<Raw<AnySyncStateEvent>>) -> State {
        let fields = &self.query.filter.fields;
        let selected = events
            .into_iter()
            .map(|event| Raw::from_json(fields.apply(event.into_json())));
        let events = StateEvents::with_events(selected.collect());
        match self.query.use_state_after {
            true => State::After(events),
            false => State::Before(events),
        }
    }

    /// The newest events of a room between two places, down to a gap in the room's history if there is one: what lies
    /// beyond it would look as if nothing were missing.
    pub(super) fn timeline(
        &self,
        sight: &mut RoomSight<'_>,
        upto: i64,
        from: Option<i64>,
    ) -> Result<ToldTimeline, Error> {
        let filter = &self.query.filter.timeline;
        let limit = filter.limit.unwrap_or(DEFAULT_TIMELINE).min(MAX_TIMELINE);
        let edge = self.txn.gap_before(sight.room(), Seq(upto))?;
        let edge = edge.map(|gap| gap.0.saturating_sub(1));
        let edge = edge.filter(|edge| from.is_none_or(|from| from < *edge));
        let backwards = Walk {
            from: upto,
            to: edge.or(from),
            direction: Direction::Backward,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            filter,
        };
        let walked = walk(&self.renderer, sight, &backwards)?;
        let mut timeline = Timeline::new();
        timeline.limited = walked.more || (from.is_some() && edge.is_some());
        timeline.prev_batch = Some(TimelineToken(walked.end).to_string());
        let mut events = Vec::with_capacity(walked.events.len());
        for (event, membership) in walked.events.into_iter().rev() {
            let told: Raw<AnySyncTimelineEvent> = self.renderer.timeline_event(sight, &event, membership)?;
            let told = self.query.filter.fields.apply(told.into_json());
            timeline.events.push(Raw::from_json(told));
            events.push(event);
        }
        if timeline.events.is_empty() && !timeline.limited {
            timeline.prev_batch = None;
        }
        Ok(ToldTimeline { timeline, events })
    }

    /// The state to tell with a timeline, as the filter wants it.
    pub(super) fn state(&mut self, span: &Span<'_>, heroes: &[OwnedUserId]) -> Result<Vec<Pdu>, Error> {
        let filter = &self.query.filter.state;
        let lazy = !filter.lazy_load.is_disabled();
        let mut events = span.events(lazy)?;
        if let LazyLoadOptions::Enabled {
            include_redundant_members,
        } = filter.lazy_load
        {
            let mut wanted = span.senders();
            wanted.extend(heroes.iter().cloned());
            if span.whole {
                // "Servers MUST include the syncing user's own membership event when they join a room, or when the full
                // state of rooms is requested."
                wanted.insert(self.query.session.user_id.clone());
            }
            for user in wanted {
                let Some(id) = span.member(&user)? else {
                    continue;
                };
                let known = !span.whole && self.query.told.contains(span.room, &user, &id);
                let told = events.iter().any(|pdu| pdu.event_id() == id);
                if !told && (include_redundant_members || !known) {
                    events.extend(self.txn.event(&id)?.map(|stored| stored.pdu));
                }
            }
        }
        if !filter.passes_all() {
            events.retain(|pdu| {
                filter.passes(&kith_engine::Subject {
                    room: Some(pdu.room_id()),
                    sender: Some(pdu.sender()),
                    kind: &pdu.kind().to_string(),
                    content: Some(pdu.content_json()),
                })
            });
        }
        truncate(&mut events, filter);
        if lazy {
            self.note_members(span, &events);
        }
        Ok(events)
    }

    /// Remembers which membership events the client will hold.
    fn note_members(&mut self, span: &Span<'_>, state: &[Pdu]) {
        if span.from.is_none() {
            self.told.start_room(span.room);
        }
        let timeline = span.timeline.iter().map(|event| &event.pdu).filter(|_| !span.after);
        for pdu in state.iter().chain(timeline) {
            if let Some((StateEventType::RoomMember, user)) = pdu.state_entry()
                && let Ok(user) = ruma::UserId::parse(user)
            {
                self.told.insert(span.room, &user, pdu.event_id().to_owned());
            }
        }
    }

    fn summary(&self, room: &RoomId) -> Result<RoomSummary, Error> {
        let mut summary = RoomSummary::new();
        let count = |membership| -> Result<Option<UInt>, Error> {
            Ok(UInt::try_from(self.txn.member_count(room, &membership)?).ok())
        };
        summary.joined_member_count = count(MembershipState::Join)?;
        summary.invited_member_count = count(MembershipState::Invite)?;
        if !self.is_named(room)? {
            let user = &self.query.session.user_id;
            let present = [MembershipState::Join, MembershipState::Invite];
            summary.heroes = self.txn.heroes(room, user, &present, HEROES)?;
            if summary.heroes.is_empty() {
                let gone = [MembershipState::Leave, MembershipState::Ban];
                summary.heroes = self.txn.heroes(room, user, &gone, HEROES)?;
            }
        }
        Ok(summary)
    }

    /// Whether a room has a name or an alias to be called by.
    fn is_named(&self, room: &RoomId) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Content {
            name: Option<String>,
            alias: Option<String>,
        }
        for kind in [StateEventType::RoomName, StateEventType::RoomCanonicalAlias] {
            let event = self.txn.current_state_event(room, &kind, "")?;
            let content = event.and_then(|pdu| pdu.content_as::<Content>().ok());
            if content.is_some_and(|content| content.name.or(content.alias).is_some_and(|name| !name.is_empty())) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn add_counts(&self, room: &RoomId, joined: &mut JoinedRoom) -> Result<(), Error> {
        let counts = self.txn.notification_counts(&self.query.session.user_id, room)?;
        let told = |counts: kith_store::UnreadCounts| {
            let mut told = UnreadNotificationsCount::new();
            told.notification_count = UInt::try_from(counts.notifications).ok();
            told.highlight_count = UInt::try_from(counts.highlights).ok();
            told
        };
        if self.query.filter.timeline.unread_threads {
            joined.unread_notifications = told(counts.main);
            let threads = counts.threads.into_iter();
            joined.unread_thread_notifications = threads.map(|(root, counts)| (root, told(counts))).collect();
        } else {
            joined.unread_notifications = told(counts.total());
        }
        Ok(())
    }
}
