//! Presence.

use std::time::Duration;

use axum::Router;
use ruma::api::client::presence::{get_presence, set_presence};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, set_presence);
    endpoint(router, get_presence)
}

async fn set_presence(
    hs: Homeserver,
    args: Args<set_presence::v3::Request>,
) -> Result<set_presence::v3::Response, Error> {
    let request = args.request;
    hs.presence
        .set(&args.caller, &request.user_id, request.presence, request.status_msg)
        .await?;
    Ok(set_presence::v3::Response::new())
}

async fn get_presence(
    hs: Homeserver,
    args: Args<get_presence::v3::Request>,
) -> Result<get_presence::v3::Response, Error> {
    let content = hs.presence.status(&args.caller, &args.request.user_id).await?;
    let mut response = get_presence::v3::Response::new(content.presence);
    response.status_msg = content.status_msg;
    response.currently_active = content.currently_active;
    response.last_active_ago = content.last_active_ago.map(|ago| Duration::from_millis(ago.into()));
    Ok(response)
}
