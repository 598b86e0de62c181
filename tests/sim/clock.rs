//! The wall clock of one node: virtual time, set right or wrong.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use kith_node::clock::Clock;
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use tokio::time::Instant;

/// When every run begins: 2026-01-01 00:00 UTC, in milliseconds since the Unix epoch.
const BEGINNING: i64 = 1_767_225_600_000;

/// One node's clock. Clones are the same clock.
#[derive(Clone)]
pub(crate) struct WallClock {
    start: Instant,
    /// Milliseconds by which it is wrong.
    wrong: Arc<AtomicI64>,
}

impl WallClock {
    /// A clock that is right.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            wrong: Arc::default(),
        }
    }

    /// Sets it wrong by so many milliseconds.
    pub(crate) fn set_wrong(&self, millis: i64) {
        self.wrong.store(millis, Ordering::SeqCst);
    }

    /// Milliseconds by which it is wrong.
    pub(crate) fn wrong(&self) -> i64 {
        self.wrong.load(Ordering::SeqCst)
    }
}

impl Clock for WallClock {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        let elapsed = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        let now = BEGINNING + elapsed + self.wrong();
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(now.unsigned_abs()))
    }
}
