//! What administrators of the node may ask and do.

use std::collections::BTreeMap;

use axum::Router;
use ruma::api::client::admin::{
    get_user_info::{
        self,
        v3::{ConnectionInfo, DeviceInfo, SessionInfo},
    },
    is_user_locked, lock_user,
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_user_info);
    let router = endpoint(router, is_user_locked);
    endpoint(router, lock_user)
}

async fn get_user_info(
    hs: Homeserver,
    args: Args<get_user_info::v3::Request>,
) -> Result<get_user_info::v3::Response, Error> {
    let user_id = args.request.user_id;
    let devices = hs.accounts.whois(&args.caller, &user_id).await?;
    let devices = devices.into_iter().map(|device| {
        let mut connection = ConnectionInfo::new();
        connection.ip = device.last_seen_ip;
        connection.last_seen = Some(device.last_seen);
        let mut session = SessionInfo::new();
        session.connections = vec![connection];
        let mut info = DeviceInfo::new();
        info.sessions = vec![session];
        (device.device_id.to_string(), info)
    });
    let mut response = get_user_info::v3::Response::new();
    response.devices = devices.collect::<BTreeMap<_, _>>();
    response.user_id = Some(user_id);
    Ok(response)
}

async fn is_user_locked(
    hs: Homeserver,
    args: Args<is_user_locked::v1::Request>,
) -> Result<is_user_locked::v1::Response, Error> {
    let locked = hs.accounts.is_locked(&args.caller, &args.request.user_id).await?;
    Ok(is_user_locked::v1::Response::new(locked))
}

async fn lock_user(hs: Homeserver, args: Args<lock_user::v1::Request>) -> Result<lock_user::v1::Response, Error> {
    let request = args.request;
    hs.accounts.lock(&args.caller, &request.user_id, request.locked).await?;
    Ok(lock_user::v1::Response::new(request.locked))
}
