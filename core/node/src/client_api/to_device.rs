//! Messages from device to device.

use axum::Router;
use ruma::api::client::to_device::send_event_to_device;

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    endpoint(router, send_event_to_device)
}

async fn send_event_to_device(
    hs: Homeserver,
    args: Args<send_event_to_device::v3::Request>,
) -> Result<send_event_to_device::v3::Response, Error> {
    let request = args.request;
    hs.to_device
        .send(args.caller, request.event_type, request.txn_id, request.messages)
        .await?;
    Ok(send_event_to_device::v3::Response::new())
}
