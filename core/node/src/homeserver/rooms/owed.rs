//! What other servers must still hear of rooms that users left or enter: told once one of them is back. Nothing here
//! concerns a user who left, for whom the invite was over at once.

use std::{collections::BTreeSet, time::Duration};

use kith_engine::backoff;
use kith_store::{OwedLeave, StoreError};
use rand::RngCore;
use ruma::{CanonicalJsonObject, OwnedServerName, events::room::member::MembershipState};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{
    Rooms,
    entries::{Tries, is_gone},
    member::standing,
};
use crate::{Error, network::PeerEvent};

/// How long to wait at the most when the failure is this node's own, as on a full disk: nobody tells when that is over.
const LONGEST_HERE: Duration = Duration::from_secs(30);

/// What became of a leave that is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paid {
    /// A server has taken it, or those that are there have no use for it.
    Heard,
    /// Servers are in the room no more that knew of the user; of others none is known here.
    Gone,
    /// Somebody is to be asked again.
    Unheard,
}

/// What keeps the task from resting.
#[derive(Default)]
pub(super) struct Owing {
    /// Servers that something is still owed to.
    pub(super) away: BTreeSet<OwnedServerName>,
    /// Something failed here that may go well later.
    pub(super) again: bool,
}

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
        let mut tries = Tries::default();
        loop {
            let mut owing = Owing::default();
            if let Err(error) = self.pay_all(&mut owing).await {
                tracing::warn!(%error, "what is owed to rooms that were left could not be told");
                owing.again = true;
            }
            if let Err(error) = self.finish_entries(&mut tries, &mut owing).await {
                tracing::warn!(%error, "rooms that are being entered could not be");
                owing.again = true;
            }
            if owing.away.is_empty() && !owing.again {
                failures = 0;
                self.owing.notified().await;
                continue;
            }
            failures += 1;
            let mut wait = backoff(failures, self.ctx.world.rng().next_u64());
            if owing.again {
                wait = wait.min(LONGEST_HERE);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.owing.notified() => {}
                () = one_is_up(&mut events, &owing.away) => failures = 0,
            }
        }
    }

    /// Tells what is owed to whoever can be reached.
    async fn pay_all(&self, owing: &mut Owing) -> Result<(), Error> {
        for leave in self.ctx.store.read(|txn| txn.owed_leaves()).await? {
            if !self.settle_if_paid(&leave).await? {
                owing.away.extend(leave.servers);
            }
        }
        Ok(())
    }

    /// Tells a leave to whoever can be reached; whether it is owed no more.
    pub(super) async fn settle_if_paid(&self, leave: &OwedLeave) -> Result<bool, Error> {
        let paid = self.pay(leave).await?;
        if paid == Paid::Unheard {
            return Ok(false);
        }
        let (user, room) = (leave.user_id.clone(), leave.room_id.clone());
        let settled = self.ctx.store.write(move |txn| {
            txn.settle_leave(&user, &room)?;
            if paid == Paid::Heard && txn.entry(&user, &room)?.is_some_and(|entry| entry.over) {
                txn.end_entry(&user, &room)?;
            }
            Ok::<_, StoreError>(())
        });
        settled.await?;
        Ok(true)
    }

    /// Tells a leave to one of the servers that it is owed to.
    async fn pay(&self, leave: &OwedLeave) -> Result<Paid, Error> {
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
            return Ok(Paid::Heard);
        }
        let fields: CanonicalJsonObject = super::member::reason_field(leave.reason.clone()).collect();
        let (mut unreached, mut heard) = (false, false);
        for server in &leave.servers {
            match self.leave_through_one(user, room, server, &fields).await {
                Ok(_) => return Ok(Paid::Heard),
                Err(error @ (Error::Store(_) | Error::Internal(..))) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, %server, %room, "a server does not take an owed leave");
                    unreached |= may_come_back(&error);
                    heard |= !is_gone(&error);
                }
            }
        }
        Ok(match (unreached, heard) {
            (true, _) => Paid::Unheard,
            (false, true) => Paid::Heard,
            (false, false) => Paid::Gone,
        })
    }
}

/// Whether a server that failed so may do better later.
pub(super) fn may_come_back(error: &Error) -> bool {
    matches!(error, Error::Network(error) if !error.is_final())
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
