//! Walks a room's timeline as one user may read it and as a filter wants it. It stops in time whatever the filter.

use kith_engine::{EventFilter, Subject};
use kith_store::{Direction, Seq, TimelineEvent};
use ruma::events::room::member::MembershipState;

use super::{render::Renderer, sight::RoomSight};
use crate::Error;

/// Events looked at in one walk: a filter that passes next to nothing gets what was found among them.
const MAX_SCANNED: usize = 10_000;

/// Events read at once at the most.
const CHUNK: usize = 256;

/// Where to walk. Places are between events: an event with stream position `n` stands between `n - 1` and `n`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk<'f> {
    /// Where to begin.
    pub(crate) from: i64,
    /// Where to end, if not at the end of the timeline.
    pub(crate) to: Option<i64>,
    /// Which way to go.
    pub(crate) direction: Direction,
    /// The most events to return.
    pub(crate) limit: usize,
    /// Which events are wanted.
    pub(crate) filter: &'f EventFilter,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// The events in walking order, each with the reader's membership at it.
    pub(crate) events: Vec<(TimelineEvent, MembershipState)>,
    /// Where to go on from: everything up to there has been looked at.
    pub(crate) end: i64,
    /// Whether there is, or may be, more to find from there on.
    pub(crate) more: bool,
    /// Whether the timeline ended, rather than the walk.
    pub(crate) exhausted: bool,
}

/// Walks a timeline. It looks one event further than it returns, so as to know whether there is more.
pub(crate) fn walk(renderer: &Renderer<'_>, sight: &mut RoomSight<'_>, walk: &Walk<'_>) -> Result<Walked, Error> {
    let mut found = Walked {
        end: walk.from,
        ..Walked::default()
    };
    // A filter that passes nothing finds nothing, and a thorough search would only tell the same.
    if walk.filter.passes_none() {
        return Ok(found);
    }
    let mut from = walk.from;
    let mut scanned = 0;
    while scanned < MAX_SCANNED {
        let chunk = (walk.limit - found.events.len() + 1).min(CHUNK);
        // The store's places are the events' own, and exclusive.
        let place = match walk.direction {
            Direction::Forward => Seq(from),
            Direction::Backward => Seq(from.saturating_add(1)),
        };
        let events = renderer.txn.timeline(sight.room(), place, walk.direction, chunk)?;
        let last = events.len() < chunk;
        for event in events {
            let place = event.stream.0;
            let (beyond, next) = match walk.direction {
                Direction::Forward => (walk.to.is_some_and(|to| place > to), place),
                Direction::Backward => (walk.to.is_some_and(|to| place <= to), place - 1),
            };
            if beyond {
                found.end = from;
                return Ok(found);
            }
            scanned += 1;
            from = next;
            let Some(membership) = wanted(renderer, sight, walk.filter, &event)? else {
                continue;
            };
            if found.events.len() == walk.limit {
                found.more = true;
                return Ok(found);
            }
            found.events.push((event, membership));
            found.end = next;
        }
        if last {
            found.end = from;
            found.exhausted = true;
            return Ok(found);
        }
    }
    found.end = from;
    found.more = true;
    Ok(found)
}

/// The reader's membership at an event, if the filter wants it and the reader may and wants to read it.
fn wanted(
    renderer: &Renderer<'_>,
    sight: &mut RoomSight<'_>,
    filter: &EventFilter,
    event: &TimelineEvent,
) -> Result<Option<MembershipState>, Error> {
    let pdu = &event.pdu;
    if !filter.passes_all() {
        let subject = Subject {
            room: Some(sight.room()),
            sender: Some(pdu.sender()),
            kind: &pdu.kind().to_string(),
            content: Some(pdu.content_json()),
        };
        if !filter.passes(&subject) {
            return Ok(None);
        }
    }
    if renderer.ignores(pdu) {
        return Ok(None);
    }
    sight.membership_at(event)
}
