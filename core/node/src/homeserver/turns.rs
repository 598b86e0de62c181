//! Turns by name: whoever does something that must not be done twice at once for one room, or for one server, holds its
//! turn meanwhile. It guards no data.

use std::{
    borrow::ToOwned,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Names remembered before those that nobody waits for are dropped.
const SWEEP_ABOVE: usize = 64;

/// The turns of all names of one kind. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns<K>(Arc<Mutex<HashMap<K, Weak<Turn<()>>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq> Turns<K> {
    /// Waits for a name's turn, which lasts until the guard is dropped.
    pub(super) async fn take<N: ToOwned<Owned = K> + ?Sized>(&self, name: &N) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() > SWEEP_ABOVE {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            let name = name.to_owned();
            match turns.get(&name).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Turn::new(()));
                    turns.insert(name, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}
