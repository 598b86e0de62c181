//! Room states as immutable values: snapshots, and deltas to other states in chains of bounded length. It decides
//! nothing about what a state should be. What is read is what the rows hold, but for events that were refuted since.

use std::{cmp::Ordering, sync::Arc};

use kith_engine::{NewState, StateId, StateKey, StateMap};
use ruma::OwnedEventId;
use rusqlite::OptionalExtension;

use crate::{
    ReadTxn, StoreError, WriteTxn,
    cache::PackedState,
    intern::{missing, parse},
    packed::{find_pair, pack_pairs, unpack_pairs},
    refuted::Correction,
};

/// Deltas between a state and its snapshot at the most. A lookup reads at most this many rows and one snapshot.
const MAX_CHAIN: i64 = 64;

/// One key in which two states differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The key.
    pub key: StateKey,
    /// What stood there before, if anything.
    pub before: Option<OwnedEventId>,
    /// What stands there after, if anything.
    pub after: Option<OwnedEventId>,
}

/// One differing key by number; 0 says absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberedChange {
    pub(crate) key: i64,
    pub(crate) before: i64,
    pub(crate) after: i64,
}

struct StateRow {
    room: i64,
    base: Option<i64>,
    chain: i64,
    entries: Vec<u8>,
}

impl ReadTxn<'_> {
    /// The keys in which two states differ, in no meaningful order.
    pub fn state_diff(&self, before: StateId, after: StateId) -> Result<Vec<StateChange>, StoreError> {
        let name = |event| match event {
            0 => Ok(None),
            event => self.event_name(event).map(Some),
        };
        self.numbered_diff(Some(before.0), after.0)?
            .into_iter()
            .map(|change| {
                Ok(StateChange {
                    key: self.key_name(change.key)?,
                    before: name(change.before)?,
                    after: name(change.after)?,
                })
            })
            .collect()
    }

    pub(crate) fn read_state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, StoreError> {
        let Some(key) = self.key_no(key)? else {
            return Ok(None);
        };
        let sql = "SELECT event_id FROM rooms LEFT JOIN current_state
                   ON current_state.room = rooms.room AND current_state.key = ?2
                   LEFT JOIN events USING (event) WHERE rooms.state = ?1";
        // The usual case by far: some room's current state, which is spread out for lookups.
        if let Some(current) = self.lookup::<Option<String>>(sql, (state.0, key))? {
            return current.map(|id| parse("event id", &id)).transpose();
        }
        match self.packed_entry(state.0, key)? {
            0 => Ok(None),
            event => self.event_name(event).map(Some),
        }
    }

    pub(crate) fn read_full_state(&self, state: StateId) -> Result<Arc<StateMap>, StoreError> {
        let mut map = self.kept_map(state)?;
        for refuted in self.named_corrections(state.0)? {
            refuted.correct(&mut map);
        }
        Ok(map)
    }

    fn kept_map(&self, state: StateId) -> Result<Arc<StateMap>, StoreError> {
        if let Some(map) = self.caches().map(state.0) {
            return Ok(map);
        }
        let packed = self.kept_state(state.0)?;
        let map = packed
            .iter()
            .map(|&(key, event)| Ok((self.key_name(key)?, self.event_name(event)?)))
            .collect::<Result<StateMap, StoreError>>()?;
        let map = Arc::new(map);
        self.caches().keep_map(state.0, &map);
        Ok(map)
    }

    /// The entry when `state` is some room's current one, which is spread out for lookups; none when it is not.
    fn current_entry(&self, state: i64, key: i64) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT ifnull(event, 0) FROM rooms LEFT JOIN current_state
                   ON current_state.room = rooms.room AND key = ?2 WHERE rooms.state = ?1";
        self.lookup(sql, (state, key))
    }

    fn packed_entry(&self, state: i64, key: i64) -> Result<i64, StoreError> {
        self.corrected(self.kept_entry(state, key)?)
    }

    /// Walks the chain towards the snapshot until the key turns up.
    fn kept_entry(&self, state: i64, key: i64) -> Result<i64, StoreError> {
        let mut at = state;
        loop {
            if let Some(known) = self.caches().packed(at) {
                let found = known.binary_search_by_key(&key, |&(key, _)| key);
                return Ok(found.map_or(0, |index| known[index].1));
            }
            let row = self.state_row(at)?;
            let Some(base) = row.base else {
                // Many states stand on one snapshot: remember it, and the next lookup ends in memory.
                let whole: PackedState = unpack_pairs(&row.entries)?.into();
                self.caches().keep_packed(at, &whole);
                return Ok(find_pair(&row.entries, key)?.unwrap_or(0));
            };
            if let Some(event) = find_pair(&row.entries, key)? {
                return Ok(event);
            }
            at = base;
        }
    }

    /// A whole state by number.
    pub(crate) fn packed_state(&self, state: i64) -> Result<PackedState, StoreError> {
        let kept = self.kept_state(state)?;
        let mut changes = Vec::new();
        for Correction { key, event, instead } in self.corrections(state)? {
            if kept.binary_search(&(key, event)).is_ok() {
                changes.push((key, instead));
            }
        }
        Ok(match changes.is_empty() {
            true => kept,
            false => overlay(&kept, &changes).into(),
        })
    }

    /// A whole state as its rows hold it.
    fn kept_state(&self, state: i64) -> Result<PackedState, StoreError> {
        let mut deltas = Vec::new();
        let mut at = state;
        let mut whole = loop {
            if let Some(known) = self.caches().packed(at) {
                break known;
            }
            let row = self.state_row(at)?;
            let entries = unpack_pairs(&row.entries)?;
            match row.base {
                Some(base) => {
                    deltas.push(entries);
                    at = base;
                }
                None => break entries.into(),
            }
        };
        for delta in deltas.iter().rev() {
            whole = overlay(&whole, delta).into();
        }
        self.caches().keep_packed(state, &whole);
        Ok(whole)
    }

    /// The difference of two states by number; before the first state everything was absent.
    pub(crate) fn numbered_diff(&self, before: Option<i64>, after: i64) -> Result<Vec<NumberedChange>, StoreError> {
        let Some(before) = before else {
            return Ok(difference(&[], &self.packed_state(after)?));
        };
        if before == after {
            return Ok(Vec::new());
        }
        let row = self.state_row(after)?;
        if row.base == Some(before) {
            // The usual step: one state on top of the last.
            return unpack_pairs(&row.entries)?
                .into_iter()
                .map(|(key, after)| {
                    let after = self.corrected(after)?;
                    let before = match self.current_entry(before, key)? {
                        Some(event) => event,
                        None => self.packed_entry(before, key)?,
                    };
                    Ok(NumberedChange { key, before, after })
                })
                .filter(|change| !matches!(change, Ok(change) if change.before == change.after))
                .collect();
        }
        Ok(difference(&self.packed_state(before)?, &self.packed_state(after)?))
    }

    /// Whether a state's row unpacks, names events that are there, and stands on a chain of the right length.
    pub(crate) fn check_state(&self, state: StateId) -> Result<(), StoreError> {
        let row = self.state_row(state.0)?;
        for (key, event) in unpack_pairs(&row.entries)? {
            self.key_name(key)?;
            if event != 0 {
                self.event_name(event)?;
            }
        }
        let below = match row.base {
            Some(base) => self.state_row(base)?.chain + 1,
            None => 0,
        };
        if row.chain != below || row.chain > MAX_CHAIN {
            return Err(StoreError::Corrupt {
                what: "state",
                reason: format!("its chain is {} long, not {below}", row.chain),
            });
        }
        Ok(())
    }

    fn state_row(&self, state: i64) -> Result<StateRow, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT room, base, chain, entries FROM states WHERE state = ?")?;
        let row = statement.query_row([state], |row| {
            Ok(StateRow {
                room: row.get(0)?,
                base: row.get(1)?,
                chain: row.get(2)?,
                entries: row.get(3)?,
            })
        });
        row.optional()?.ok_or_else(|| missing("state"))
    }
}

impl WriteTxn<'_> {
    /// Keeps a state of a room and returns its name. A state equal to its base, or to the room's current one, gets no
    /// row of its own.
    pub(crate) fn save_state(&self, room: i64, state: &NewState) -> Result<StateId, StoreError> {
        match state {
            NewState::Same(id) => Ok(*id),
            NewState::Delta { base, set } => {
                let set = self.numbered(set)?;
                self.save_delta(room, base.0, &set)
            }
            NewState::Full(map) => {
                let whole = self.numbered(map)?;
                self.save_full(room, &whole)
            }
        }
    }

    pub(crate) fn save_delta(&self, room: i64, base: i64, set: &[(i64, i64)]) -> Result<StateId, StoreError> {
        let row = self.state_row(base)?;
        if row.room != room {
            return Err(StoreError::Corrupt {
                what: "state",
                reason: "its base belongs to another room".to_owned(),
            });
        }
        let mut changed = Vec::with_capacity(set.len());
        for &(key, event) in set {
            let before = match self.current_entry(base, key)? {
                Some(event) => event,
                None => self.packed_entry(base, key)?,
            };
            if before != event {
                changed.push((key, event));
            }
        }
        if changed.is_empty() {
            return Ok(StateId(base));
        }
        if row.chain < MAX_CHAIN {
            return self.insert_state(room, Some(base), row.chain + 1, &changed);
        }
        let whole = overlay(&self.packed_state(base)?, &changed);
        self.insert_state(room, None, 0, &whole)
    }

    /// Keeps a state that was told whole; as a delta to the room's current state where that is smaller.
    fn save_full(&self, room: i64, whole: &[(i64, i64)]) -> Result<StateId, StoreError> {
        let current: Option<i64> = self
            .lookup("SELECT state FROM rooms WHERE room = ?", [room])?
            .ok_or_else(|| missing("room"))?;
        if let Some(current) = current {
            let delta: Vec<(i64, i64)> = difference(&self.packed_state(current)?, whole)
                .into_iter()
                .map(|change| (change.key, change.after))
                .collect();
            if delta.is_empty() {
                return Ok(StateId(current));
            }
            let chain = self.state_row(current)?.chain + 1;
            if chain <= MAX_CHAIN && delta.len() < whole.len() / 2 {
                return self.insert_state(room, Some(current), chain, &delta);
            }
        }
        self.insert_state(room, None, 0, whole)
    }

    fn insert_state(
        &self,
        room: i64,
        base: Option<i64>,
        chain: i64,
        entries: &[(i64, i64)],
    ) -> Result<StateId, StoreError> {
        let state = self.caches().next_state();
        self.conn()
            .prepare_cached("INSERT INTO states (state, room, base, chain, entries) VALUES (?, ?, ?, ?, ?)")?
            .execute((state, room, base, chain, pack_pairs(entries)))?;
        Ok(StateId(state))
    }

    /// A state's entries by number. Its events are held: the engine only builds states of events that it was given.
    fn numbered(&self, map: &StateMap) -> Result<Vec<(i64, i64)>, StoreError> {
        let mut entries = Vec::with_capacity(map.len());
        for ((kind, state_key), id) in map {
            let kind = self.intern_type(&kind.to_string())?;
            let key = self.intern_key(kind, state_key)?;
            entries.push((key, self.event_no(id)?.ok_or_else(|| missing("event of a state"))?));
        }
        entries.sort_unstable();
        Ok(entries)
    }
}

/// `base` with the changes of `delta`, both ascending by key; an event of 0 removes.
fn overlay(base: &[(i64, i64)], delta: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut whole = Vec::with_capacity(base.len() + delta.len());
    let mut base = base.iter().copied().peekable();
    for &(key, event) in delta {
        while let Some(entry) = base.next_if(|entry| entry.0 < key) {
            whole.push(entry);
        }
        base.next_if(|entry| entry.0 == key);
        if event != 0 {
            whole.push((key, event));
        }
    }
    whole.extend(base);
    whole
}

/// What turns `before` into `after`, ascending by key.
pub(crate) fn difference(before: &[(i64, i64)], after: &[(i64, i64)]) -> Vec<NumberedChange> {
    let mut changes = Vec::new();
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.0.cmp(&new.0),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        let event = |entry: Option<&(i64, i64)>| entry.map_or(0, |entry| entry.1);
        if event(gone) != event(come)
            && let Some(&(key, _)) = gone.or(come)
        {
            changes.push(NumberedChange {
                key,
                before: event(gone),
                after: event(come),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn numbered(map: &BTreeMap<u8, u8>) -> Vec<(i64, i64)> {
        map.iter()
            .map(|(&key, &event)| (key.into(), i64::from(event) + 1))
            .collect()
    }

    proptest! {
        #[test]
        fn the_difference_laid_over_the_first_gives_the_second(a: BTreeMap<u8, u8>, b: BTreeMap<u8, u8>) {
            let (a, b) = (numbered(&a), numbered(&b));
            let changes = difference(&a, &b);
            let delta: Vec<(i64, i64)> = changes.iter().map(|change| (change.key, change.after)).collect();
            prop_assert_eq!(overlay(&a, &delta), b);
            prop_assert!(changes.iter().all(|change| change.before != change.after));
        }
    }
}
