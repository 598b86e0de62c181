//! The user directory.

use axum::Router;
use ruma::api::client::user_directory::search_users::{
    self,
    v3::{Response, User},
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    endpoint(router, search_users)
}

async fn search_users(hs: Homeserver, args: Args<search_users::v3::Request>) -> Result<Response, Error> {
    let request = args.request;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let found = hs
        .user_directory
        .search(&args.caller, &request.search_term, limit)
        .await?;
    let users = found.users.into_iter().map(|found| {
        let mut user = User::new(found.user_id);
        user.display_name = found.display_name;
        user.avatar_url = found.avatar_url;
        user
    });
    Ok(Response::new(users.collect(), found.limited))
}
