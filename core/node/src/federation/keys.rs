//! Key documents, this node's own and others that it holds. They prove themselves: no second signature is added.

use std::collections::BTreeSet;

use axum::Router;
use ruma::{
    OwnedServerName,
    api::federation::discovery::{get_remote_server_keys, get_remote_server_keys_batch, get_server_keys},
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
    homeserver::MAX_KEY_BATCH,
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_server_keys);
    let router = endpoint(router, get_remote_server_keys);
    endpoint(router, get_remote_server_keys_batch)
}

async fn get_server_keys(
    hs: Homeserver,
    _: Args<get_server_keys::v2::Request>,
) -> Result<get_server_keys::v2::Response, Error> {
    Ok(get_server_keys::v2::Response::new(hs.server_keys.own()?))
}

async fn get_remote_server_keys(
    hs: Homeserver,
    args: Args<get_remote_server_keys::v2::Request>,
) -> Result<get_remote_server_keys::v2::Response, Error> {
    let keys = hs.server_keys.told(BTreeSet::from([args.request.server_name])).await?;
    Ok(get_remote_server_keys::v2::Response::new(keys))
}

async fn get_remote_server_keys_batch(
    hs: Homeserver,
    args: Args<get_remote_server_keys_batch::v2::Request>,
) -> Result<get_remote_server_keys_batch::v2::Response, Error> {
    let servers: BTreeSet<OwnedServerName> = args.request.server_keys.into_keys().collect();
    if servers.len() > MAX_KEY_BATCH {
        return Err(Error::invalid_param(format!("at most {MAX_KEY_BATCH} servers at once")));
    }
    let keys = hs.server_keys.told(servers).await?;
    Ok(get_remote_server_keys_batch::v2::Response::new(keys))
}
