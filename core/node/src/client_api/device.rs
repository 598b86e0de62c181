//! The devices of one's own account.

use axum::Router;
use kith_store::Device as StoredDevice;
use ruma::api::client::device::{Device, delete_device, delete_devices, get_device, get_devices, update_device};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_devices);
    let router = endpoint(router, get_device);
    let router = endpoint(router, update_device);
    let router = endpoint(router, delete_device);
    endpoint(router, delete_devices)
}

async fn get_devices(hs: Homeserver, args: Args<get_devices::v3::Request>) -> Result<get_devices::v3::Response, Error> {
    let devices = hs.accounts.devices(&args.caller.user_id).await?;
    Ok(get_devices::v3::Response::new(
        devices.into_iter().map(render).collect(),
    ))
}

async fn get_device(hs: Homeserver, args: Args<get_device::v3::Request>) -> Result<get_device::v3::Response, Error> {
    let device = hs
        .accounts
        .device(&args.caller.user_id, &args.request.device_id)
        .await?;
    Ok(get_device::v3::Response::new(render(device)))
}

async fn update_device(
    hs: Homeserver,
    args: Args<update_device::v3::Request>,
) -> Result<update_device::v3::Response, Error> {
    let request = args.request;
    hs.accounts
        .rename_device(&args.caller.user_id, &request.device_id, request.display_name)
        .await?;
    Ok(update_device::v3::Response::new())
}

async fn delete_device(
    hs: Homeserver,
    args: Args<delete_device::v3::Request>,
) -> Result<delete_device::v3::Response, Error> {
    let request = args.request;
    hs.accounts
        .confirm(&args.caller, "delete_device", request.auth.as_ref())
        .await?;
    hs.accounts
        .delete_devices(&args.caller.user_id, vec![request.device_id])
        .await?;
    Ok(delete_device::v3::Response::new())
}

async fn delete_devices(
    hs: Homeserver,
    args: Args<delete_devices::v3::Request>,
) -> Result<delete_devices::v3::Response, Error> {
    let request = args.request;
    hs.accounts
        .confirm(&args.caller, "delete_devices", request.auth.as_ref())
        .await?;
    hs.accounts
        .delete_devices(&args.caller.user_id, request.devices)
        .await?;
    Ok(delete_devices::v3::Response::new())
}

fn render(stored: StoredDevice) -> Device {
    let mut device = Device::new(stored.device_id);
    device.display_name = stored.display_name;
    device.last_seen_ip = stored.last_seen_ip;
    device.last_seen_ts = Some(stored.last_seen);
    device
}
