//! Other servers' users joining, leaving, knocking and inviting, as their servers ask.
//!
//! Server-server API, "Joining Rooms", "Inviting to a room", "Leaving Rooms", "Knocking upon a room".

use axum::Router;
use ruma::{
    api::federation::membership::{
        create_invite, create_join_event, create_knock_event, create_leave_event, prepare_join_event,
        prepare_knock_event, prepare_leave_event,
    },
    events::room::member::MembershipState,
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
    homeserver::rooms::Handshake,
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, make_join);
    let router = endpoint(router, send_join);
    let router = endpoint(router, make_leave);
    let router = endpoint(router, send_leave);
    let router = endpoint(router, make_knock);
    let router = endpoint(router, send_knock);
    endpoint(router, invite)
}

async fn make_join(
    hs: Homeserver,
    args: Args<prepare_join_event::v1::Request>,
) -> Result<prepare_join_event::v1::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Join,
    };
    let (version, template) = hs.rooms.template(handshake, request.user_id, request.ver).await?;
    let mut response = prepare_join_event::v1::Response::new(template);
    response.room_version = Some(version);
    Ok(response)
}

async fn send_join(
    hs: Homeserver,
    args: Args<create_join_event::v2::Request>,
) -> Result<create_join_event::v2::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Join,
    };
    let event_id = hs.rooms.accept(handshake, &request.event_id, request.pdu).await?;
    let state = hs.rooms.room_state_for_join(&event_id).await?;
    Ok(create_join_event::v2::Response::new(state))
}

async fn make_leave(
    hs: Homeserver,
    args: Args<prepare_leave_event::v1::Request>,
) -> Result<prepare_leave_event::v1::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Leave,
    };
    let (version, template) = hs.rooms.template(handshake, request.user_id, Vec::new()).await?;
    Ok(prepare_leave_event::v1::Response::new(Some(version), template))
}

async fn send_leave(
    hs: Homeserver,
    args: Args<create_leave_event::v2::Request>,
) -> Result<create_leave_event::v2::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Leave,
    };
    hs.rooms.accept(handshake, &request.event_id, request.pdu).await?;
    Ok(create_leave_event::v2::Response::new())
}

async fn make_knock(
    hs: Homeserver,
    args: Args<prepare_knock_event::v1::Request>,
) -> Result<prepare_knock_event::v1::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Knock,
    };
    let (version, template) = hs.rooms.template(handshake, request.user_id, request.ver).await?;
    Ok(prepare_knock_event::v1::Response::new(version, template))
}

async fn send_knock(
    hs: Homeserver,
    args: Args<create_knock_event::v1::Request>,
) -> Result<create_knock_event::v1::Response, Error> {
    let request = args.request;
    let handshake = Handshake {
        peer: &args.caller.0,
        room: &request.room_id,
        membership: MembershipState::Knock,
    };
    hs.rooms.accept(handshake, &request.event_id, request.pdu).await?;
    let state = hs.rooms.state_for_knock(&request.room_id).await?;
    Ok(create_knock_event::v1::Response::new(state))
}

/// Only version 2 is there: version 1 is for room versions 1 and 2, which are not supported.
async fn invite(hs: Homeserver, args: Args<create_invite::v2::Request>) -> Result<create_invite::v2::Response, Error> {
    let event = hs.rooms.handle_invite(&args.caller.0, args.request).await?;
    Ok(create_invite::v2::Response::new(event))
}
