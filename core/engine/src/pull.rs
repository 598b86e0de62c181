//! One turn of fetching what a room lacks from one member, oldest first. It says what to ask for next and when to stop; it
//! fetches nothing.
//!
//! A few events are asked for by walking back from the heads: one request. If that does not connect with what is held,
//! the difference is found by reconciling sets, ever deeper, and what lacks is asked for by name, the oldest first, so that
//! everything kept stays kept when the turn is cut short. Only what nobody has is placed by told state.

use std::collections::VecDeque;

use ruma::OwnedEventId;

use crate::limits::{MAX_EVENTS_PER_PULL, MAX_PULL_ROUNDS, MAX_TOLD, RECONCILE_WINDOWS};

/// What to ask for next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// These events and those before them, back to what is held: at the most [`MAX_EVENTS_PER_PULL`], the nearest.
    Past(Vec<OwnedEventId>),
    /// By set reconciliation, what lacks at or above the depth of so many of the deepest events that are held.
    Difference {
        /// How many.
        window: usize,
    },
    /// These, by name; they come oldest first.
    Events(Vec<OwnedEventId>),
    /// The state before the oldest event that does not connect: nobody has what comes before it.
    Told,
    /// Everything wanted is held.
    Done,
    /// Much was fetched, and more is to come in another turn.
    Postponed,
    /// This member does not help further.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Walk,
    Difference(usize),
    Ancestors(usize),
    Told(usize),
}

/// Times that missing ancestors are asked for by name.
const ANCESTOR_ROUNDS: usize = 8;

/// A turn under way. Bounded: it ends after a fixed number of rounds.
#[derive(Debug, Clone)]
pub struct Pull {
    stage: Stage,
    /// Lacking events found by reconciliation and not yet asked for, oldest first.
    listed: VecDeque<OwnedEventId>,
    rounds: usize,
    /// Whether the last round brought anything.
    progress: bool,
    /// Events kept so far.
    kept: usize,
    may_be_told: bool,
}

impl Pull {
    /// Begins a turn. Heads that are not much deeper than one's own are walked back from first. Only with `may_be_told` does
    /// it end in [`Ask::Told`].
    pub fn new(own_depth: u64, their_depth: u64, may_be_told: bool) -> Self {
        let near = their_depth.saturating_sub(own_depth) <= MAX_EVENTS_PER_PULL as u64;
        Self {
            stage: if near { Stage::Walk } else { Stage::Difference(0) },
            listed: VecDeque::new(),
            rounds: 0,
            progress: true,
            kept: 0,
            may_be_told,
        }
    }

    /// What to ask for next, where these must still be had: wanted events that are not held, or, where those are at hand, the
    /// events that are missing before them.
    pub fn poll_ask(&mut self, missing: &[OwnedEventId]) -> Ask {
        if missing.is_empty() {
            return Ask::Done;
        }
        if self.rounds >= MAX_PULL_ROUNDS {
            return self.end();
        }
        self.rounds += 1;
        let some = || missing.iter().take(MAX_EVENTS_PER_PULL).cloned().collect();
        if !self.listed.is_empty() {
            let count = self.listed.len().min(MAX_EVENTS_PER_PULL);
            return Ask::Events(self.listed.drain(..count).collect());
        }
        loop {
            match self.stage {
                Stage::Walk => {
                    self.stage = Stage::Difference(0);
                    return Ask::Past(some());
                }
                Stage::Difference(wider) => match RECONCILE_WINDOWS.get(wider) {
                    Some(&window) => {
                        self.stage = Stage::Difference(wider + 1);
                        return Ask::Difference { window };
                    }
                    None => self.stage = Stage::Ancestors(0),
                },
                Stage::Ancestors(asked) if asked == 0 || (self.progress && asked < ANCESTOR_ROUNDS) => {
                    self.stage = Stage::Ancestors(asked + 1);
                    return Ask::Past(some());
                }
                Stage::Ancestors(_) => self.stage = Stage::Told(0),
                Stage::Told(told) if self.may_be_told && told < MAX_TOLD => {
                    self.stage = Stage::Told(told + 1);
                    return Ask::Told;
                }
                Stage::Told(_) => return self.end(),
            }
        }
    }

    /// Takes in what a reconciliation found lacking, oldest first, and whether it compared all that is held.
    pub fn handle_difference(&mut self, lacking: Vec<OwnedEventId>, whole: bool) {
        self.progress = !lacking.is_empty();
        self.listed = lacking.into();
        if let Stage::Difference(_) = self.stage
            && whole
        {
            self.stage = Stage::Ancestors(0);
        }
    }

    /// Says how many events the last request brought that were not held or at hand before, and how many were kept in all.
    pub fn handle_events(&mut self, new: usize, kept: usize) {
        self.progress = new > 0;
        self.kept = kept;
    }

    /// Another turn is worth it only if something was kept in this one: what a liar makes up connects with nothing.
    fn end(&self) -> Ask {
        if self.kept > 0 { Ask::Postponed } else { Ask::GiveUp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<usize>) -> Vec<OwnedEventId> {
        range
            .map(|number| format!("$event-{number}").try_into().unwrap())
            .collect()
    }

    #[test]
    fn a_small_difference_is_one_request() {
        let mut pull = Pull::new(100, 103, false);
        assert_eq!(pull.poll_ask(&ids(0..1)), Ask::Past(ids(0..1)));
        pull.handle_events(3, 3);
        assert_eq!(pull.poll_ask(&[]), Ask::Done);
    }

    #[test]
    fn a_large_difference_is_reconciled_ever_deeper() {
        let mut pull = Pull::new(100, 10_000, false);
        let wanted = ids(0..1);
        assert_eq!(pull.poll_ask(&wanted), Ask::Difference { window: 1_000 });
        pull.handle_difference(ids(0..700), false);
        assert_eq!(pull.poll_ask(&wanted), Ask::Events(ids(0..500)));
        pull.handle_events(500, 0);
        assert_eq!(pull.poll_ask(&wanted), Ask::Events(ids(500..700)));
        pull.handle_events(200, 0);
        assert_eq!(pull.poll_ask(&wanted), Ask::Difference { window: 16_000 });
        pull.handle_difference(Vec::new(), true);
        // Everything is compared: what still lacks is asked for by name, and then given up.
        assert_eq!(pull.poll_ask(&wanted), Ask::Past(wanted.clone()));
        pull.handle_events(0, 0);
        assert_eq!(pull.poll_ask(&wanted), Ask::GiveUp);
    }

    #[test]
    fn a_turn_always_ends() {
        for may_be_told in [false, true] {
            for (new, kept) in [(0, 0), (1, 0), (1, 1)] {
                let mut pull = Pull::new(0, 0, may_be_told);
                let mut asked = Vec::new();
                while !matches!(asked.last(), Some(Ask::GiveUp | Ask::Postponed)) {
                    asked.push(pull.poll_ask(&ids(0..2)));
                    match asked.last() {
                        Some(Ask::Difference { .. }) => pull.handle_difference(ids(0..new * 3_000), false),
                        _ => pull.handle_events(new, kept),
                    }
                    assert!(asked.len() <= MAX_PULL_ROUNDS + 1);
                }
                let told = asked.iter().filter(|ask| **ask == Ask::Told).count();
                assert_eq!(told, if may_be_told { MAX_TOLD } else { 0 }, "{asked:?}");
            }
        }
    }
}
