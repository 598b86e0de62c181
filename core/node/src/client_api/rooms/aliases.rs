//! Room aliases.

use axum::Router;
use ruma::api::client::{
    alias::{create_alias, delete_alias, get_alias},
    room::aliases,
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, create_alias);
    let router = endpoint(router, get_alias);
    let router = endpoint(router, delete_alias);
    endpoint(router, aliases)
}

async fn create_alias(
    hs: Homeserver,
    args: Args<create_alias::v3::Request>,
) -> Result<create_alias::v3::Response, Error> {
    hs.rooms
        .create_alias(&args.caller.user_id, &args.request.room_alias, &args.request.room_id)
        .await?;
    Ok(create_alias::v3::Response::new())
}

async fn get_alias(hs: Homeserver, args: Args<get_alias::v3::Request>) -> Result<get_alias::v3::Response, Error> {
    let (room_id, servers) = hs.rooms.resolve_alias(&args.request.room_alias).await?;
    Ok(get_alias::v3::Response::new(room_id, servers))
}

async fn delete_alias(
    hs: Homeserver,
    args: Args<delete_alias::v3::Request>,
) -> Result<delete_alias::v3::Response, Error> {
    hs.rooms
        .delete_alias(&args.caller.user_id, &args.request.room_alias)
        .await?;
    Ok(delete_alias::v3::Response::new())
}

async fn aliases(hs: Homeserver, args: Args<aliases::v3::Request>) -> Result<aliases::v3::Response, Error> {
    let aliases = hs.rooms.aliases(&args.caller.user_id, &args.request.room_id).await?;
    Ok(aliases::v3::Response::new(aliases))
}
