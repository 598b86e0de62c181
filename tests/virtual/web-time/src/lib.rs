//! The interface of web-time 1 with tokio's clock behind `Instant`, so that libp2p reckons in virtual time where that clock is
//! paused. Never part of a product: see `tests/virtual/run.sh`.
//!
//! `SystemTime` stays the operating system's: libraries exchange it with the standard library's. What is simulated here stamps
//! records and counts with it, and waits for nothing by it.

pub use std::time::{Duration, SystemTime, SystemTimeError, TryFromFloatSecsError, UNIX_EPOCH};

pub use tokio::time::Instant;
