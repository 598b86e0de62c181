//! What other servers ask about this node's users: profiles, and whose an OpenID token is.

use axum::Router;
use ruma::{
    api::federation::{openid::get_openid_userinfo, query::get_profile_information},
    profile::UserProfile,
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_profile_information);
    endpoint(router, get_openid_userinfo)
}

async fn get_profile_information(
    hs: Homeserver,
    args: Args<get_profile_information::v1::Request>,
) -> Result<get_profile_information::v1::Response, Error> {
    let request = args.request;
    if !hs.context.is_local(&request.user_id) {
        return Err(Error::not_found("that user is another server's"));
    }
    let mut profile = hs.profiles.local_profile(&request.user_id).await?;
    if let Some(field) = request.field {
        let value = profile.remove(field.as_str());
        profile = value.map(|value| (field, value)).into_iter().collect::<UserProfile>();
    }
    Ok(profile.into())
}

async fn get_openid_userinfo(
    hs: Homeserver,
    args: Args<get_openid_userinfo::v1::Request>,
) -> Result<get_openid_userinfo::v1::Response, Error> {
    let user_id = hs.accounts.openid_user(&args.request.access_token)?;
    Ok(get_openid_userinfo::v1::Response::new(user_id))
}
