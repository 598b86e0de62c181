//! Searching rooms for words.

use axum::Router;
use ruma::api::client::search::search_events;

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    endpoint(router, search_events)
}

async fn search_events(
    hs: Homeserver,
    args: Args<search_events::v3::Request>,
) -> Result<search_events::v3::Response, Error> {
    hs.timeline.search(&args.caller, args.request).await
}
