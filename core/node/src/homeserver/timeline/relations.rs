//! `/relations` and `/threads`: what relates to an event, and the threads of a room.

use kith_engine::Pdu;
use kith_store::{Direction, RECURSION_DEPTH, RelationQuery, Seq, TimelineEvent};
use ruma::{
    OwnedEventId, OwnedRoomId, UInt, UserId,
    api::client::threads::get_threads::{self, v1::IncludeThreads},
    events::AnyTimelineEvent,
    serde::Raw,
};

use super::{
    Reading, Timeline, TimelineToken,
    messages::{page_size, place},
};
use crate::{Error, homeserver::Session};

/// Events of one page if the client does not say.
const DEFAULT_PAGE: u64 = 50;

/// Threads looked at for one page: a user who took part in few gets what was found among them.
const MAX_THREADS_SCANNED: usize = 1000;

/// What the three `/relations` endpoints ask.
#[derive(Debug, Clone)]
pub struct RelationsRequest {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event that others relate to.
    pub event_id: OwnedEventId,
    /// Only relations of this type.
    pub rel_type: Option<String>,
    /// Only events of this type.
    pub event_type: Option<String>,
    /// Where the page begins.
    pub from: Option<String>,
    /// Where it ends at the latest.
    pub to: Option<String>,
    /// The way from the one to the other.
    pub direction: Direction,
    /// The most events.
    pub limit: Option<UInt>,
    /// Whether to tell also what relates to what relates to the event.
    pub recurse: bool,
}

/// What they answer.
#[derive(Debug, Clone)]
pub struct Relations<T> {
    /// The events.
    pub chunk: Vec<Raw<T>>,
    /// Where the next page begins, if there is one.
    pub next_batch: Option<String>,
    /// Where this page began.
    pub prev_batch: Option<String>,
    /// How deep it was looked, if it was asked.
    pub recursion_depth: Option<UInt>,
}

impl Timeline {
    /// Events that relate to another.
    pub async fn relations<T: Send + 'static>(
        &self,
        session: &Session,
        request: RelationsRequest,
    ) -> Result<Relations<T>, Error> {
        let from = request.from.as_deref().map(place).transpose()?;
        let to = request.to.as_deref().map(place).transpose()?;
        let room = request.room_id.clone();
        let relations = move |reading: &mut Reading<'_>| reading.relations(&request, from, to);
        self.read(session, room, relations).await
    }

    /// The threads of a room, those that were written in last first.
    pub async fn threads(
        &self,
        session: &Session,
        request: get_threads::v1::Request,
    ) -> Result<get_threads::v1::Response, Error> {
        let before = request.from.as_deref().map(place).transpose()?.unwrap_or(i64::MAX);
        let limit = page_size(request.limit.map_or(DEFAULT_PAGE, u64::from));
        let own = match request.include {
            IncludeThreads::All => false,
            IncludeThreads::Participated => true,
            _ => return Err(Error::invalid_param("`include` is `all` or `participated`")),
        };
        let threads = move |reading: &mut Reading<'_>| reading.threads(before, limit, own);
        self.read(session, request.room_id, threads).await
    }
}

impl Reading<'_> {
    fn relations<T>(
        &mut self,
        request: &RelationsRequest,
        from: Option<i64>,
        to: Option<i64>,
    ) -> Result<Relations<T>, Error> {
        self.visible_event(&request.event_id)?;
        let limit = page_size(request.limit.map_or(DEFAULT_PAGE, u64::from));
        let start = match (from, request.direction) {
            (Some(from), Direction::Backward) => from.saturating_add(1),
            (Some(from), Direction::Forward) => from,
            (None, Direction::Backward) => i64::MAX,
            (None, Direction::Forward) => i64::MIN,
        };
        let room = request.room_id.clone();
        let found = self.txn.relations(&RelationQuery {
            room: &room,
            target: &request.event_id,
            rel_type: request.rel_type.as_deref(),
            kind: request.event_type.as_deref(),
            recurse: request.recurse,
            from: Seq(start),
            direction: request.direction,
            limit: limit + 1,
        })?;
        let more = found.len() > limit;
        let mut chunk = Vec::new();
        let mut end = None;
        for event in found.iter().take(limit) {
            let place = event.stream.0;
            let beyond = match request.direction {
                Direction::Backward => to.is_some_and(|to| place <= to),
                Direction::Forward => to.is_some_and(|to| place > to),
            };
            if beyond {
                end = None;
                break;
            }
            end = more.then(|| match request.direction {
                Direction::Backward => place - 1,
                Direction::Forward => place,
            });
            if self.renderer.ignores(&event.pdu) {
                continue;
            }
            if let Some(membership) = self.sight.membership_at(event)? {
                chunk.push(self.renderer.timeline_event(&mut self.sight, event, membership)?);
            }
        }
        Ok(Relations {
            chunk,
            next_batch: end.map(|end| TimelineToken(end).to_string()),
            prev_batch: request.from.clone(),
            recursion_depth: request.recurse.then(|| RECURSION_DEPTH.into()),
        })
    }

    fn threads(&mut self, before: i64, limit: usize, own: bool) -> Result<get_threads::v1::Response, Error> {
        let room = self.sight.room().to_owned();
        let places = self.txn.threads(&room, Seq(before), MAX_THREADS_SCANNED)?;
        let scanned_all = places.len() < MAX_THREADS_SCANNED;
        let mut chunk = Vec::new();
        let mut last = None;
        for thread in places {
            if chunk.len() == limit {
                return Ok(threads_page(chunk, last));
            }
            last = Some(thread.latest.0);
            if let Some(root) = self.thread_root(&thread.root, own)? {
                chunk.push(root);
            }
        }
        Ok(threads_page(chunk, last.filter(|_| !scanned_all)))
    }

    /// A thread's root as it is told, if the reader may read it and, with `own`, wrote in the thread.
    fn thread_root(&mut self, root: &OwnedEventId, own: bool) -> Result<Option<Raw<AnyTimelineEvent>>, Error> {
        let Ok((event, membership)) = self.visible_event(root) else {
            return Ok(None);
        };
        if own && !self.participated(&event.pdu)? {
            return Ok(None);
        }
        // "If the thread root event was sent by an ignored user, the event is returned redacted to the caller."
        let event = match self.renderer.ignores(&event.pdu) {
            true => TimelineEvent {
                pdu: event
                    .pdu
                    .redacted(self.sight.redaction())
                    .map_err(|error| Error::Internal("a stored event", Some(Box::new(error))))?,
                ..event
            },
            false => event,
        };
        let told = self.renderer.timeline_event(&mut self.sight, &event, membership)?;
        Ok(Some(told))
    }

    fn participated(&self, root: &Pdu) -> Result<bool, Error> {
        let reader = &self.renderer.session.user_id;
        if root.sender() == reader {
            return Ok(true);
        }
        let ignored: Vec<&UserId> = self.renderer.ignored.iter().map(|user| &**user).collect();
        let thread = self.txn.thread(root.room_id(), root.event_id(), reader, &ignored)?;
        Ok(thread.is_some_and(|thread| thread.participated))
    }
}

/// A page whose last thread was last written in at `last`, if there is a page after it. The store asks for threads
/// before a place, so the place itself is the token.
fn threads_page(chunk: Vec<Raw<AnyTimelineEvent>>, last: Option<i64>) -> get_threads::v1::Response {
    let mut response = get_threads::v1::Response::new(chunk);
    response.next_batch = last.map(|last| TimelineToken(last).to_string());
    response
}
