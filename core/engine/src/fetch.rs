//! What to fetch when an event cannot be judged yet, and when to try again. It fetches nothing and reads no clock.

use std::time::Duration;

use ruma::OwnedEventId;

use crate::{
    Missing,
    limits::{
        BACKOFF_FIRST, BACKOFF_LONGEST, MAX_GAP_EVENTS, MAX_GAP_ROUNDS, MAX_SINGLE_FETCHES, MISSING_EVENTS_PER_REQUEST,
    },
};

/// The next request that may bring an event closer to being judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// `get_missing_events` between what is held and the event. Feed the answer oldest first to
    /// [`receive`](crate::receive), each [vouched for](crate::CheckedPdu::vouched_for).
    MissingEvents {
        /// The event whose past is wanted.
        latest: OwnedEventId,
        /// The forward extremities: where to stop.
        earliest: Vec<OwnedEventId>,
        /// How many to ask for.
        limit: usize,
    },
    /// These, by id, for [`receive_outlier`](crate::receive_outlier); those they rest upon first.
    AuthEvents(Vec<OwnedEventId>),
    /// `event_auth` of the event: too many are missing to ask for each. For `receive_outlier`.
    AuthChain(OwnedEventId),
    /// All that lies between, however much: reconcile sets with whoever sent the event, as [`Pull`](crate::Pull) says.
    Pull,
    /// `state_ids` before the event, and of these what is not held, for `receive_outlier`; then
    /// [`receive_with_state`](crate::receive_with_state). The gap stays, for backfill to fill.
    State(OwnedEventId),
    /// Enough was fetched in vain. The event may come again.
    GiveUp,
}

/// One event whose past is not held, and what has been done about it. Bounded: it ends in
/// [`Fetch::State`] or [`Fetch::GiveUp`] after a fixed number of rounds and events.
#[derive(Debug, Clone)]
pub struct Gap {
    event: OwnedEventId,
    rounds: usize,
    fetched: usize,
    /// Whether the last round brought anything.
    progress: bool,
    pulled: bool,
    asked_state: bool,
}

impl Gap {
    /// A gap before this event.
    pub fn new(event: OwnedEventId) -> Self {
        Self {
            event,
            rounds: 0,
            fetched: 0,
            progress: true,
            pulled: false,
            asked_state: false,
        }
    }

    /// What to ask for next, after an attempt that found these missing.
    pub fn poll_fetch(&mut self, missing: &Missing, extremities: &[OwnedEventId]) -> Fetch {
        if self.rounds >= 2 * MAX_GAP_ROUNDS {
            return Fetch::GiveUp;
        }
        self.rounds += 1;
        if missing.prev.is_empty() {
            return match (self.progress, missing.auth.len()) {
                (false, _) => Fetch::GiveUp,
                (true, 0..=MAX_SINGLE_FETCHES) => Fetch::AuthEvents(missing.auth.clone()),
                (true, _) => Fetch::AuthChain(self.event.clone()),
            };
        }
        if self.progress && self.rounds <= MAX_GAP_ROUNDS && self.fetched < MAX_GAP_EVENTS && !extremities.is_empty() {
            return Fetch::MissingEvents {
                latest: self.event.clone(),
                earliest: extremities.to_vec(),
                limit: MISSING_EVENTS_PER_REQUEST.min(MAX_GAP_EVENTS - self.fetched),
            };
        }
        if !self.pulled {
            self.pulled = true;
            return Fetch::Pull;
        }
        if self.asked_state {
            return Fetch::GiveUp;
        }
        self.asked_state = true;
        Fetch::State(self.event.clone())
    }

    /// Says how many events the last request brought that were not held before.
    pub fn handle_fetched(&mut self, new_events: usize) {
        self.progress = new_events > 0;
        self.fetched = self.fetched.saturating_add(new_events);
    }
}

/// How long to wait before a request is tried again after `failures` failures in a row, at least one. `random` is a
/// fresh random number: waits differ between peers, so that they do not all come at once.
///
/// Doubles from 1 s to 1 h; a wait is never shorter than half of what it may be at most.
pub fn backoff(failures: u32, random: u64) -> Duration {
    let doublings = failures.min(32);
    let most = BACKOFF_FIRST
        .saturating_mul(1 << doublings.min(31))
        .clamp(2 * BACKOFF_FIRST, BACKOFF_LONGEST);
    let least = most / 2;
    let spread = u64::try_from((most - least).as_millis()).unwrap_or(u64::MAX);
    least + Duration::from_millis(random % spread.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_second_to_an_hour() {
        for (failures, least, most) in [
            (0, 1, 2),
            (1, 1, 2),
            (2, 2, 4),
            (3, 4, 8),
            (11, 1_024, 2_048),
            (12, 1_800, 3_600),
            (u32::MAX, 1_800, 3_600),
        ] {
            for random in [0, 1, 12_345, u64::MAX / 2, u64::MAX] {
                let wait = backoff(failures, random);
                assert!(
                    wait >= Duration::from_secs(least) && wait <= Duration::from_secs(most),
                    "{failures}: {wait:?}"
                );
            }
        }
        assert_eq!(backoff(1, 0), Duration::from_secs(1));
        assert_eq!(backoff(12, 1_800_000), Duration::from_secs(3_600));
    }

    fn id(name: &str) -> OwnedEventId {
        OwnedEventId::try_from(format!("${name}")).unwrap()
    }

    #[test]
    fn a_gap_always_ends() {
        let missing = Missing {
            prev: vec![id("prev")],
            auth: vec![],
        };
        let mut gap = Gap::new(id("event"));
        let mut asked = Vec::new();
        for _ in 0..100 {
            asked.push(gap.poll_fetch(&missing, &[id("extremity")]));
            gap.handle_fetched(10);
        }
        assert!(matches!(asked[0], Fetch::MissingEvents { .. }));
        assert_eq!(asked[MAX_GAP_ROUNDS], Fetch::Pull);
        assert_eq!(asked[MAX_GAP_ROUNDS + 1], Fetch::State(id("event")));
        assert!(asked[MAX_GAP_ROUNDS + 2..].iter().all(|fetch| *fetch == Fetch::GiveUp));
    }

    #[test]
    fn an_empty_answer_ends_a_round() {
        let missing = Missing {
            prev: vec![id("prev")],
            auth: vec![],
        };
        let mut gap = Gap::new(id("event"));
        gap.poll_fetch(&missing, &[id("extremity")]);
        gap.handle_fetched(0);
        assert_eq!(gap.poll_fetch(&missing, &[id("extremity")]), Fetch::Pull);
        gap.handle_fetched(0);
        assert_eq!(gap.poll_fetch(&missing, &[id("extremity")]), Fetch::State(id("event")));
        let auth = Missing {
            prev: vec![],
            auth: vec![id("auth")],
        };
        assert_eq!(gap.poll_fetch(&auth, &[]), Fetch::GiveUp);
        let mut gap = Gap::new(id("event"));
        assert_eq!(gap.poll_fetch(&auth, &[]), Fetch::AuthEvents(vec![id("auth")]));
    }
}
