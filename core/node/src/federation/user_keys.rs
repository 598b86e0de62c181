//! Other servers ask for the devices and keys of local users, and claim one-time keys.

use axum::Router;
use ruma::api::federation::{
    device::get_devices,
    keys::{claim_keys, get_keys},
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_keys);
    let router = endpoint(router, claim_keys);
    endpoint(router, get_devices)
}

async fn get_keys(hs: Homeserver, args: Args<get_keys::v1::Request>) -> Result<get_keys::v1::Response, Error> {
    hs.keys.serve_query(args.request.device_keys).await
}

async fn claim_keys(hs: Homeserver, args: Args<claim_keys::v1::Request>) -> Result<claim_keys::v1::Response, Error> {
    let keys = hs.keys.serve_claim(args.request.one_time_keys).await?;
    Ok(claim_keys::v1::Response::new(keys))
}

async fn get_devices(hs: Homeserver, args: Args<get_devices::v1::Request>) -> Result<get_devices::v1::Response, Error> {
    hs.keys.serve_devices(args.request.user_id).await
}
