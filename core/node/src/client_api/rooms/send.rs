//! Sending message, state and redaction events.

use axum::Router;
use ruma::api::client::{message::send_message_event, redact::redact_event, state::send_state_event};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint, endpoint_at},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, send_message_event);
    let router = endpoint(router, redact_event);
    let router = endpoint(router, send_state_event);
    // An empty state key may be left out together with its slash, or without it.
    let router = endpoint_at(
        router,
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
        send_state_event,
    );
    let router = endpoint_at(
        router,
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/",
        send_state_event,
    );
    let router = endpoint_at(
        router,
        "/_matrix/client/r0/rooms/{room_id}/state/{event_type}",
        send_state_event,
    );
    endpoint_at(
        router,
        "/_matrix/client/r0/rooms/{room_id}/state/{event_type}/",
        send_state_event,
    )
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
