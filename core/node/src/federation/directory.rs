//! Aliases and public rooms of this node, as other servers ask for them.

use axum::Router;
use ruma::api::federation::{
    directory::{get_public_rooms, get_public_rooms_filtered},
    query::get_room_information,
    space::get_hierarchy,
};

use super::Peer;
use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
    homeserver::PublicRoomsQuery,
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_room_information);
    let router = endpoint(router, get_hierarchy);
    let router = endpoint(router, get_public_rooms);
    endpoint(router, get_public_rooms_filtered)
}

async fn get_room_information(
    hs: Homeserver,
    args: Args<get_room_information::v1::Request>,
) -> Result<get_room_information::v1::Response, Error> {
    let (room_id, servers) = hs.rooms.own_alias(&args.request.room_alias).await?;
    Ok(get_room_information::v1::Response::new(room_id, servers))
}

async fn get_hierarchy(
    hs: Homeserver,
    args: Args<get_hierarchy::v1::Request>,
) -> Result<get_hierarchy::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    hs.rooms
        .hierarchy_for(&peer, &request.room_id, request.suggested_only)
        .await
}

async fn get_public_rooms(
    hs: Homeserver,
    args: Args<get_public_rooms::v1::Request>,
) -> Result<get_public_rooms::v1::Response, Error> {
    let request = args.request;
    let query = PublicRoomsQuery {
        limit: request.limit,
        since: request.since,
        network: request.room_network,
        ..PublicRoomsQuery::default()
    };
    let rooms = hs.rooms.public_rooms(query).await?;
    let mut response = get_public_rooms::v1::Response::new();
    response.chunk = rooms.chunk;
    response.next_batch = rooms.next_batch;
    response.prev_batch = rooms.prev_batch;
    response.total_room_count_estimate = rooms.total;
    Ok(response)
}

async fn get_public_rooms_filtered(
    hs: Homeserver,
    args: Args<get_public_rooms_filtered::v1::Request>,
) -> Result<get_public_rooms_filtered::v1::Response, Error> {
    let request = args.request;
    let query = PublicRoomsQuery {
        limit: request.limit,
        since: request.since,
        filter: request.filter,
        network: request.room_network,
    };
    let rooms = hs.rooms.public_rooms(query).await?;
    let mut response = get_public_rooms_filtered::v1::Response::new();
    response.chunk = rooms.chunk;
    response.next_batch = rooms.next_batch;
    response.prev_batch = rooms.prev_batch;
    response.total_room_count_estimate = rooms.total;
    Ok(response)
}
