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

use axum::{
    Extension, Router,
    extract::Request,
    middleware::{self, Next},
    response::IntoResponse,
};
use ruma::OwnedServerName;

use crate::{
    Homeserver,
    client_api::{BodyLimit, unrecognized, wrong_method},
    homeserver::Work,
};

/// Bytes of a request body that another node may send: 50 PDUs of 64 KiB, 100 EDUs, and room to spare.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Who asks: the server name that the connection's hello proved. Stands in the extensions of every request that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub OwnedServerName);

/// The routes that other nodes reach.
pub fn router(homeserver: Homeserver) -> Router {
    let queries = version::routes(Router::new());
    let queries = keys::routes(queries);
    let queries = events::routes(queries);
    let queries = catch_up::routes(queries);
    let queries = profile::routes(queries);
    let queries = user_keys::routes(queries);
    let queries = media::routes(queries);
    let queries = directory::routes(queries);
    let queries = within_allowance(queries, &homeserver, Work::Queries);
    let handshakes = within_allowance(membership::routes(Router::new()), &homeserver, Work::Handshakes);
    // What a transaction costs shows when it is read: its handler sees to that.
    transactions::routes(Router::new().fallback(unrecognized))
        .merge(queries)
        .merge(handshakes)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(BodyLimit(MAX_BODY_BYTES)))
        .with_state(homeserver)
}

/// Has each request to these routes count for one unit of a kind of work.
fn within_allowance(routes: Router<Homeserver>, homeserver: &Homeserver, work: Work) -> Router<Homeserver> {
    let admission = homeserver.admission.clone();
    let admit = move |request: Request, next: Next| {
        let peer = request.extensions().get::<Peer>();
        // Whoever has not said hello is refused further on.
        let admitted = peer.map_or(Ok(()), |Peer(server)| admission.take(server, work, 1));
        async move {
            match admitted {
                Ok(()) => next.run(request).await,
                Err(error) => error.into_response(),
            }
        }
    };
    routes.route_layer(middleware::from_fn(admit))
}
