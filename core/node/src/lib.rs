//! The embedded Matrix homeserver: joins engine, store and network into a running node. No Matrix rule stands here.

mod backup;
pub mod clock;
pub mod config;
pub mod contacts;
pub mod data_folder;
pub mod doctor;
pub mod error;
pub mod keystore;
mod listener;
pub mod network;
mod node;
mod publishing;
mod record_keys;
pub mod relays;
pub mod status;
mod suspend;

pub mod client_api;
pub mod federation;
pub mod homeserver;

#[cfg(test)]
#[allow(dead_code)] // Each test uses some of it.
pub(crate) mod testing;

pub use backup::media_of_backup;
pub use error::Error;
pub use homeserver::Homeserver;
pub use kith_identity as identity;
pub use kith_net::{ConnectionLimits, Multiaddr, PeerId, Timing, settings};
pub use kith_store as store;
pub use listener::ListenError;
pub use node::{Node, StartError};
