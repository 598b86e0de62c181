//! How much is passed on of one topic: so much at once, and so much each second. Whoever speaks more than that is not
//! heard on the topic meanwhile, nor is anybody else: what they say must be caught up with. Knows no message.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of one topic that are passed on at once, and each second. Each is sent up to four times. A room in which a thousand people
/// write a hundred messages a second needs less.
pub(super) const BURST: usize = 8 << 20;
pub(super) const EACH_SECOND: usize = 256 << 10;

/// What one topic may still say.
pub(super) struct Allowance {
    left: usize,
    at: Instant,
}

impl Allowance {
    /// All of it.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Takes the allowance for some bytes, if there is as much.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(60));
        let grown = passed.as_millis() as usize * EACH_SECOND / 1000;
        if grown > 0 {
            self.left = (self.left + grown).min(BURST);
            self.at = now;
        }
        let enough = bytes <= self.left;
        if enough {
            self.left -= bytes;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_so_much_each_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert!(allowance.take(BURST, start));
        assert!(!allowance.take(1, start));
        let mut taken = 0;
        for millis in (0..10_000).step_by(7) {
            taken += usize::from(allowance.take(3000, start + Duration::from_millis(millis))) * 3000;
        }
        assert!((9 * EACH_SECOND..=10 * EACH_SECOND).contains(&taken), "{taken}");
        let later = start + Duration::from_secs(24 * 60 * 60);
        assert!(allowance.take(BURST, later), "all of it comes back");
        assert!(!allowance.take(1, later), "and no more than that");
    }
}
