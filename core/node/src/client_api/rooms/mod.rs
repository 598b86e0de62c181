//! Creating rooms, membership, sending, aliases and the room directory. Reading rooms is served elsewhere.

mod aliases;
mod create;
mod directory;
mod membership;
mod send;
mod spaces;

use axum::Router;

use crate::Homeserver;

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = create::routes(router);
    let router = membership::routes(router);
    let router = send::routes(router);
    let router = aliases::routes(router);
    let router = spaces::routes(router);
    directory::routes(router)
}
