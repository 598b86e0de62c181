//! Evaluates the filters that clients put on what they read. It never fetches what it judges.
//!
//! Client-server API, "Filtering".

use std::collections::BTreeSet;

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::{
        EventFormat, Filter, FilterDefinition, LazyLoadOptions, RoomEventFilter, RoomFilter, UrlFilter,
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::FieldSelection;

/// What a filter is asked about. Fields that a kind of event does not have are none, and pass.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The room, if the event belongs to one.
    pub room: Option<&'a RoomId>,
    /// The sender, if it has one.
    pub sender: Option<&'a UserId>,
    /// The event type.
    pub kind: &'a str,
    /// The content, as JSON; read only by a filter on `contains_url`.
    pub content: Option<&'a str>,
}

/// One filter over events, of any of the kinds that Matrix has.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    types: Option<Vec<TypePattern>>,
    not_types: Vec<TypePattern>,
    senders: Option<BTreeSet<OwnedUserId>>,
    not_senders: BTreeSet<OwnedUserId>,
    rooms: RoomSet,
    with_url: Option<bool>,
    /// The most events that the client wants, if it said.
    pub limit: Option<u64>,
    /// Whether, and how, membership events are left out until their sender speaks.
    pub lazy_load: LazyLoadOptions,
    /// Whether unread counts are told per thread.
    pub unread_threads: bool,
}

impl EventFilter {
    /// Whether an event passes.
    pub fn passes(&self, subject: &Subject<'_>) -> bool {
        self.passes_kind(subject.kind)
            && subject.sender.is_none_or(|sender| self.passes_sender(sender))
            && subject.room.is_none_or(|room| self.rooms.contains(room))
            && self.passes_content(subject.content)
    }

    /// Whether every event passes, so that nothing need be asked.
    pub fn passes_all(&self) -> bool {
        self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_none()
            && self.not_senders.is_empty()
            && self.rooms.is_everything()
            && self.with_url.is_none()
    }

    /// Whether no event can pass, so that nothing need be read.
    pub fn passes_none(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
            || self.senders.as_ref().is_some_and(BTreeSet::is_empty)
            || self.rooms.is_nothing()
    }

    /// Whether events of a room can pass.
    pub fn passes_room(&self, room: &RoomId) -> bool {
        self.rooms.contains(room)
    }

    fn passes_kind(&self, kind: &str) -> bool {
        self.types
            .as_ref()
            .is_none_or(|types| types.iter().any(|pattern| pattern.matches(kind)))
            && !self.not_types.iter().any(|pattern| pattern.matches(kind))
    }

    fn passes_sender(&self, sender: &UserId) -> bool {
        self.senders.as_ref().is_none_or(|senders| senders.contains(sender)) && !self.not_senders.contains(sender)
    }

    fn passes_content(&self, content: Option<&str>) -> bool {
        match (self.with_url, content) {
            (Some(wanted), Some(content)) => has_url(content) == wanted,
            _ => true,
        }
    }
}

impl From<&RoomEventFilter> for EventFilter {
    fn from(filter: &RoomEventFilter) -> Self {
        Self {
            types: filter.types.as_ref().map(|types| patterns(types)),
            not_types: patterns(&filter.not_types),
            senders: filter.senders.as_ref().map(|senders| senders.iter().cloned().collect()),
            not_senders: filter.not_senders.iter().cloned().collect(),
            rooms: RoomSet::new(filter.rooms.as_deref(), &filter.not_rooms),
            with_url: filter.url_filter.map(|wanted| wanted == UrlFilter::EventsWithUrl),
            limit: filter.limit.map(u64::from),
            lazy_load: filter.lazy_load_options,
            unread_threads: filter.unread_thread_notifications,
        }
    }
}

impl From<&Filter> for EventFilter {
    fn from(filter: &Filter) -> Self {
        Self {
            types: filter.types.as_ref().map(|types| patterns(types)),
            not_types: patterns(&filter.not_types),
            senders: filter.senders.as_ref().map(|senders| senders.iter().cloned().collect()),
            not_senders: filter.not_senders.iter().cloned().collect(),
            limit: filter.limit.map(u64::from),
            ..Self::default()
        }
    }
}

/// The filter of a `/sync`: one part for each section of the answer.
#[derive(Debug, Clone, Default)]
pub struct SyncFilter {
    /// Which rooms are told of at all.
    pub rooms: RoomSet,
    /// Whether an initial sync tells of rooms that were left.
    pub include_leave: bool,
    /// Room timelines.
    pub timeline: EventFilter,
    /// Room state. Its lazy loading is that of the whole answer.
    pub state: EventFilter,
    /// Typing and receipts.
    pub ephemeral: EventFilter,
    /// Account data of rooms.
    pub room_account_data: EventFilter,
    /// Account data of the user.
    pub account_data: EventFilter,
    /// Presence.
    pub presence: EventFilter,
    /// Which fields of events are told.
    pub fields: FieldSelection,
    /// Whether events are told as servers exchange them.
    pub federation_format: bool,
}

impl From<&FilterDefinition> for SyncFilter {
    fn from(filter: &FilterDefinition) -> Self {
        let RoomFilter {
            include_leave,
            account_data,
            timeline,
            ephemeral,
            state,
            not_rooms,
            rooms,
            ..
        } = &filter.room;
        Self {
            rooms: RoomSet::new(rooms.as_deref(), not_rooms),
            include_leave: *include_leave,
            timeline: timeline.into(),
            state: state.into(),
            ephemeral: ephemeral.into(),
            room_account_data: account_data.into(),
            account_data: (&filter.account_data).into(),
            presence: (&filter.presence).into(),
            fields: FieldSelection::new(filter.event_fields.as_deref()),
            federation_format: filter.event_format == EventFormat::Federation,
        }
    }
}

/// A choice of rooms: those listed, or all; without those excluded.
#[derive(Debug, Clone, Default)]
pub struct RoomSet {
    only: Option<BTreeSet<OwnedRoomId>>,
    except: BTreeSet<OwnedRoomId>,
}

impl RoomSet {
    fn new(only: Option<&[OwnedRoomId]>, except: &[OwnedRoomId]) -> Self {
        Self {
            only: only.map(|rooms| rooms.iter().cloned().collect()),
            except: except.iter().cloned().collect(),
        }
    }

    /// Whether a room is chosen. A room that is both listed and excluded is not.
    pub fn contains(&self, room: &RoomId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(room)) && !self.except.contains(room)
    }

    fn is_everything(&self) -> bool {
        self.only.is_none() && self.except.is_empty()
    }

    fn is_nothing(&self) -> bool {
        self.only.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

/// An event type with `*` for any run of characters.
#[derive(Debug, Clone)]
struct TypePattern(String);

fn patterns(types: &[String]) -> Vec<TypePattern> {
    types.iter().cloned().map(TypePattern).collect()
}

impl TypePattern {
    /// Takes time in the product of the lengths at the worst; both are bounded by the request and event sizes.
    fn matches(&self, kind: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else {
            return self.0 == kind;
        };
        let Some(mut left) = kind.strip_prefix(head) else {
            return false;
        };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Taking each piece at its first place leaves the most for those after it.
        for piece in middle.split('*') {
            let Some(at) = left.find(piece) else {
                return false;
            };
            left = left.get(at + piece.len()..).unwrap_or_default();
        }
        left.ends_with(tail)
    }
}

/// Whether content has a `url`, which the specification takes to be text.
fn has_url(content: &str) -> bool {
    #[derive(Deserialize)]
    struct WithUrl<'a> {
        #[serde(borrow)]
        url: Option<&'a RawValue>,
    }
    // Content that is no object has no url; whatever else is wrong with it is not this function's to judge.
    serde_json::from_str::<WithUrl<'_>>(content)
        .ok()
        .and_then(|content| content.url)
        .is_some_and(|url| url.get().starts_with('"'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;

    /// Asks a room event filter about an event in `!a:x` by `@alice:x`.
    fn check(filter: serde_json::Value, kind: &str, content: serde_json::Value, expected: bool) {
        let parsed: RoomEventFilter = serde_json::from_value(filter.clone()).unwrap();
        let content = content.to_string();
        let subject = Subject {
            room: Some(room_id!("!a:x")),
            sender: Some(user_id!("@alice:x")),
            kind,
            content: Some(&content),
        };
        let filter_of_events = EventFilter::from(&parsed);
        assert_eq!(filter_of_events.passes(&subject), expected, "{filter} about {kind}");
        assert!(!(expected && filter_of_events.passes_none()), "{filter}");
        assert!(expected || !filter_of_events.passes_all(), "{filter}");
    }

    #[test]
    fn room_event_filters() {
        let message = "m.room.message";
        let text = || json!({ "body": "hello" });
        let image = || json!({ "body": "x.png", "url": "mxc://x/y" });
        let cases = [
            (json!({}), message, text(), true),
            (json!({ "types": [] }), message, text(), false),
            (json!({ "types": ["m.room.message"] }), message, text(), true),
            (json!({ "types": ["m.room.*"] }), message, text(), true),
            (json!({ "types": ["*"] }), message, text(), true),
            (json!({ "types": ["**"] }), message, text(), true),
            (json!({ "types": ["*.message"] }), message, text(), true),
            (json!({ "types": ["m.*.mess*e"] }), message, text(), true),
            (json!({ "types": ["m.*.mess*ee"] }), message, text(), false),
            (json!({ "types": ["m.room.message*message"] }), message, text(), false),
            (json!({ "types": ["m.room"] }), message, text(), false),
            (json!({ "types": ["m?room?message"] }), message, text(), false),
            (json!({ "not_types": ["m.room.*"] }), message, text(), false),
            (
                json!({ "types": ["m.room.message"], "not_types": ["m.room.message"] }),
                message,
                text(),
                false,
            ),
            (json!({ "senders": ["@alice:x"] }), message, text(), true),
            (json!({ "senders": [] }), message, text(), false),
            (json!({ "senders": ["@bob:x"] }), message, text(), false),
            (json!({ "not_senders": ["@alice:x"] }), message, text(), false),
            (
                json!({ "senders": ["@alice:x"], "not_senders": ["@alice:x"] }),
                message,
                text(),
                false,
            ),
            (json!({ "rooms": ["!a:x"] }), message, text(), true),
            (json!({ "rooms": [] }), message, text(), false),
            (json!({ "rooms": ["!b:x"] }), message, text(), false),
            (json!({ "not_rooms": ["!a:x"] }), message, text(), false),
            (json!({ "contains_url": true }), message, text(), false),
            (json!({ "contains_url": true }), message, image(), true),
            (json!({ "contains_url": false }), message, text(), true),
            (json!({ "contains_url": false }), message, image(), false),
            (json!({ "contains_url": true }), message, json!({ "url": 5 }), false),
        ];
        for (filter, kind, content, expected) in cases {
            check(filter, kind, content, expected);
        }
    }

    #[test]
    fn what_an_event_lacks_is_not_asked() {
        let filter = EventFilter {
            senders: Some(BTreeSet::from([user_id!("@bob:x").to_owned()])),
            rooms: RoomSet::new(Some(&[room_id!("!b:x").to_owned()]), &[]),
            ..EventFilter::default()
        };
        let subject = Subject {
            room: None,
            sender: None,
            kind: "m.push_rules",
            content: None,
        };
        assert!(filter.passes(&subject));
    }

    proptest! {
        /// A pattern made by blotting out parts of a type matches that type.
        #[test]
        fn a_blotted_type_matches(kind in "[a-c.]{0,12}", cuts in prop::collection::vec((0usize..12, 0usize..4), 0..4)) {
            let mut pattern: Vec<char> = kind.chars().collect();
            for (at, length) in cuts {
                let at = at.min(pattern.len());
                let end = (at + length).min(pattern.len());
                pattern.splice(at..end, ['*']);
            }
            let pattern: String = pattern.into_iter().collect();
            prop_assert!(TypePattern(pattern.clone()).matches(&kind), "{pattern} and {kind}");
        }

        /// Matching agrees with trying every way to fill the wildcards.
        #[test]
        fn matching_is_exhaustive(pattern in "[ab*]{0,7}", kind in "[ab]{0,7}") {
            fn naive(pattern: &[u8], kind: &[u8]) -> bool {
                match pattern.split_first() {
                    None => kind.is_empty(),
                    Some((b'*', rest)) => (0..=kind.len()).any(|skip| naive(rest, &kind[skip..])),
                    Some((byte, rest)) => kind.split_first().is_some_and(|(first, left)| first == byte && naive(rest, left)),
                }
            }
            prop_assert_eq!(TypePattern(pattern.clone()).matches(&kind), naive(pattern.as_bytes(), kind.as_bytes()));
        }
    }
}
