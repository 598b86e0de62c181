//! Unmodified Matrix clients on real nodes: one scenario, played by every pair of client libraries.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod actor;
mod conversation;
