//! Reading rooms: timelines, single events, states, relations, threads and search, as one user may read them. It writes
//! nothing.

mod context;
mod messages;
mod relations;
mod render;
mod search;
mod sight;
mod state;
mod token;
mod walk;

pub use relations::{Relations, RelationsRequest};
pub(crate) use render::{Renderer, ignored_users};
pub(crate) use sight::{Access, RoomSight, member_key, state_events};
pub(crate) use token::{SyncToken, TimelineToken};
pub(crate) use walk::{Walk, walk};

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use kith_engine::ClientFormat;
use kith_store::{ReadTxn, Seq};
use ruma::{OwnedRoomId, RoomId};

use super::{Context, Session};
use crate::Error;

/// Fetches what this node does not hold of a room's past.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Fetches events of a room's past from other servers and keeps them as history, about `wanted` of them: those that
    /// lack at the newest gap at or before a place. Returns whether any came.
    async fn fetch(&self, room: &RoomId, upto: Seq, wanted: usize) -> Result<bool, Error>;
}

/// The service that reads rooms.
#[derive(Clone)]
pub struct Timeline {
    ctx: Context,
    history: Arc<OnceLock<Arc<dyn History>>>,
}

/// One user's reading of one room within one snapshot.
struct Reading<'t> {
    txn: &'t ReadTxn<'t>,
    renderer: Renderer<'t>,
    sight: RoomSight<'t>,
    access: Access,
}

impl Timeline {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            history: Arc::default(),
        }
    }

    /// Gives the service a way to older history. Works once; without it, history ends with what the node holds.
    pub fn set_history(&self, history: Arc<dyn History>) {
        if self.history.set(history).is_err() {
            tracing::warn!("the way to older history is already set");
        }
    }

    /// Reads a room for a user; `M_FORBIDDEN` if the user may not.
    async fn read<T: Send + 'static>(
        &self,
        session: &Session,
        room: OwnedRoomId,
        job: impl FnOnce(&mut Reading<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let session = session.clone();
        let now = self.ctx.world.now();
        let read = move |txn: &ReadTxn<'_>| {
            let (sight, access) = RoomSight::of_reader(txn, &room, &session.user_id)?;
            let ignored = ignored_users(txn, &session.user_id)?;
            job(&mut Reading {
                txn,
                renderer: Renderer {
                    txn,
                    session: &session,
                    now,
                    format: ClientFormat::Full,
                    ignored: &ignored,
                },
                sight,
                access,
            })
        };
        self.ctx.store.read(read).await
    }
}
