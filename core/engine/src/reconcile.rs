//! Finds which events another member holds and this one does not, without telling each other every id: range-based set
//! reconciliation over ids that are keyed anew for each exchange. It asks nobody: messages come in and go out as bytes.
//!
//! The fingerprint of a range is a hash of the sum of its ids. Whoever can choose ids can make two sets of equal sum, so
//! what is summed are not the ids but their keyed hashes, under a key that nobody knew when the events were made.

use std::collections::BTreeSet;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use ruma::EventId;

use crate::limits::{MAX_LACKING, MAX_RECONCILE_MESSAGE, MAX_RECONCILE_ROUNDS};

/// A message of the other side that is none.
#[derive(Debug, thiserror::Error)]
#[error("the sets could not be reconciled: {0}")]
pub struct ReconcileError(#[from] negentropy::Error);

/// The key of one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetKey(pub [u8; 32]);

impl SetKey {
    /// What stands for an event's id in this exchange.
    pub fn mask(&self, id: &EventId) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, id.as_bytes()).as_bytes()
    }
}

/// The events that one side holds, ready to be compared. About 40 bytes an event.
#[derive(Debug, Clone)]
pub struct EventSet(NegentropyStorageVector);

impl EventSet {
    /// A set from events' depths and ids, in any order, each id once.
    pub fn new<'a>(key: &SetKey, events: impl IntoIterator<Item = (u64, &'a EventId)>) -> Result<Self, ReconcileError> {
        let mut storage = NegentropyStorageVector::new();
        for (depth, id) in events {
            storage.insert(depth, Id::from_byte_array(key.mask(id)))?;
        }
        storage.seal()?;
        Ok(Self(storage))
    }
}

/// The asking side of a reconciliation. It ends after a fixed number of messages, whatever it is answered.
#[derive(Debug)]
pub struct Reconciliation {
    set: EventSet,
    rounds: usize,
    lacking: BTreeSet<[u8; 32]>,
}

impl Reconciliation {
    /// Begins with what this side holds.
    pub fn new(set: EventSet) -> Self {
        Self {
            set,
            rounds: 0,
            lacking: BTreeSet::new(),
        }
    }

    /// The first message.
    pub fn first_message(&self) -> Result<Vec<u8>, ReconcileError> {
        Ok(self.side()?.initiate()?)
    }

    /// Takes an answer in; returns the next message, or none once the difference, or enough of it, is known.
    pub fn handle_answer(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, ReconcileError> {
        self.rounds += 1;
        let mut side = self.side()?;
        side.set_initiator();
        let (mut held, mut lacking) = (Vec::new(), Vec::new());
        let next = side.reconcile_with_ids(answer, &mut held, &mut lacking)?;
        self.lacking.extend(lacking.into_iter().map(Id::to_bytes));
        let enough = self.rounds >= MAX_RECONCILE_ROUNDS || self.lacking.len() >= MAX_LACKING;
        Ok(next.filter(|_| !enough))
    }

    /// The keyed ids that the other side holds and this one does not, as far as they were found.
    pub fn into_lacking(self) -> BTreeSet<[u8; 32]> {
        self.lacking
    }

    fn side(&self) -> Result<Negentropy<'_, NegentropyStorageVector>, ReconcileError> {
        Ok(Negentropy::borrowed(&self.set.0, MAX_RECONCILE_MESSAGE as u64)?)
    }
}

/// The answering side: one message for one, nothing to remember.
pub fn answer_reconciliation(set: &EventSet, message: &[u8]) -> Result<Vec<u8>, ReconcileError> {
    Ok(Negentropy::borrowed(&set.0, MAX_RECONCILE_MESSAGE as u64)?.reconcile(message)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::OwnedEventId;

    use super::*;

    fn id(number: u32) -> OwnedEventId {
        format!("$event-{number}").try_into().unwrap()
    }

    /// What one side finds that it lacks, and in how many messages.
    fn lacking(key: &SetKey, own: &[(u64, u32)], other: &[(u64, u32)]) -> (BTreeSet<[u8; 32]>, usize) {
        let set = |events: &[(u64, u32)]| {
            let events: Vec<_> = events.iter().map(|(depth, number)| (*depth, id(*number))).collect();
            EventSet::new(key, events.iter().map(|(depth, id)| (*depth, &**id))).unwrap()
        };
        let other = set(other);
        let mut asking = Reconciliation::new(set(own));
        let mut message = Some(asking.first_message().unwrap());
        let mut messages = 0;
        while let Some(asked) = message {
            let answer = answer_reconciliation(&other, &asked).unwrap();
            assert!(answer.len() <= MAX_RECONCILE_MESSAGE);
            message = asking.handle_answer(&answer).unwrap();
            messages += 1;
        }
        (asking.into_lacking(), messages)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_lacking_is_found_exactly(
            events in proptest::collection::vec((0u64..300, 0u8..4), 0..800),
            key in any::<[u8; 32]>(),
        ) {
            // 0 and 1: both hold it; 2: only this side; 3: only the other one.
            let key = SetKey(key);
            let numbered = || events.iter().zip(0u32..).map(|((depth, who), number)| ((*depth, number), *who));
            let own: Vec<_> = numbered().filter(|(_, who)| *who != 3).map(|(event, _)| event).collect();
            let other: Vec<_> = numbered().filter(|(_, who)| *who != 2).map(|(event, _)| event).collect();
            let expected: BTreeSet<[u8; 32]> = numbered()
                .filter(|(_, who)| *who == 3)
                .map(|((_, number), _)| key.mask(&id(number)))
                .collect();
            prop_assert_eq!(lacking(&key, &own, &other).0, expected);
        }

        #[test]
        fn no_answer_breaks_it(answer in proptest::collection::vec(any::<u8>(), 0..600), honest in any::<bool>()) {
            let events: Vec<_> = (0..100).map(|number| (u64::from(number), id(number))).collect();
            let set = || EventSet::new(&SetKey([7; 32]), events.iter().map(|(depth, id)| (*depth, &**id))).unwrap();
            let mut answer = answer;
            if honest && let Some(version) = answer.first_mut() {
                *version = 0x61;
            }
            let _ = Reconciliation::new(set()).handle_answer(&answer);
            let _ = answer_reconciliation(&set(), &answer);
        }
    }

    #[test]
    fn a_few_among_many_cost_little() {
        let all: Vec<(u64, u32)> = (0..20_000).map(|number| (u64::from(number), number)).collect();
        let own: Vec<(u64, u32)> = all.iter().copied().filter(|(_, number)| number % 5_000 != 7).collect();
        let (found, messages) = lacking(&SetKey([1; 32]), &own, &all);
        assert_eq!((found.len(), messages), (4, 2));
        assert_eq!(lacking(&SetKey([1; 32]), &all, &all), (BTreeSet::new(), 1));
    }

    #[test]
    fn more_than_enough_is_found_in_parts_the_deeper_past_first() {
        let all: Vec<(u64, u32)> = (0..30_000).map(|number| (u64::from(number), number)).collect();
        let key = SetKey([2; 32]);
        let (found, _) = lacking(&key, &all[..100], &all);
        assert!((MAX_LACKING..2 * MAX_LACKING).contains(&found.len()), "{}", found.len());
        assert!(found.contains(&key.mask(&id(100))));
    }

    /// With plain sums, sets of equal sums would look alike; keyed, every exchange sums something else.
    #[test]
    fn masks_differ_from_exchange_to_exchange() {
        assert_ne!(SetKey([1; 32]).mask(&id(1)), SetKey([2; 32]).mask(&id(1)));
    }
}
