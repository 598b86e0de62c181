//! The server-server API over libp2p: what other nodes may ask of this one, and what this one asks of them.

pub mod client;
mod directory;
mod keys;
mod media;
mod membership;
mod peer;
mod profile;
mod user_keys;

use axum::Router;
use ruma::OwnedServerName;

use crate::Homeserver;

/// Who asks: the server name that the connection's hello proved. Stands in the extensions of every request that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub OwnedServerName);

/// The routes that other nodes reach.
pub fn router(homeserver: Homeserver) -> Router {
    let router = keys::routes(Router::new());
    let router = profile::routes(router);
    let router = user_keys::routes(router);
    let router = media::routes(router);
    let router = membership::routes(router);
    let router = directory::routes(router);
    router.with_state(homeserver)
}
