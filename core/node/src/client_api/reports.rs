//! Reporting rooms, events and users to the node's owner.

use axum::Router;
use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, content);
    let router = endpoint(router, room);
    endpoint(router, user)
}

async fn content(
    hs: Homeserver,
    args: Args<report_content::v3::Request>,
) -> Result<report_content::v3::Response, Error> {
    let (session, request) = (args.caller, args.request);
    let reason = request.reason.unwrap_or_default();
    hs.reports
        .event(&session, request.room_id, request.event_id, reason)
        .await?;
    Ok(report_content::v3::Response::new())
}

async fn room(hs: Homeserver, args: Args<report_room::v3::Request>) -> Result<report_room::v3::Response, Error> {
    let (session, request) = (args.caller, args.request);
    hs.reports.room(&session, request.room_id, request.reason).await?;
    Ok(report_room::v3::Response::new())
}

async fn user(hs: Homeserver, args: Args<report_user::v3::Request>) -> Result<report_user::v3::Response, Error> {
    let (session, request) = (args.caller, args.request);
    hs.reports.user(&session, request.user_id, request.reason).await?;
    Ok(report_user::v3::Response::new())
}
