//! What rooms are, for somebody who is not in them yet, and what spaces hold.

use axum::Router;
use ruma::api::client::{room::get_summary, space::get_hierarchy};

use crate::{
    Error, Homeserver,
    client_api::{Args, authentication::missing_token, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, hierarchy);
    endpoint(router, room_summary)
}

async fn hierarchy(
    hs: Homeserver,
    args: Args<get_hierarchy::v1::Request>,
) -> Result<get_hierarchy::v1::Response, Error> {
    hs.rooms.hierarchy(&args.caller.user_id, args.request).await
}

async fn room_summary(
    hs: Homeserver,
    args: Args<get_summary::v1::Request>,
) -> Result<get_summary::v1::Response, Error> {
    // Whoever has no token may be any page in the user's browser, which must not learn what rooms there are here.
    let session = args.caller.ok_or_else(missing_token)?;
    let (user, name, via) = (session.user_id, args.request.room_id_or_alias, args.request.via);
    let (summary, membership) = hs.rooms.summary(&user, &name, via).await?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = Some(membership);
    Ok(response)
}
