//! Events and states of rooms, for servers that are in them.

use axum::Router;
use kith_store::Direction;
use ruma::api::federation::{
    authorization::get_event_authorization,
    backfill::get_backfill,
    event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
};

use super::Peer;
use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_event);
    let router = endpoint(router, get_missing_events);
    let router = endpoint(router, get_backfill);
    let router = endpoint(router, get_room_state);
    let router = endpoint(router, get_room_state_ids);
    let router = endpoint(router, get_event_authorization);
    endpoint(router, get_event_by_timestamp)
}

async fn get_event(hs: Homeserver, args: Args<get_event::v1::Request>) -> Result<get_event::v1::Response, Error> {
    let Peer(peer) = args.caller;
    let pdu = hs.archive.event(peer, args.request.event_id).await?;
    let (origin, now) = (hs.context.server_name.clone(), hs.context.world.now());
    Ok(get_event::v1::Response::new(origin, now, pdu))
}

async fn get_missing_events(
    hs: Homeserver,
    args: Args<get_missing_events::v1::Request>,
) -> Result<get_missing_events::v1::Response, Error> {
    let Peer(peer) = args.caller;
    let events = hs.archive.missing_events(peer, args.request).await?;
    Ok(get_missing_events::v1::Response::new(events))
}

async fn get_backfill(
    hs: Homeserver,
    args: Args<get_backfill::v1::Request>,
) -> Result<get_backfill::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    let pdus = hs
        .archive
        .backfill(peer, request.room_id, request.v, request.limit.into())
        .await?;
    let (origin, now) = (hs.context.server_name.clone(), hs.context.world.now());
    Ok(get_backfill::v1::Response::new(origin, now, pdus))
}

async fn get_room_state(
    hs: Homeserver,
    args: Args<get_room_state::v1::Request>,
) -> Result<get_room_state::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    let (state, auth_chain) = hs.archive.state(peer, request.room_id, request.event_id).await?;
    Ok(get_room_state::v1::Response::new(auth_chain, state))
}

async fn get_room_state_ids(
    hs: Homeserver,
    args: Args<get_room_state_ids::v1::Request>,
) -> Result<get_room_state_ids::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    let (state, auth_chain) = hs.archive.state_ids(peer, request.room_id, request.event_id).await?;
    Ok(get_room_state_ids::v1::Response::new(auth_chain, state))
}

async fn get_event_authorization(
    hs: Homeserver,
    args: Args<get_event_authorization::v1::Request>,
) -> Result<get_event_authorization::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    let auth_chain = hs.archive.auth_chain(peer, request.room_id, request.event_id).await?;
    Ok(get_event_authorization::v1::Response::new(auth_chain))
}

async fn get_event_by_timestamp(
    hs: Homeserver,
    args: Args<get_event_by_timestamp::v1::Request>,
) -> Result<get_event_by_timestamp::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    let direction = match request.dir {
        ruma::api::Direction::Forward => Direction::Forward,
        ruma::api::Direction::Backward => Direction::Backward,
    };
    let (event_id, ts) = hs
        .archive
        .event_near(peer, request.room_id, request.ts, direction)
        .await?;
    Ok(get_event_by_timestamp::v1::Response::new(event_id, ts))
}
