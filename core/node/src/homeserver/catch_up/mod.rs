//! Catching up: the one mechanism by which members of a room come to hold the same events, whatever was lost between them.
//! Servers that meet, or whose rooms moved untold, exchange heads; who lacks something pulls it from whoever has it. Who is
//! asked when is the engine's decision ([`kith_engine::CatchUp`]); nothing is judged here.

#[cfg(test)]
mod bad_answers;
#[cfg(test)]
mod bad_forks;
#[cfg(test)]
mod bad_members;
mod heads;
#[cfg(test)]
mod mallory;
mod news;
#[cfg(test)]
mod refuted;
#[cfg(test)]
mod removed;
mod run;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kith_engine::CatchUp as Decisions;
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

use super::{Context, Incoming, Rooms, Topics, tasks::Tasks};

pub use news::News;

/// The service. Cheap to clone; [`CatchUp::shutdown`], or dropping the last handle, ends its tasks.
#[derive(Clone)]
pub struct CatchUp {
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// What the tasks hold.
struct Shared {
    ctx: Context,
    incoming: Incoming,
    rooms: Rooms,
    topics: Topics,
    news: News,
    decisions: Mutex<Decisions>,
    /// Something was decided outside of the loop.
    changed: Notify,
    started: Instant,
}

impl CatchUp {
    /// Makes the service; it asks nobody before [`CatchUp::start`].
    pub fn new(ctx: Context, incoming: Incoming, rooms: Rooms, topics: Topics, news: News) -> Self {
        let decisions = Mutex::new(Decisions::new(ctx.server_name.clone()));
        Self {
            shared: Arc::new(Shared {
                ctx,
                incoming,
                rooms,
                topics,
                news,
                decisions,
                changed: Notify::new(),
                started: Instant::now(),
            }),
            tasks: Tasks::new(),
        }
    }

    /// Compares with whoever is connected, and listens for peers and for news of rooms.
    pub fn start(&self) {
        let events = self.shared.ctx.network.events();
        self.tasks
            .spawn(run::run(Arc::clone(&self.shared), self.tasks.for_task(), events));
    }

    /// Ends all tasks. What was kept stays; what was not is found again.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
impl CatchUp {
    /// Whether nothing is under way or due, so that nothing will be asked until something happens.
    fn is_idle(&self) -> bool {
        self.shared.decisions().is_idle() && self.shared.news.is_empty()
    }
}

impl Shared {
    /// Time since the start, for the engine.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A poisoned lock only says that another thread panicked; decisions are whole at every step.
    fn decisions(&self) -> MutexGuard<'_, Decisions> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
