//! What members ask each other so that nothing stays unknown to one of them.

pub mod api;

use axum::Router;

use super::Peer;
use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};
use api::{exchange_heads, pull, reconcile};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, exchange_heads);
    let router = endpoint(router, reconcile);
    endpoint(router, pull)
}

async fn exchange_heads(
    hs: Homeserver,
    args: Args<exchange_heads::Request>,
) -> Result<exchange_heads::Response, Error> {
    let Peer(peer) = args.caller;
    let exchange_heads::Request {
        rooms,
        unreached,
        topics,
    } = args.request;
    let exchanged = hs.catch_up.handle_exchange(peer, rooms, unreached, topics).await?;
    let mut response = exchange_heads::Response::new(exchanged.rooms);
    (response.holds, response.left) = (exchanged.holds, exchanged.left);
    response.topics = exchanged.topics;
    Ok(response)
}

async fn reconcile(hs: Homeserver, args: Args<reconcile::Request>) -> Result<reconcile::Response, Error> {
    let Peer(peer) = args.caller;
    hs.archive.reconcile(peer, args.request).await
}

async fn pull(hs: Homeserver, args: Args<pull::Request>) -> Result<pull::Response, Error> {
    let Peer(peer) = args.caller;
    Ok(pull::Response::new(hs.archive.pull(peer, args.request).await?))
}
