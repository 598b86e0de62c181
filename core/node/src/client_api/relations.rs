//! What relates to an event, and the threads of a room.

use axum::Router;
use kith_store::Direction;
use ruma::api::{
    self,
    client::{
        relations::{
            get_relating_events, get_relating_events_with_rel_type, get_relating_events_with_rel_type_and_event_type,
        },
        threads::get_threads,
    },
};

use super::{Args, endpoint};
use crate::{Error, Homeserver, homeserver::timeline::RelationsRequest};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, relating_events);
    let router = endpoint(router, relating_events_with_rel_type);
    let router = endpoint(router, relating_events_with_rel_type_and_event_type);
    endpoint(router, threads)
}

async fn relating_events(
    hs: Homeserver,
    args: Args<get_relating_events::v1::Request>,
) -> Result<get_relating_events::v1::Response, Error> {
    let request = args.request;
    let request = RelationsRequest {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: None,
        event_type: None,
        from: request.from,
        to: request.to,
        direction: direction(request.dir),
        limit: request.limit,
        recurse: request.recurse,
    };
    let relations = hs.timeline.relations(&args.caller, request).await?;
    let mut response = get_relating_events::v1::Response::new(relations.chunk);
    response.next_batch = relations.next_batch;
    response.prev_batch = relations.prev_batch;
    response.recursion_depth = relations.recursion_depth;
    Ok(response)
}

async fn relating_events_with_rel_type(
    hs: Homeserver,
    args: Args<get_relating_events_with_rel_type::v1::Request>,
) -> Result<get_relating_events_with_rel_type::v1::Response, Error> {
    let request = args.request;
    let request = RelationsRequest {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: Some(request.rel_type.to_string()),
        event_type: None,
        from: request.from,
        to: request.to,
        direction: direction(request.dir),
        limit: request.limit,
        recurse: request.recurse,
    };
    let relations = hs.timeline.relations(&args.caller, request).await?;
    let mut response = get_relating_events_with_rel_type::v1::Response::new(relations.chunk);
    response.next_batch = relations.next_batch;
    response.prev_batch = relations.prev_batch;
    response.recursion_depth = relations.recursion_depth;
    Ok(response)
}

async fn relating_events_with_rel_type_and_event_type(
    hs: Homeserver,
    args: Args<get_relating_events_with_rel_type_and_event_type::v1::Request>,
) -> Result<get_relating_events_with_rel_type_and_event_type::v1::Response, Error> {
    let request = args.request;
    let request = RelationsRequest {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: Some(request.rel_type.to_string()),
        event_type: Some(request.event_type.to_string()),
        from: request.from,
        to: request.to,
        direction: direction(request.dir),
        limit: request.limit,
        recurse: request.recurse,
    };
    let relations = hs.timeline.relations(&args.caller, request).await?;
    let mut response = get_relating_events_with_rel_type_and_event_type::v1::Response::new(relations.chunk);
    response.next_batch = relations.next_batch;
    response.prev_batch = relations.prev_batch;
    response.recursion_depth = relations.recursion_depth;
    Ok(response)
}

async fn threads(hs: Homeserver, args: Args<get_threads::v1::Request>) -> Result<get_threads::v1::Response, Error> {
    hs.timeline.threads(&args.caller, args.request).await
}

fn direction(direction: api::Direction) -> Direction {
    match direction {
        api::Direction::Forward => Direction::Forward,
        api::Direction::Backward => Direction::Backward,
    }
}
