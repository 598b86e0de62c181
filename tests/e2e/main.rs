//! End to end over real processes, real QUIC and real SQLite, by plain requests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod backup;
mod conversation;
mod crash;
mod full_disk;
mod kills;
mod lan;
