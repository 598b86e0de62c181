//! The store from outside: through its public interface, over real files.

#![allow(clippy::unwrap_used)]

mod durability;
mod files;
mod model;
mod rooms;
