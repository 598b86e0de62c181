//! Leaves that no server of the room could be told of when they were made: told once one of them is back. Nothing here
//! concerns the user, for whom the invite was over at once.

use std::collections::BTreeSet;

use kith_engine::backoff;
use kith_store::{OwedLeave, StoreError};
use rand::RngCore;
use ruma::{CanonicalJsonObject, OwnedServerName, events::room::member::MembershipState};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Rooms, member::standing};
use crate::{
    Error,
    network::{NetworkError, PeerEvent},
};

impl Rooms {
    /// Takes up what an earlier run left owing, and listens for servers that come back.
    pub fn start(&self) {
        let events = self.ctx.network.events();
        let rooms = Self {
            tasks: self.tasks.for_task(),
            ..self.clone()
        };
        self.tasks.spawn(async move { rooms.pay_debts(events).await });
    }

    /// Ends all tasks. What is owed stays in the database.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    async fn pay_debts(&self, mut events: Receiver<PeerEvent>) {
        let mut failures = 0;
        loop {
            let away = self.pay_once().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "what is owed to rooms that were left could not be told");
                BTreeSet::new()
            });
            if away.is_empty() {
                failures = 0;
                self.owing.notified().await;
                continue;
            }
            failures += 1;
            let wait = backoff(failures, self.ctx.world.rng().next_u64());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.owing.notified() => {}
                () = one_is_up(&mut events, &away) => failures = 0,
            }
        }
    }

    /// Tells what is owed to whoever can be reached. Returns the servers that something is still owed to.
    async fn pay_once(&self) -> Result<BTreeSet<OwnedServerName>, Error> {
        let owed = self.ctx.store.read(|txn| txn.owed_leaves()).await?;
        let mut away = BTreeSet::new();
        for leave in owed {
            if self.pay(&leave).await? {
                let settled = self.ctx.store.write(move |txn| {
                    txn.settle_leave(&leave.user_id, &leave.room_id)?;
                    Ok::<_, StoreError>(())
                });
                settled.await?;
            } else {
                away.extend(leave.servers);
            }
        }
        Ok(away)
    }

    /// Whether a leave is owed no more: a server has taken it, or none of them wants it.
    async fn pay(&self, leave: &OwedLeave) -> Result<bool, Error> {
        let (user, room) = (&leave.user_id, &leave.room_id);
        let _turn = self.entering.take(room).await;
        let (own, asked) = (self.ctx.server_name.clone(), leave.clone());
        let standing = self
            .ctx
            .store
            .read(move |txn| standing(txn, &own, &asked.user_id, &asked.room_id))
            .await?;
        let inside = matches!(
            standing.membership,
            Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock)
        );
        if standing.resident || inside {
            // The user has come back, or the node is there by now and its own events tell.
            return Ok(true);
        }
        let fields: CanonicalJsonObject = super::member::reason_field(leave.reason.clone()).collect();
        let mut unreached = false;
        for server in &leave.servers {
            match self.leave_through_one(user, room, server, &fields).await {
                Ok(_) => return Ok(true),
                Err(error @ (Error::Store(_) | Error::Internal(..))) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, %server, %room, "a server does not take an owed leave");
                    unreached |= may_come_back(&error);
                }
            }
        }
        Ok(!unreached)
    }
}

/// Whether a server that failed so may do better later.
pub(super) fn may_come_back(error: &Error) -> bool {
    matches!(
        error,
        Error::Network(NetworkError::Unreachable(_) | NetworkError::TimedOut(_) | NetworkError::Broken { .. })
    )
}

/// Waits until one of these servers connects.
async fn one_is_up(events: &mut Receiver<PeerEvent>, wanted: &BTreeSet<OwnedServerName>) {
    loop {
        match events.recv().await {
            Ok(PeerEvent::Up(server)) if wanted.contains(&server) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            // The network is gone for good; time still passes.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
