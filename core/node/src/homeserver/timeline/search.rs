//! `/search`: words in the rooms that a user may read. Encrypted words cannot be found.
//!
//! Client-server API, "Server side search".

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::ParseIntError,
    str::FromStr,
};

use kith_engine::{ClientFormat, EventFilter, RoomReader, Subject};
use kith_store::{Direction, ReadTxn, SearchField, SearchHit, SearchOrder};
use ruma::{
    OwnedEventId, OwnedMxcUri, OwnedRoomId, OwnedUserId,
    api::client::search::search_events::v3::{
        self, Criteria, EventContextResult, GroupingKey, OrderBy, ResultGroup, ResultGroupMap,
        ResultGroupMapsByGroupingKey, ResultRoomEvents, SearchKeys, SearchResult, UserProfile,
    },
    events::{AnyStateEvent, StateEventType, room::member::MembershipState},
    serde::Raw,
};
use serde::Deserialize;

use super::{
    RoomSight, Timeline, TimelineToken, Walk, ignored_users, member_key, messages::page_size, render::Renderer, walk,
};
use crate::{Error, homeserver::Session};

/// Hits on one page if the client does not say.
const DEFAULT_PAGE: u64 = 10;

/// Hits looked at for one page, and for the count: filters and visibility may pass over many.
const MAX_SCANNED: usize = 1000;

/// Events on either side of a hit at the most.
const MAX_AROUND: usize = 50;

impl Timeline {
    /// Finds events by their words.
    pub async fn search(&self, session: &Session, request: v3::Request) -> Result<v3::Response, Error> {
        let mut categories = v3::ResultCategories::new();
        let Some(criteria) = request.search_categories.room_events else {
            return Ok(v3::Response::new(categories));
        };
        let from = match request.next_batch.as_deref() {
            None => Page::default(),
            Some(token) => token
                .parse()
                .map_err(|_| Error::invalid_param("unknown pagination token"))?,
        };
        let session = session.clone();
        let now = self.ctx.world.now();
        let search = move |txn: &ReadTxn<'_>| {
            let ignored = ignored_users(txn, &session.user_id)?;
            let renderer = Renderer {
                txn,
                session: &session,
                now,
                format: ClientFormat::Full,
                ignored: &ignored,
            };
            Search::new(renderer, &criteria)?.run(from)
        };
        categories.room_events = self.ctx.store.read(search).await?;
        Ok(v3::Response::new(categories))
    }
}

/// Where a page begins; as text, the token that leads to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Page {
    /// Hits before it, whether or not they were shown.
    skip: usize,
    /// How many there are on all pages, as was told on the first; none on that.
    count: Option<usize>,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.skip, self.count.unwrap_or_default())
    }
}

impl FromStr for Page {
    type Err = ParseIntError;

    fn from_str(token: &str) -> Result<Self, ParseIntError> {
        let (skip, count) = token.split_once('.').unwrap_or((token, ""));
        Ok(Self {
            skip: skip.parse()?,
            count: Some(count.parse()?),
        })
    }
}

/// One search within one snapshot.
struct Search<'t> {
    renderer: Renderer<'t>,
    criteria: &'t Criteria,
    filter: EventFilter,
    fields: Vec<SearchField>,
    order: SearchOrder,
    rooms: Vec<OwnedRoomId>,
    sights: BTreeMap<OwnedRoomId, Option<RoomSight<'t>>>,
}

impl<'t> Search<'t> {
    fn new(renderer: Renderer<'t>, criteria: &'t Criteria) -> Result<Self, Error> {
        let filter = EventFilter::from(&criteria.filter);
        let order = match &criteria.order_by {
            None | Some(OrderBy::Rank) => SearchOrder::Rank,
            Some(OrderBy::Recent) => SearchOrder::Recent,
            Some(_) => return Err(Error::invalid_param("`order_by` is `rank` or `recent`")),
        };
        let every = [SearchField::Body, SearchField::Name, SearchField::Topic];
        let fields = match &criteria.keys {
            None => every.to_vec(),
            Some(keys) => keys.iter().filter_map(field).collect(),
        };
        let user = &renderer.session.user_id;
        let standing = [MembershipState::Join, MembershipState::Leave, MembershipState::Ban];
        let mut rooms = Vec::new();
        for room in renderer.txn.rooms_of(user, &standing)? {
            if filter.passes_room(&room.room_id) && !renderer.txn.is_forgotten(user, &room.room_id)? {
                rooms.push(room.room_id);
            }
        }
        Ok(Self {
            renderer,
            criteria,
            filter,
            fields,
            order,
            rooms,
            sights: BTreeMap::new(),
        })
    }

    fn run(mut self, from: Page) -> Result<ResultRoomEvents, Error> {
        let mut found = ResultRoomEvents::new();
        let limit = page_size(self.filter.limit.unwrap_or(DEFAULT_PAGE));
        let (txn, term) = (self.renderer.txn, self.criteria.search_term.as_str());
        let hits = txn.search(term, &self.fields, &self.rooms, self.order, from.skip, MAX_SCANNED)?;
        let scanned_all = hits.len() < MAX_SCANNED;
        let (mut looked_at, mut visible) = (from.skip, 0);
        let (mut shown, mut next) = (Vec::new(), None);
        for hit in hits {
            // Those beyond the page are looked at for the count, on the first page.
            if next.is_some() && from.count.is_some() {
                break;
            }
            let place = looked_at;
            looked_at += 1;
            let Some(membership) = self.wanted(&hit)? else {
                continue;
            };
            visible += 1;
            if shown.len() < limit {
                shown.push((hit, membership));
            } else {
                next.get_or_insert(place);
            }
        }
        let next = next.or((!scanned_all).then_some(looked_at));
        // What the reader may not read must not count either.
        let count = from.count.unwrap_or(visible);
        found.next_batch = next.map(|skip| {
            let count = Some(count);
            Page { skip, count }.to_string()
        });
        found.count = count.try_into().ok();
        found.highlights = highlights(term);
        found.groups = self.groups(&shown);
        if self.criteria.include_state == Some(true) {
            found.state = self.states(&shown)?;
        }
        for (hit, membership) in shown {
            found.results.push(self.result(&hit, membership)?);
        }
        Ok(found)
    }

    /// The reader's membership at a hit that is to be told.
    fn wanted(&mut self, hit: &SearchHit) -> Result<Option<MembershipState>, Error> {
        let pdu = &hit.event.pdu;
        let subject = Subject {
            room: Some(pdu.room_id()),
            sender: Some(pdu.sender()),
            kind: &pdu.kind().to_string(),
            content: Some(pdu.content_json()),
        };
        if !self.filter.passes(&subject) || self.renderer.ignores(pdu) {
            return Ok(None);
        }
        match self.sight(hit)? {
            Some(sight) => sight.membership_at(&hit.event),
            None => Ok(None),
        }
    }

    fn sight(&mut self, hit: &SearchHit) -> Result<Option<&mut RoomSight<'t>>, Error> {
        let room = hit.event.pdu.room_id();
        if !self.sights.contains_key(room) {
            let sight = RoomSight::new(self.renderer.txn, room, &self.renderer.session.user_id)?;
            self.sights.insert(room.to_owned(), sight);
        }
        Ok(self.sights.get_mut(room).and_then(Option::as_mut))
    }

    fn result(&mut self, hit: &SearchHit, membership: MembershipState) -> Result<SearchResult, Error> {
        let mut result = SearchResult::new();
        result.rank = Some(hit.rank);
        result.context = self.around(hit)?;
        // The sight is borrowed apart from the renderer: both belong to this search.
        let room = hit.event.pdu.room_id();
        if let Some(sight) = self.sights.get_mut(room).and_then(Option::as_mut) {
            result.result = Some(self.renderer.timeline_event(sight, &hit.event, membership)?);
        }
        Ok(result)
    }

    /// The events around a hit, and their senders' names if these are wanted.
    fn around(&mut self, hit: &SearchHit) -> Result<EventContextResult, Error> {
        let mut context = EventContextResult::new();
        let wanted = &self.criteria.event_context;
        let count = |limit: ruma::UInt| usize::try_from(u64::from(limit)).unwrap_or(MAX_AROUND).min(MAX_AROUND);
        let (before, after) = (count(wanted.before_limit), count(wanted.after_limit));
        let room = hit.event.pdu.room_id();
        let Some(sight) = self.sights.get_mut(room).and_then(Option::as_mut) else {
            return Ok(context);
        };
        let place = hit.event.stream.0;
        let all = EventFilter::default();
        let mut side = |direction, from, limit| {
            let to_walk = Walk {
                from,
                to: None,
                direction,
                limit,
                filter: &all,
            };
            walk(&self.renderer, sight, &to_walk)
        };
        let before = side(Direction::Backward, place - 1, before)?;
        let after = side(Direction::Forward, place, after)?;
        context.start = Some(TimelineToken(before.end).to_string());
        context.end = Some(TimelineToken(after.end).to_string());
        let mut senders = BTreeSet::from([hit.event.pdu.sender().to_owned()]);
        for (event, membership) in before.events {
            senders.insert(event.pdu.sender().to_owned());
            context
                .events_before
                .push(self.renderer.timeline_event(sight, &event, membership)?);
        }
        for (event, membership) in after.events {
            senders.insert(event.pdu.sender().to_owned());
            context
                .events_after
                .push(self.renderer.timeline_event(sight, &event, membership)?);
        }
        if wanted.include_profile
            && let Some(state) = hit.event.state_after
        {
            for sender in senders {
                let id = self.renderer.txn.state_entry(state, &member_key(&sender))?;
                let stored = id.map(|id| self.renderer.txn.event(&id)).transpose()?.flatten();
                let profile = stored
                    .map(|stored| profile(stored.pdu.content_json()))
                    .unwrap_or_default();
                context.profile_info.insert(sender, profile);
            }
        }
        Ok(context)
    }

    fn groups(&self, shown: &[(SearchHit, MembershipState)]) -> ResultGroupMapsByGroupingKey {
        let mut by_room: BTreeMap<OwnedRoomId, Vec<OwnedEventId>> = BTreeMap::new();
        let mut by_sender: BTreeMap<OwnedUserId, Vec<OwnedEventId>> = BTreeMap::new();
        for (hit, _) in shown {
            let pdu = &hit.event.pdu;
            let id = pdu.event_id().to_owned();
            by_room.entry(pdu.room_id().to_owned()).or_default().push(id.clone());
            by_sender.entry(pdu.sender().to_owned()).or_default().push(id);
        }
        let mut groups = ResultGroupMapsByGroupingKey::new();
        for grouping in &self.criteria.groupings.group_by {
            match &grouping.key {
                Some(GroupingKey::RoomId) => groups.insert(ResultGroupMap::RoomId(numbered(&by_room))),
                Some(GroupingKey::Sender) => groups.insert(ResultGroupMap::Sender(numbered(&by_sender))),
                _ => None,
            };
        }
        groups
    }

    /// The current state of the rooms of some hits, where the reader may read it.
    fn states(
        &self,
        shown: &[(SearchHit, MembershipState)],
    ) -> Result<BTreeMap<OwnedRoomId, Vec<Raw<AnyStateEvent>>>, Error> {
        let mut states = BTreeMap::new();
        for (hit, _) in shown {
            let room = hit.event.pdu.room_id();
            let Some(Some(sight)) = self.sights.get(room) else {
                continue;
            };
            let user = &self.renderer.session.user_id;
            if states.contains_key(room) || self.renderer.txn.membership(room, user)? != MembershipState::Join {
                continue;
            }
            let events = self
                .renderer
                .txn
                .current_state_events(room, |kind| *kind != StateEventType::RoomMember)?;
            let told = events
                .iter()
                .map(|pdu| self.renderer.state_event(pdu, sight.redaction()));
            states.insert(room.to_owned(), told.collect());
        }
        Ok(states)
    }
}

fn field(key: &SearchKeys) -> Option<SearchField> {
    match key {
        SearchKeys::ContentBody => Some(SearchField::Body),
        SearchKeys::ContentName => Some(SearchField::Name),
        SearchKeys::ContentTopic => Some(SearchField::Topic),
        _ => None,
    }
}

/// The words to highlight: those that were searched.
fn highlights(term: &str) -> Vec<String> {
    let words = term.split(|char: char| !char.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Groups in the order of their keys.
fn numbered<K: Ord + Clone>(groups: &BTreeMap<K, Vec<OwnedEventId>>) -> BTreeMap<K, ResultGroup> {
    let numbered = groups.iter().zip(1u32..).map(|((key, events), order)| {
        let mut group = ResultGroup::new();
        group.order = Some(order.into());
        group.results = events.clone();
        (key.clone(), group)
    });
    numbered.collect()
}

fn profile(content: &str) -> UserProfile {
    #[derive(Deserialize, Default)]
    struct Content {
        displayname: Option<String>,
        avatar_url: Option<OwnedMxcUri>,
    }
    let content: Content = serde_json::from_str(content).unwrap_or_default();
    let mut profile = UserProfile::new();
    profile.displayname = content.displayname;
    profile.avatar_url = content.avatar_url;
    profile
}
