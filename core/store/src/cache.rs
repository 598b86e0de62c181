//! What the transactions remember between them: states and parsed events, each cache with a written bound.
//!
//! Only immutable facts are remembered, under numbers that are never given out twice while the process lives. So
//! nothing here can go stale, not even when a job is undone. It never touches SQLite.

use std::{
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use hashlink::LinkedHashMap;
use kith_engine::{Pdu, StateMap};

/// Entries of packed states remembered, over all states; 16 bytes each.
const PACKED_ENTRIES: usize = 128 * 1024;
/// Entries of spelled-out states remembered, over all states; about 200 bytes each.
const MAP_ENTRIES: usize = 16 * 1024;
/// JSON bytes of parsed events remembered.
const PDU_BYTES: usize = 1024 * 1024;
/// What a remembered event costs beside its JSON, roughly.
const PDU_OVERHEAD: usize = 512;

/// A whole state as `(state key number, event number)`, in ascending order of keys.
pub(crate) type PackedState = Arc<[(i64, i64)]>;

/// The caches that all transactions of one store share.
#[derive(Debug)]
pub(crate) struct Caches {
    next_event: AtomicI64,
    next_state: AtomicI64,
    packed: Mutex<Lru<i64, PackedState>>,
    maps: Mutex<Lru<i64, Arc<StateMap>>>,
    pdus: Mutex<Lru<(i64, bool), Pdu>>,
}

impl Caches {
    /// Empty caches over a file whose highest numbers are these.
    pub(crate) fn new(last_event: i64, last_state: i64) -> Self {
        Self {
            next_event: AtomicI64::new(last_event + 1),
            next_state: AtomicI64::new(last_state + 1),
            packed: Mutex::new(Lru::new(PACKED_ENTRIES)),
            maps: Mutex::new(Lru::new(MAP_ENTRIES)),
            pdus: Mutex::new(Lru::new(PDU_BYTES)),
        }
    }

    /// A number for a new event row.
    pub(crate) fn next_event(&self) -> i64 {
        self.next_event.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a new state row.
    pub(crate) fn next_state(&self) -> i64 {
        self.next_state.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn packed(&self, state: i64) -> Option<PackedState> {
        lock(&self.packed).get(&state)
    }

    pub(crate) fn keep_packed(&self, state: i64, entries: &PackedState) {
        lock(&self.packed).insert(state, Arc::clone(entries), entries.len() + 1);
    }

    pub(crate) fn map(&self, state: i64) -> Option<Arc<StateMap>> {
        lock(&self.maps).get(&state)
    }

    pub(crate) fn keep_map(&self, state: i64, map: &Arc<StateMap>) {
        lock(&self.maps).insert(state, Arc::clone(map), map.len() + 1);
    }

    /// An event in one of its two forms: as signed, or redacted.
    pub(crate) fn pdu(&self, event: i64, redacted: bool) -> Option<Pdu> {
        lock(&self.pdus).get(&(event, redacted))
    }

    pub(crate) fn keep_pdu(&self, event: i64, redacted: bool, pdu: &Pdu) {
        let weight = pdu.json().len() + PDU_OVERHEAD;
        lock(&self.pdus).insert((event, redacted), pdu.clone(), weight);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A map that forgets what was used longest ago once its entries weigh more than a bound.
#[derive(Debug)]
struct Lru<K, V> {
    entries: LinkedHashMap<K, (V, usize)>,
    weight: usize,
    bound: usize,
}

impl<K: Hash + Eq, V: Clone> Lru<K, V> {
    fn new(bound: usize) -> Self {
        Self {
            entries: LinkedHashMap::new(),
            weight: 0,
            bound,
        }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        self.entries.to_back(key).map(|(value, _)| value.clone())
    }

    /// Remembers a value, unless it alone is over half the bound: one giant must not push everything else out.
    fn insert(&mut self, key: K, value: V, weight: usize) {
        if weight > self.bound / 2 {
            return;
        }
        self.weight += weight;
        if let Some((_, replaced)) = self.entries.insert(key, (value, weight)) {
            self.weight -= replaced;
        }
        while self.weight > self.bound
            && let Some((_, (_, forgotten))) = self.entries.pop_front()
        {
            self.weight -= forgotten;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Lru;

    #[test]
    fn the_longest_unused_goes_first_and_the_bound_holds() {
        let mut lru = Lru::new(10);
        lru.insert("a", 1, 4);
        lru.insert("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(1));
        lru.insert("c", 3, 4);
        assert_eq!(lru.get(&"b"), None);
        assert_eq!(lru.get(&"a"), Some(1));
        assert_eq!(lru.weight, 8);
        lru.insert("a", 5, 2);
        assert_eq!((lru.get(&"a"), lru.weight), (Some(5), 6));
        lru.insert("giant", 6, 6);
        assert_eq!(lru.get(&"giant"), None);
    }
}
