//! Turns by room: whoever enters a room through another server holds the room's turn meanwhile, so that two joins do not
//! import the same room twice. It guards no data.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ruma::{OwnedRoomId, RoomId};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Rooms remembered before those that nobody waits for are dropped.
const SWEEP_ABOVE: usize = 64;

/// The turns of all rooms. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<OwnedRoomId, Weak<Turn<()>>>>>);

impl Turns {
    /// Waits for the room's turn, which lasts until the guard is dropped.
    pub(super) async fn take(&self, room: &RoomId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() > SWEEP_ABOVE {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            match turns.get(room).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Turn::new(()));
                    turns.insert(room.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}
