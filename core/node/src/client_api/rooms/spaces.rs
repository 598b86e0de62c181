//! What rooms are, for somebody who is not in them yet, and what spaces hold.

use axum::Router;
use ruma::api::client::{room::get_summary, space::get_hierarchy};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
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
    let (request, user) = (args.request, args.caller.map(|session| session.user_id));
    let summary = hs
        .rooms
        .summary(user.as_deref(), &request.room_id_or_alias, request.via);
    let (summary, membership) = summary.await?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = membership;
    Ok(response)
}
