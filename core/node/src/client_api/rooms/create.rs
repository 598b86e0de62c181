//! `POST /createRoom` and `POST /rooms/{roomId}/upgrade`.

use axum::Router;
use ruma::api::client::room::{create_room, upgrade_room};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, create_room);
    endpoint(router, upgrade_room)
}

async fn create_room(hs: Homeserver, args: Args<create_room::v3::Request>) -> Result<create_room::v3::Response, Error> {
    let room_id = hs.rooms.create_room(&args.caller.user_id, args.request).await?;
    Ok(create_room::v3::Response::new(room_id))
}

async fn upgrade_room(
    hs: Homeserver,
    args: Args<upgrade_room::v3::Request>,
) -> Result<upgrade_room::v3::Response, Error> {
    let request = args.request;
    let replacement = hs
        .rooms
        .upgrade_room(
            &args.caller.user_id,
            &request.room_id,
            request.new_version,
            request.additional_creators,
        )
        .await?;
    Ok(upgrade_room::v3::Response::new(replacement))
}
