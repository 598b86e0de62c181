//! `/messages`: a room's timeline, page by page. Beyond what the node holds it asks others, once for each page.

use std::collections::BTreeSet;

use kith_engine::{EventFilter, RoomReader};
use kith_store::{Direction, Seq, TimelineEvent};
use ruma::{
    OwnedUserId,
    api::{
        self,
        client::{filter::LazyLoadOptions, message::get_message_events::v3},
    },
    events::{AnyStateEvent, room::member::MembershipState},
    serde::Raw,
};

use super::{Access, Reading, Timeline, TimelineToken, Walk, member_key, token::UnknownToken, walk};
use crate::{Error, homeserver::Session};

/// Events of one page at the most.
pub(super) const MAX_PAGE: usize = 500;

/// Times that one page asks others for older events.
const MAX_FETCHES: usize = 2;

impl Timeline {
    /// A page of a room's timeline.
    pub async fn messages(&self, session: &Session, request: v3::Request) -> Result<v3::Response, Error> {
        let from = request.from.as_deref().map(place).transpose()?;
        let to = request.to.as_deref().map(place).transpose()?;
        let direction = direction(request.dir);
        let limit = page_size(request.limit.into());
        let filter = EventFilter::from(&request.filter);
        let mut over_gaps = self.history.get().is_none();
        for round in 0..=MAX_FETCHES {
            let (room, filter) = (request.room_id.clone(), filter.clone());
            let page = move |reading: &mut Reading<'_>| reading.page(from, to, direction, limit, &filter, over_gaps);
            let (response, gap) = self.read(session, room.clone(), page).await?;
            let (Some(history), Some(gap)) = (self.history.get(), gap) else {
                return Ok(response);
            };
            if over_gaps || round == MAX_FETCHES {
                return Ok(response);
            }
            let missing = limit - response.chunk.len();
            let fetched = history.fetch(&room, gap, missing).await.unwrap_or_else(|error| {
                tracing::debug!(%room, %error, "older history could not be fetched");
                false
            });
            // What nobody can tell now is passed over.
            over_gaps = !fetched;
        }
        Err(Error::Internal("a page without an end", None))
    }
}

impl Reading<'_> {
    /// A page. It ends where events are missing, unless it is to go over gaps; then that place is told too, at or before
    /// which other servers may know more.
    fn page(
        &mut self,
        from: Option<i64>,
        to: Option<i64>,
        direction: Direction,
        limit: usize,
        filter: &EventFilter,
        over_gaps: bool,
    ) -> Result<(v3::Response, Option<Seq>), Error> {
        let start = match (from, direction) {
            (Some(from), _) => from,
            (None, Direction::Backward) => self.txn.last_seq()?.0,
            (None, Direction::Forward) => i64::MIN,
        };
        let gap = match direction {
            // Where the page before has ended at a gap, the event that names what is missing stands right after the start.
            Direction::Backward if self.access == Access::Joined => {
                self.txn.gap_before(self.sight.room(), Seq(start.saturating_add(1)))?
            }
            _ => None,
        };
        // The page may end with the event that names what is missing.
        let edge = gap.filter(|_| !over_gaps).map(|gap| gap.0.saturating_sub(1));
        let edge = edge.filter(|edge| to.is_none_or(|to| to < *edge));
        let walked = walk(
            &self.renderer,
            &mut self.sight,
            &Walk {
                from: start,
                to: edge.or(to),
                direction,
                limit,
                filter,
            },
        )?;
        let mut response = v3::Response::new();
        response.start = TimelineToken(start).to_string();
        response.state = self.members_of(&walked.events, filter.lazy_load)?;
        let lacks_history = gap.is_some() && !walked.more && (walked.exhausted || edge.is_some());
        // What lies beyond the node's own history is not here yet, but may come: the client can ask again from there. Not
        // from where it asked already, or it would ask for ever: a page that leads nowhere is the last one.
        // At the place where the client wanted to end, there is only more if it got anything.
        let more = walked.more || (lacks_history && walked.end != start);
        let ended = to.filter(|_| !more && !walked.exhausted && !walked.events.is_empty());
        response.end = ended
            .or(more.then_some(walked.end))
            .map(|end| TimelineToken(end).to_string());
        for (event, membership) in walked.events {
            response
                .chunk
                .push(self.renderer.timeline_event(&mut self.sight, &event, membership)?);
        }
        Ok((response, gap.filter(|_| lacks_history)))
    }

    /// The membership events of those who sent some events, for a client that loads members lazily.
    pub(super) fn members_of(
        &mut self,
        events: &[(TimelineEvent, MembershipState)],
        lazy: LazyLoadOptions,
    ) -> Result<Vec<Raw<AnyStateEvent>>, Error> {
        if lazy.is_disabled() {
            return Ok(Vec::new());
        }
        let mut seen: BTreeSet<OwnedUserId> = BTreeSet::new();
        let mut members = Vec::new();
        for (event, _) in events {
            let sender = event.pdu.sender();
            let Some(state) = event.state_after.filter(|_| !seen.contains(sender)) else {
                continue;
            };
            seen.insert(sender.to_owned());
            let Some(id) = self.txn.state_entry(state, &member_key(sender))? else {
                continue;
            };
            if let Some(stored) = self.txn.event(&id)? {
                members.push(self.renderer.state_event(&stored.pdu, self.sight.redaction()));
            }
        }
        Ok(members)
    }
}

/// The place that a client's token names. "Unknown pagination token" is `M_INVALID_PARAM`.
pub(super) fn place(token: &str) -> Result<i64, Error> {
    match token.parse::<TimelineToken>() {
        Ok(TimelineToken(place)) => Ok(place),
        Err(UnknownToken) => Err(Error::invalid_param("unknown pagination token")),
    }
}

pub(super) fn direction(direction: api::Direction) -> Direction {
    match direction {
        api::Direction::Forward => Direction::Forward,
        api::Direction::Backward => Direction::Backward,
    }
}

/// What a client's limit comes to: at least one, so that every page leads on.
pub(super) fn page_size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
}
