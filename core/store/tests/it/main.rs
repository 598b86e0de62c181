//! The store from outside: through its public interface, over real files.

#![allow(clippy::unwrap_used)]

mod agreement;
mod durability;
mod files;
mod model;
mod rooms;
