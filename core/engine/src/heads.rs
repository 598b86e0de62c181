//! Where a room stands with one member, told in few bytes: its forward extremities and their depth. It compares, and asks
//! for nothing.

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};

use crate::limits::MAX_HEADS;

/// A room's heads as members tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The forward extremities, sorted; of more than [`MAX_HEADS`] only the first.
    pub events: Vec<OwnedEventId>,
    /// A hash over all of them.
    pub digest: String,
    /// The greatest depth among them.
    pub depth: u64,
}

impl Heads {
    /// Heads from all forward extremities and the greatest depth among them.
    pub fn new(mut extremities: Vec<OwnedEventId>, depth: u64) -> Self {
        extremities.sort();
        let mut hasher = blake3::Hasher::new();
        for id in &extremities {
            hasher.update(id.as_bytes()).update(b"\n");
        }
        extremities.truncate(MAX_HEADS);
        let digest = hasher.finalize().to_hex();
        Self {
            events: extremities,
            digest: digest.as_str().chars().take(32).collect(),
            depth,
        }
    }

    /// Whether these are the same events, all of them.
    pub fn equal(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Whether all of them are named.
    pub fn is_whole(&self) -> bool {
        self.events.len() < MAX_HEADS
    }

    /// Whether another member may tell heads like these.
    pub fn is_sound(&self) -> bool {
        self.events.len() <= MAX_HEADS && self.digest.len() <= 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<usize>) -> Vec<OwnedEventId> {
        range
            .map(|number| format!("$event-{number:04}").try_into().unwrap())
            .collect()
    }

    #[test]
    fn heads_are_equal_in_any_order_and_beyond_what_is_named() {
        let reversed = ids(0..1_080).into_iter().rev().collect();
        assert!(Heads::new(ids(0..1_080), 3).equal(&Heads::new(reversed, 4)));
        let (most, all) = (Heads::new(ids(0..1_079), 3), Heads::new(ids(0..1_080), 3));
        assert_eq!((&most.events, most.events.len()), (&all.events, MAX_HEADS));
        assert!(!most.equal(&all) && all.is_sound());
    }
}
