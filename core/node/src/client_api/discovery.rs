//! What a client asks before anything else: where the API is, what it speaks, what the account may do.

use std::collections::BTreeMap;

use axum::{Router, extract::State, http::HeaderMap, response::Response, routing::get};
use ruma::{
    RoomVersionId,
    api::{
        OutgoingResponseExt,
        client::discovery::{
            discover_homeserver::{self, HomeserverInfo},
            get_capabilities::v3::{
                self as get_capabilities, AccountModerationCapability, Capabilities, GetLoginTokenCapability,
                ProfileFieldsCapability, RoomVersionStability, RoomVersionsCapability, ThirdPartyIdChangesCapability,
            },
            get_supported_versions,
        },
    },
};

use super::{Args, Session, endpoint};
use crate::{Error, Homeserver};

/// The specification versions whose operations this node answers.
const VERSIONS: [&str; 14] = [
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14",
];

/// What is answered beyond the specification, by the name clients look for.
const UNSTABLE_FEATURES: [&str; 1] = ["uk.tcpip.msc4133"];

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_supported_versions);
    let router = endpoint(router, get_capabilities);
    // Not an `endpoint`: the answer depends on the request's `Host`.
    router.route("/.well-known/matrix/client", get(discover_homeserver))
}

async fn get_supported_versions(
    _: Homeserver,
    _: Args<get_supported_versions::Request>,
) -> Result<get_supported_versions::Response, Error> {
    let mut response = get_supported_versions::Response::new(VERSIONS.map(str::to_owned).into());
    response.unstable_features = UNSTABLE_FEATURES.map(|name| (name.to_owned(), true)).into();
    Ok(response)
}

async fn get_capabilities(
    hs: Homeserver,
    args: Args<get_capabilities::Request>,
) -> Result<get_capabilities::Response, Error> {
    let Session { user_id, .. } = args.caller;
    let admin = hs.accounts.user(&user_id).await?.is_some_and(|user| user.admin);
    let stable = |version| (version, RoomVersionStability::Stable);
    let versions = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12].map(stable);
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(RoomVersionId::V12, BTreeMap::from(versions));
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    capabilities.get_login_token = GetLoginTokenCapability::new(true);
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    if admin {
        capabilities.account_moderation = AccountModerationCapability::new(false, true);
    }
    Ok(get_capabilities::Response::new(capabilities))
}

/// Points a client at the address it has just used: a node has no domain that could point anywhere else.
async fn discover_homeserver(State(_): State<Homeserver>, headers: HeaderMap) -> Result<Response, Error> {
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = host.ok_or_else(|| Error::not_found("the request names no host"))?;
    let response = discover_homeserver::Response::new(HomeserverInfo::new(format!("http://{host}")));
    let response = response
        .try_into_http_response::<Vec<u8>>()
        .map_err(|error| Error::Internal("a response did not serialise", Some(Box::new(error))))?;
    Ok(response.map(Into::into))
}
