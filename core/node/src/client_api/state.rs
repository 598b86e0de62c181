//! What stands in a room, and which rooms two users share.

use axum::Router;
use ruma::api::client::{
    membership::{get_member_events, get_mutual_rooms, joined_members},
    state::{get_state_event_for_key, get_state_events},
};

use super::{Args, EMPTY_STATE_KEY_PATHS, endpoint, endpoint_at};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, state_events);
    let mut router = endpoint(router, state_event_for_key);
    for path in EMPTY_STATE_KEY_PATHS {
        router = endpoint_at(router, path, state_event_for_key);
    }
    let router = endpoint(router, member_events);
    let router = endpoint(router, joined_members);
    endpoint(router, mutual_rooms)
}

async fn state_events(
    hs: Homeserver,
    args: Args<get_state_events::v3::Request>,
) -> Result<get_state_events::v3::Response, Error> {
    hs.timeline.state(&args.caller, args.request).await
}

async fn state_event_for_key(
    hs: Homeserver,
    args: Args<get_state_event_for_key::v3::Request>,
) -> Result<get_state_event_for_key::v3::Response, Error> {
    hs.timeline.state_event(&args.caller, args.request).await
}

async fn member_events(
    hs: Homeserver,
    args: Args<get_member_events::v3::Request>,
) -> Result<get_member_events::v3::Response, Error> {
    hs.timeline.members(&args.caller, args.request).await
}

async fn joined_members(
    hs: Homeserver,
    args: Args<joined_members::v3::Request>,
) -> Result<joined_members::v3::Response, Error> {
    hs.timeline.joined_members(&args.caller, args.request).await
}

async fn mutual_rooms(
    hs: Homeserver,
    args: Args<get_mutual_rooms::v1::Request>,
) -> Result<get_mutual_rooms::v1::Response, Error> {
    let rooms = hs.timeline.mutual_rooms(&args.caller, &args.request.user_id).await?;
    let count = u32::try_from(rooms.len()).unwrap_or(u32::MAX);
    Ok(get_mutual_rooms::v1::Response::new(count.into(), rooms))
}
