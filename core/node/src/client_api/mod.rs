//! The client-server API: parse a request, call one service method, render its answer. No decision is made here.

mod account;
mod account_data;
mod admin;
mod authentication;
mod dehydrated_device;
mod device;
mod discovery;
mod endpoint;
mod ephemeral;
mod error;
mod guard;
mod key_backup;
mod keys;
mod media;
mod presence;
mod profile;
mod push;
mod relations;
mod reports;
mod rooms;
mod search;
pub(crate) mod serve_file;
mod session;
mod state;
mod sync;
mod third_party;
mod timeline;
mod to_device;
mod user_directory;

pub use crate::homeserver::Session;
use endpoint::EMPTY_STATE_KEY_PATHS;
pub use endpoint::{Args, Authenticate, endpoint, endpoint_at};
pub(crate) use endpoint::{BodyLimit, read, render};
pub use error::render_error;
pub(crate) use error::{unrecognized, wrong_method};
pub use guard::{Hosts, only_hosts, with_cors};
pub(crate) use media::variant as thumbnail_variant;

use axum::Router;

use crate::Homeserver;

/// The routes that clients reach.
pub fn router(homeserver: Homeserver) -> Router {
    let router = Router::new().fallback(unrecognized);
    let router = discovery::routes(router);
    let router = session::routes(router);
    let router = account::routes(router);
    let router = device::routes(router);
    let router = key_backup::routes(router);
    let router = keys::routes(router);
    let router = to_device::routes(router);
    let router = dehydrated_device::routes(router);
    let router = ephemeral::routes(router);
    let router = admin::routes(router);
    let router = profile::routes(router);
    let router = account_data::routes(router);
    let router = third_party::routes(router);
    let router = push::routes(router);
    let router = media::routes(router);
    let router = presence::routes(router);
    let router = user_directory::routes(router);
    let router = sync::routes(router);
    let router = timeline::routes(router);
    let router = state::routes(router);
    let router = relations::routes(router);
    let router = search::routes(router);
    let router = rooms::routes(router);
    let router = reports::routes(router);
    router.method_not_allowed_fallback(wrong_method).with_state(homeserver)
}
