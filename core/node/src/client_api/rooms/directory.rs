//! The public room directory, this node's and other nodes'.

use axum::Router;
use ruma::api::client::directory::{
    get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
    homeserver::PublicRoomsQuery,
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_public_rooms);
    let router = endpoint(router, get_public_rooms_filtered);
    let router = endpoint(router, get_room_visibility);
    endpoint(router, set_room_visibility)
}

async fn get_public_rooms(
    hs: Homeserver,
    args: Args<get_public_rooms::v3::Request>,
) -> Result<get_public_rooms::v3::Response, Error> {
    let request = args.request;
    let query = PublicRoomsQuery {
        limit: request.limit,
        since: request.since,
        ..PublicRoomsQuery::default()
    };
    let rooms = hs.rooms.public_rooms_at(request.server.as_deref(), query).await?;
    let mut response = get_public_rooms::v3::Response::new(rooms.chunk);
    response.next_batch = rooms.next_batch;
    response.prev_batch = rooms.prev_batch;
    response.total_room_count_estimate = rooms.total;
    Ok(response)
}

async fn get_public_rooms_filtered(
    hs: Homeserver,
    args: Args<get_public_rooms_filtered::v3::Request>,
) -> Result<get_public_rooms_filtered::v3::Response, Error> {
    let request = args.request;
    let query = PublicRoomsQuery {
        limit: request.limit,
        since: request.since,
        filter: request.filter,
        network: request.room_network,
    };
    let rooms = hs.rooms.public_rooms_at(request.server.as_deref(), query).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = rooms.chunk;
    response.next_batch = rooms.next_batch;
    response.prev_batch = rooms.prev_batch;
    response.total_room_count_estimate = rooms.total;
    Ok(response)
}

async fn get_room_visibility(
    hs: Homeserver,
    args: Args<get_room_visibility::v3::Request>,
) -> Result<get_room_visibility::v3::Response, Error> {
    let visibility = hs.rooms.visibility(&args.request.room_id).await?;
    Ok(get_room_visibility::v3::Response::new(visibility))
}

async fn set_room_visibility(
    hs: Homeserver,
    args: Args<set_room_visibility::v3::Request>,
) -> Result<set_room_visibility::v3::Response, Error> {
    hs.rooms
        .set_visibility(&args.caller.user_id, &args.request.room_id, args.request.visibility)
        .await?;
    Ok(set_room_visibility::v3::Response::new())
}
