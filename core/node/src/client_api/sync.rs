//! What happened since a client last asked.

use axum::Router;
use ruma::api::client::sync::sync_events;

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    endpoint(router, sync_events)
}

async fn sync_events(hs: Homeserver, args: Args<sync_events::v3::Request>) -> Result<sync_events::v3::Response, Error> {
    hs.sync.sync(&args.caller, args.request).await
}
