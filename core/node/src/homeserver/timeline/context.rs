//! `/event`, `/context` and `/timestamp_to_event`: single events and what stands around them.

use kith_engine::EventFilter;
use kith_store::{Direction, Moment, Seq, TimelineEvent};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, RoomId,
    api::client::{
        context::get_context,
        room::{get_event_by_timestamp, get_room_event},
    },
    events::{AnyStateEvent, StateEventType, room::member::MembershipState},
    serde::Raw,
};

use super::{
    Access, Reading, Timeline, TimelineToken, Walk,
    messages::{MAX_PAGE, direction},
    state_events, walk,
};
use crate::{Error, homeserver::Session};

/// Events nearest to a time that are looked at for one that may be read.
const MAX_NEAREST: usize = 100;

/// Times that one look for an event near a time asks others for older events.
const MAX_FETCHES: usize = 20;

impl Timeline {
    /// One event.
    pub async fn event(
        &self,
        session: &Session,
        request: get_room_event::v3::Request,
    ) -> Result<get_room_event::v3::Response, Error> {
        let id = request.event_id;
        let event = move |reading: &mut Reading<'_>| {
            // Who may not read the room may not learn either whether it has the event.
            let (event, membership) = reading.visible_event(&id)?;
            reading.renderer.timeline_event(&mut reading.sight, &event, membership)
        };
        let event = self.read(session, request.room_id, event).await.map_err(as_not_found)?;
        Ok(get_room_event::v3::Response::new(event))
    }

    /// An event, the events around it and the state there.
    pub async fn context(
        &self,
        session: &Session,
        request: get_context::v3::Request,
    ) -> Result<get_context::v3::Response, Error> {
        let limit = usize::try_from(u64::from(request.limit))
            .unwrap_or(MAX_PAGE)
            .min(MAX_PAGE);
        let filter = EventFilter::from(&request.filter);
        let id = request.event_id;
        let context = move |reading: &mut Reading<'_>| reading.context(&id, limit, &filter);
        self.read(session, request.room_id, context).await
    }

    /// The event nearest to a time, on one side of it. While the node's history does not go back to that time, others are
    /// asked for more of it, within limits.
    pub async fn event_by_timestamp(
        &self,
        session: &Session,
        request: get_event_by_timestamp::v1::Request,
    ) -> Result<get_event_by_timestamp::v1::Response, Error> {
        let (ts, way) = (request.ts, direction(request.dir));
        let room = request.room_id;
        for _ in 0..MAX_FETCHES {
            let lacks_history = move |reading: &mut Reading<'_>| reading.lacks_history_at(ts);
            let lacks_history = self.read(session, room.clone(), lacks_history).await?;
            let Some(history) = self.history.get().filter(|_| lacks_history) else {
                break;
            };
            match history.fetch(&room, Seq(i64::MAX), MAX_PAGE).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%room, %error, "older history could not be fetched");
                    break;
                }
            }
        }
        let nearest = move |reading: &mut Reading<'_>| reading.nearest(ts, way);
        let event = self.read(session, room, nearest).await?;
        Ok(get_event_by_timestamp::v1::Response::new(
            event.pdu.event_id().to_owned(),
            event.pdu.origin_server_ts(),
        ))
    }
}

impl Reading<'_> {
    /// An event of this room that the reader may read; `M_NOT_FOUND` otherwise.
    pub(super) fn visible_event(&mut self, id: &EventId) -> Result<(TimelineEvent, MembershipState), Error> {
        let found = self.txn.timeline_event(id)?;
        let here = |event: &TimelineEvent, room: &RoomId| event.pdu.room_id() == room;
        if let Some(event) = found.filter(|event| here(event, self.sight.room()))
            && let Some(membership) = self.sight.membership_at(&event)?
        {
            return Ok((event, membership));
        }
        Err(Error::not_found("there is no such event here, or you may not read it"))
    }

    fn context(
        &mut self,
        id: &EventId,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<get_context::v3::Response, Error> {
        let (event, membership) = self.visible_event(id)?;
        let place = event.stream.0;
        let mut side = |direction, from, limit| {
            let to_walk = Walk {
                from,
                to: None,
                direction,
                limit,
                filter,
            };
            walk(&self.renderer, &mut self.sight, &to_walk)
        };
        let before = side(Direction::Backward, place - 1, limit / 2)?;
        let after = side(Direction::Forward, place, limit - limit / 2)?;
        let mut response = get_context::v3::Response::new();
        response.start = Some(TimelineToken(before.end).to_string());
        response.end = Some(TimelineToken(after.end).to_string());
        let last = after.events.last().map_or(&event, |(event, _)| event);
        response.state = self.state_at_event(last, filter)?;
        let mut shown = vec![(event.clone(), membership.clone())];
        shown.extend(before.events.iter().chain(&after.events).cloned());
        response.state.extend(self.members_of(&shown, filter.lazy_load)?);
        for (event, membership) in before.events {
            response
                .events_before
                .push(self.renderer.timeline_event(&mut self.sight, &event, membership)?);
        }
        for (event, membership) in after.events {
            response
                .events_after
                .push(self.renderer.timeline_event(&mut self.sight, &event, membership)?);
        }
        response.event = Some(self.renderer.timeline_event(&mut self.sight, &event, membership)?);
        Ok(response)
    }

    /// "The state of the room at the last event returned", without members if these are loaded lazily.
    fn state_at_event(&self, event: &TimelineEvent, filter: &EventFilter) -> Result<Vec<Raw<AnyStateEvent>>, Error> {
        let Some(state) = event.state_after else {
            return Ok(Vec::new());
        };
        let all = filter.lazy_load.is_disabled();
        let events = state_events(self.txn, state, |kind, _| all || *kind != StateEventType::RoomMember)?;
        let redaction = self.sight.redaction();
        Ok(events
            .iter()
            .map(|pdu| self.renderer.state_event(pdu, redaction))
            .collect())
    }

    /// Whether everything held is younger than a time, and more of the past may be had from other servers.
    fn lacks_history_at(&mut self, ts: MilliSecondsSinceUnixEpoch) -> Result<bool, Error> {
        let room = self.sight.room();
        Ok(self.access == Access::Joined
            && self
                .txn
                .events_near(room, ts, Direction::Backward, Moment::NOW, 1)?
                .is_empty()
            && !self.txn.backward_extremities(room)?.is_empty())
    }

    fn nearest(&mut self, ts: MilliSecondsSinceUnixEpoch, way: Direction) -> Result<TimelineEvent, Error> {
        for event in self
            .txn
            .events_near(self.sight.room(), ts, way, Moment::NOW, MAX_NEAREST)?
        {
            if self.sight.membership_at(&event)?.is_some() {
                return Ok(event);
            }
        }
        Err(Error::not_found("there is no event on that side of that time"))
    }
}

/// Client-server API, `GET /event`: 404 where "the event was not found or you do not have permission to read this event".
fn as_not_found(error: Error) -> Error {
    match error {
        Error::Refused { .. } => Error::not_found("there is no such event here, or you may not read it"),
        other => other,
    }
}
