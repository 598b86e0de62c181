//! The server-server API over libp2p: what other nodes may ask of this one, and what this one asks of them.

pub mod catch_up;
pub mod client;
mod directory;
mod events;
mod keys;
mod media;
mod membership;
mod peer;
mod profile;
mod transactions;
mod user_keys;
mod version;

use axum::{Extension, Router};
use ruma::OwnedServerName;

use crate::{
    Homeserver,
    client_api::{BodyLimit, unrecognized, wrong_method},
};

/// Bytes of a request body that another node may send: 50 PDUs of 64 KiB, 100 EDUs, and room to spare.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Who asks: the server name that the connection's hello proved. Stands in the extensions of every request that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub OwnedServerName);

/// The routes that other nodes reach.
pub fn router(homeserver: Homeserver) -> Router {
    let router = version::routes(Router::new().fallback(unrecognized));
    let router = keys::routes(router);
    let router = transactions::routes(router);
    let router = events::routes(router);
    let router = catch_up::routes(router);
    let router = profile::routes(router);
    let router = user_keys::routes(router);
    let router = media::routes(router);
    let router = membership::routes(router);
    let router = directory::routes(router);
    router
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(BodyLimit(MAX_BODY_BYTES)))
        .with_state(homeserver)
}
