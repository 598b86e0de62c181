//! A room's timeline and the single events of it.

use axum::Router;
use ruma::api::client::{
    context::get_context,
    message::get_message_events,
    room::{get_event_by_timestamp, get_room_event},
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, messages);
    let router = endpoint(router, context);
    let router = endpoint(router, room_event);
    endpoint(router, event_by_timestamp)
}

async fn messages(
    hs: Homeserver,
    args: Args<get_message_events::v3::Request>,
) -> Result<get_message_events::v3::Response, Error> {
    hs.timeline.messages(&args.caller, args.request).await
}

async fn context(hs: Homeserver, args: Args<get_context::v3::Request>) -> Result<get_context::v3::Response, Error> {
    hs.timeline.context(&args.caller, args.request).await
}

async fn room_event(
    hs: Homeserver,
    args: Args<get_room_event::v3::Request>,
) -> Result<get_room_event::v3::Response, Error> {
    hs.timeline.event(&args.caller, args.request).await
}

async fn event_by_timestamp(
    hs: Homeserver,
    args: Args<get_event_by_timestamp::v1::Request>,
) -> Result<get_event_by_timestamp::v1::Response, Error> {
    hs.timeline.event_by_timestamp(&args.caller, args.request).await
}
