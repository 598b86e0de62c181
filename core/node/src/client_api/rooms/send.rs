//! Sending message, state and redaction events.

use axum::Router;
use ruma::api::client::{message::send_message_event, redact::redact_event, state::send_state_event};

use crate::{
    Error, Homeserver,
    client_api::{Args, EMPTY_STATE_KEY_PATHS, endpoint, endpoint_at},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, send_message_event);
    let router = endpoint(router, redact_event);
    let mut router = endpoint(router, send_state_event);
    for path in EMPTY_STATE_KEY_PATHS {
        router = endpoint_at(router, path, send_state_event);
    }
    router
}

async fn send_message_event(
    hs: Homeserver,
    args: Args<send_message_event::v3::Request>,
) -> Result<send_message_event::v3::Response, Error> {
    let request = args.request;
    let event_id = hs
        .rooms
        .send_event(
            &args.caller,
            &request.room_id,
            request.event_type,
            &request.txn_id,
            request.body.json(),
        )
        .await?;
    Ok(send_message_event::v3::Response::new(event_id))
}

async fn redact_event(
    hs: Homeserver,
    args: Args<redact_event::v3::Request>,
) -> Result<redact_event::v3::Response, Error> {
    let request = args.request;
    let event_id = hs
        .rooms
        .redact(
            &args.caller,
            &request.room_id,
            &request.event_id,
            &request.txn_id,
            request.reason,
        )
        .await?;
    Ok(redact_event::v3::Response::new(event_id))
}

async fn send_state_event(
    hs: Homeserver,
    args: Args<send_state_event::v3::Request>,
) -> Result<send_state_event::v3::Response, Error> {
    let request = args.request;
    let event_id = hs
        .rooms
        .send_state(
            &args.caller.user_id,
            &request.room_id,
            request.event_type,
            request.state_key,
            request.body.json(),
        )
        .await?;
    Ok(send_state_event::v3::Response::new(event_id))
}
