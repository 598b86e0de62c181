//! What people's errands came to. Judges nothing.

use std::{fmt, time::Duration};

use super::Carried;

/// How errands of one kind went.
pub(super) struct Outcome {
    /// How long those took that succeeded, in order.
    times: Vec<Duration>,
    tried: usize,
    /// What all together cost those who made them.
    cost: Carried,
}

impl Outcome {
    /// Of each errand, how long it took if it succeeded; and what clients had carried before all of them and after.
    pub(super) fn new(errands: &[Option<Duration>], before: Carried, after: Carried) -> Self {
        let mut times: Vec<_> = errands.iter().flatten().copied().collect();
        times.sort();
        Self {
            times,
            tried: errands.len(),
            cost: Carried {
                connections: after.connections - before.connections,
                bytes: after.bytes - before.bytes,
            },
        }
    }

    /// Whether so many of a hundred succeeded.
    pub(super) fn succeeded(&self, percent: usize) -> bool {
        self.times.len() * 100 >= self.tried * percent
    }

    /// Within which time so many of a hundred succeeded. Those that failed took longer than any.
    pub(super) fn within(&self, percent: usize) -> Duration {
        let last = (self.tried * percent).div_ceil(100).max(1) - 1;
        self.times.get(last).copied().unwrap_or(Duration::MAX)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |percent| self.within(percent).as_secs_f64();
        write!(
            f,
            "{} of {}; p50 {:.2} s, p95 {:.2} s; each {:.1} connections and {:.1} KB",
            self.times.len(),
            self.tried,
            seconds(50),
            seconds(95),
            self.cost.connections as f64 / self.tried as f64,
            self.cost.bytes as f64 / self.tried as f64 / 1000.0,
        )
    }
}
