//! How high the generation of a topic's secret may be. Whoever makes a secret counts one further, so that the newest wins; a
//! member that names the highest number there is would leave no further one. It compares no secrets.

use ruma::MilliSecondsSinceUnixEpoch;

use crate::limits::TOPIC_CLOCK_TOLERANCE;

/// Whether a generation is believed: there are no more than seconds since 1970, by a clock that is a day fast. No room comes near
/// it by itself, however busy. Whoever names the highest that is believed is surpassed a second later; and what a member
/// cannot believe yet, because its clock is slow, it can when it is told again.
pub fn is_generation_believed(generation: u64, now: MilliSecondsSinceUnixEpoch) -> bool {
    generation <= (u64::from(now.get()) / 1_000).saturating_add(TOPIC_CLOCK_TOLERANCE.as_secs())
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;

    #[test]
    fn there_is_always_a_next_generation() {
        let at = |seconds: u64| MilliSecondsSinceUnixEpoch(UInt::new_saturating(seconds * 1_000));
        let now = 1_800_000_000;
        for generation in [0, 1, 1_000_000, now, now + 86_400] {
            assert!(is_generation_believed(generation, at(now)), "{generation}");
        }
        for generation in [now + 86_401, i64::MAX as u64, u64::MAX] {
            assert!(!is_generation_believed(generation, at(now)), "{generation}");
        }
        // The highest one that is believed has a next one, and soon.
        assert!(is_generation_believed(now + 86_401, at(now + 1)));
        // A clock that was never set believes what honest rooms come to.
        assert!(is_generation_believed(80_000, at(0)));
    }
}
