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

/// A handler of one of the three endpoints, which differ in nothing but how much of the path there is. ruma has a type of
/// its own for each, so that no function can serve them.
macro_rules! relations {
    ($handler:ident, $endpoint:ident, |$request:ident| ($rel_type:expr, $event_type:expr)) => {
        async fn $handler(
            hs: Homeserver,
            args: Args<$endpoint::v1::Request>,
        ) -> Result<$endpoint::v1::Response, Error> {
            let $request = args.request;
            let request = RelationsRequest {
                rel_type: $rel_type,
                event_type: $event_type,
                room_id: $request.room_id,
                event_id: $request.event_id,
                from: $request.from,
                to: $request.to,
                direction: direction($request.dir),
                limit: $request.limit,
                recurse: $request.recurse,
            };
            let relations = hs.timeline.relations(&args.caller, request).await?;
            let mut response = $endpoint::v1::Response::new(relations.chunk);
            response.next_batch = relations.next_batch;
            response.prev_batch = relations.prev_batch;
            response.recursion_depth = relations.recursion_depth;
            Ok(response)
        }
    };
}

relations!(relating_events, get_relating_events, |request| (None, None));
relations!(
    relating_events_with_rel_type,
    get_relating_events_with_rel_type,
    |request| (Some(request.rel_type.to_string()), None)
);
relations!(
    relating_events_with_rel_type_and_event_type,
    get_relating_events_with_rel_type_and_event_type,
    |request| (Some(request.rel_type.to_string()), Some(request.event_type.to_string()))
);

async fn threads(hs: Homeserver, args: Args<get_threads::v1::Request>) -> Result<get_threads::v1::Response, Error> {
    hs.timeline.threads(&args.caller, args.request).await
}

fn direction(direction: api::Direction) -> Direction {
    match direction {
        api::Direction::Forward => Direction::Forward,
        api::Direction::Backward => Direction::Backward,
    }
}
