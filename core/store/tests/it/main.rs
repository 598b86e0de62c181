//! The store from outside: through its public interface, over real files.

mod model;
mod rooms;
mod timeline;
